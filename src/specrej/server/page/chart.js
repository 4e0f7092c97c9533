// Draws a race: partial reward over tokens, one line a candidate. What moves glides, unless motion is unwelcome.
//
//   const chart = makeChart(svg);
//   chart.clear();                          // before another race
//   chart.show(race, maxTokens);            // as often as there is news

import { countsOf, newRace, numUnscored } from "./race.js";
import { counts, number, reward as spoken } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { top: 26, right: 18, bottom: 40, left: 46 };
const GLIDE_MS = 110;
const CROSS = 3.5;
const TICK = 52; // from a reward on the axis to the next
const WALL = 7; // from where the lines end to the wall that stopped them
const LAYERS = ["grid", "fan", "walls", "lines", "waits", "crosses", "dots", "labels"];

export function makeChart(svg) {
  const layers = Object.fromEntries(LAYERS.map((name) => [name, added(svg, "g", { class: name })]));
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let race = newRace();
  let maxTokens = 128;
  let shown = null; // what glides: {right, low, high, front} and the heads of the lines
  let frame = 0;
  let lastMs = 0;

  function show(next, limit) {
    if (next.decisions.length < race.decisions.length) clear(); // played back
    race = next;
    maxTokens = limit;
    svg.setAttribute("aria-label", inWords(race));
    if (!frame) {
      lastMs = performance.now();
      frame = requestAnimationFrame(draw);
    }
  }

  /** The next race glides from nowhere. */
  function clear() {
    shown = null;
  }

  function draw(nowMs) {
    const size = svg.getBoundingClientRect();
    svg.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
    const weight = still.matches ? 1 : 1 - Math.exp(-Math.max(nowMs - lastMs, 0) / GLIDE_MS);
    lastMs = nowMs;
    shown ??= { ...extent(race, maxTokens), front: 0, heads: new Map() };
    const isSettled = glide(shown, race, maxTokens, weight);
    paint(layers, race, shown, scales(size, shown));
    frame = isSettled ? 0 : requestAnimationFrame(draw);
  }

  new ResizeObserver(() => show(race, maxTokens)).observe(svg);
  return { show, clear };
}

/** What the picture says, for those who do not see it. */
function inWords(race) {
  if (!race.total) return "No race yet.";
  const left = `Candidates left: ${counts(countsOf(race), ", then ")}.`;
  const winner = race.candidates.get(race.winner);
  const end = winner ? ` Candidate ${winner.index} won with a reward of ${spoken(winner.reward)}.` : "";
  const figures = " The tables below hold the figures.";
  return `Rewards of ${number(race.total)} candidates over their tokens. ${left}${end}${figures}`;
}

/** Ends of the axes that hold the race as it is. */
function extent(race, maxTokens) {
  const points = [...race.candidates.values()].flatMap((one) => one.points);
  const plain = race.plain ? [{ x: race.plain.numTokens, y: race.plain.reward }] : [];
  const all = [...points, ...plain].filter((one) => one.y !== null);
  const rewards = all.map((one) => one.y);
  const low = rewards.length ? Math.min(...rewards) : 0;
  const high = rewards.length ? Math.max(...rewards) : 1;
  const room = 0.06 * (high - low || 1);
  const longest = Math.max(race.length, ...all.map((one) => one.x));
  const isOver = race.phase === "ended";
  const right = isOver ? longest * 1.03 : Math.min(maxTokens, Math.max(24, 1.25 * longest));
  const even = bend(race, high, high - low + room);
  return { right, low: low - room, high: high + even / 4, bend: even };
}

/** Distance from the best reward up to which the scale is nearly even: half of those that are left are within it. */
function bend(race, best, range) {
  const left = [...race.candidates.values()].filter((one) => one.state !== "rejected" && one.points.length);
  const gaps = left.map((one) => best - one.points.at(-1).y).sort((one, other) => one - other);
  return Math.max(gaps[gaps.length >> 1] ?? range, range / 100);
}

/** Moves what is shown towards the race; whether it has arrived. */
function glide(shown, race, maxTokens, weight) {
  let isSettled = true;
  const move = (holder, name, goal, scale) => {
    const gap = goal - holder[name];
    const isNear = Math.abs(gap) < 0.002 * scale;
    holder[name] = isNear ? goal : holder[name] + gap * weight;
    isSettled &&= isNear;
  };
  const goal = extent(race, maxTokens);
  const [width, height] = [goal.right, goal.high - goal.low];
  if (!shown.heads.size) Object.assign(shown, { ...goal, right: shown.right }); // the first rewards
  for (const name of ["low", "high", "bend"]) move(shown, name, goal[name], height);
  move(shown, "right", goal.right, width);
  if (race.length < shown.front) shown.front = race.length; // another wave
  move(shown, "front", race.length, width);
  const scored = [...race.candidates.values()].filter((one) => one.points.length);
  const fresh = scored.filter((one) => !shown.heads.has(one.index));
  const whole = Math.log1p((goal.high - goal.low) / goal.bend);
  fresh.forEach((one, i) => {
    const spot = goal.high - goal.bend * Math.expm1(((i + 0.5) / fresh.length) * whole); // where the fan had it
    shown.heads.set(one.index, { x: one.points.at(-1).x, y: one.points.length > 1 ? one.points.at(-1).y : spot });
  });
  for (const one of scored) {
    move(shown.heads.get(one.index), "x", one.points.at(-1).x, width);
    move(shown.heads.get(one.index), "y", one.points.at(-1).y, height);
  }
  return isSettled;
}

/** Places of tokens and rewards. Rewards are stretched near the best, where a race is decided. */
function scales(size, shown) {
  const [left, top, bottom] = [MARGIN.left, MARGIN.top, size.height - MARGIN.bottom];
  const [width, height] = [size.width - left - MARGIN.right, bottom - top];
  const whole = Math.log1p((shown.high - shown.low) / shown.bend);
  const below = (reward) => Math.max((shown.high - reward) / shown.bend, -0.5); // above it only while gliding
  return {
    x: (tokens) => left + (tokens / shown.right) * width,
    y: (reward) => top + (Math.log1p(below(reward)) / whole) * height,
    rewardAt: (y) => shown.high - shown.bend * Math.expm1(((y - top) / height) * whole),
    left,
    bottom,
    right: left + width,
    top,
    middle: top + height / 2,
  };
}

function paint(layers, race, shown, at) {
  paintAxes(layers.grid, race, shown, at);
  paintFan(layers.fan, race, shown, at);
  paintWalls(layers.walls, race, at);
  paintLines(layers.lines, race, shown, at);
  paintEnds(layers, race, shown, at);
  paintLabels(layers.labels, race, shown, at);
}

function paintAxes(layer, race, shown, at) {
  const isScored = race.decisions.length > 0;
  const across = evenTicks(shown.right, (at.right - at.left) / 90);
  const up = isScored ? bentTicks(at) : [];
  layer.replaceChildren(
    ...up.map((one) => made("path", { d: `M${at.left} ${at.y(one.value)}H${at.right}` })),
    made("path", { class: "axis", d: `M${at.left} ${at.bottom}H${at.right}` }),
    ...across.map((one) => text(number(one), at.x(one), at.bottom + 16, "middle")),
    ...up.map((one) => text(number(one.value, one.digits), at.left - 8, at.y(one.value) + 4, "end")),
    text("tokens", at.right, at.bottom + 33, "end"),
    text("reward of the text so far, stretched near the best", 2, 13, "start"),
  );
}

/** From the prompt to where each candidate was scored first: of the way there no reward is known. */
function paintFan(layer, race, shown, at) {
  const firsts = [...race.candidates.values()]
    .filter((one) => one.points.length)
    .map((one) => (one.points.length > 1 ? one.points[0] : shown.heads.get(one.index)));
  const spots = firsts.map((one) => [at.x(one.x), at.y(one.y)]);
  const num = numUnscored(race);
  const heights = Array.from({ length: num }, (_, i) => at.top + ((i + 0.5) / num) * (at.bottom - at.top));
  const runners = heights.map((y) => [at.x(shown.front), y]);
  const d = [...spots, ...runners].map(([x, y]) => `M${at.left} ${at.middle}L${x} ${y}`).join("");
  layer.replaceChildren(made("path", { d }), ...runners.map(([cx, cy]) => made("circle", { cx, cy, r: 1.75 })));
}

/** At each decision that rejected somebody, a wall up to the cut. */
function paintWalls(layer, race, at) {
  const walls = race.decisions.filter((one) => one.numRejected && one.cut !== null);
  const spots = walls.map((one) => [at.x(one.numTokens) + WALL, at.y(one.cut)]);
  layer.replaceChildren(
    made("path", { d: spots.map(([x, y]) => `M${x} ${at.bottom}V${y}`).join("") }),
    made("path", { class: "cut", d: spots.map(([x, y]) => `M${x - 6} ${y}h12`).join("") }),
  );
}

function kindOf(candidate, race) {
  if (candidate.index === race.winner) return "winner";
  return candidate.index === race.leader ? "leader" : candidate.state;
}

function paintLines(layer, race, shown, at) {
  const lines = new Map([...layer.children].map((one) => [Number(one.dataset.index), one]));
  for (const one of race.candidates.values()) {
    if (!one.points.length) continue;
    const line = lines.get(one.index) ?? added(layer, "path", { "data-index": one.index });
    lines.delete(one.index);
    const kind = kindOf(one, race);
    if (line.getAttribute("class") !== kind) line.setAttribute("class", kind);
    if (kind === "winner" || kind === "leader") layer.append(line); // above the others
    const points = [...one.points.slice(0, -1), shown.heads.get(one.index)];
    const spots = points.map((point) => `${at.x(point.x).toFixed(1)} ${at.y(point.y).toFixed(1)}`);
    line.setAttribute("d", `M${spots.join("L")}`);
  }
  for (const line of lines.values()) line.remove();
}

/** What was not scored since, crosses where candidates were rejected, and dots on the others. */
function paintEnds(layers, race, shown, at) {
  const scored = [...race.candidates.values()].filter((one) => shown.heads.has(one.index));
  const out = scored.filter((one) => one.state === "rejected");
  const isLeader = (one) => Number(one.index === race.leader);
  const left = scored.filter((one) => one.state !== "rejected").sort((one, other) => isLeader(one) - isLeader(other));
  const head = (one) => [at.x(shown.heads.get(one.index).x), at.y(shown.heads.get(one.index).y)];
  const reach = (one) => at.x(one.hasEnded ? Math.min(one.numTokens, shown.front) : shown.front);
  const tip = (one) => Math.max(head(one)[0], reach(one));
  const kind = (one) => kindOf(one, race);
  const ahead = left.filter((one) => tip(one) > head(one)[0] + 1);
  layers.waits.replaceChildren(
    ...ahead.map((one) => made("path", { class: kind(one), d: `M${head(one).join(" ")}H${tip(one)}` })),
  );
  const [half, whole] = [CROSS, 2 * CROSS];
  const cross = ([x, y]) => `M${x - half} ${y - half}l${whole} ${whole}m0 ${-whole}l${-whole} ${whole}`;
  layers.crosses.replaceChildren(made("path", { d: out.map((one) => cross(head(one))).join("") }));
  const radius = { winner: 6, leader: 4.5, live: 2.5, complete: 3.5 };
  layers.dots.replaceChildren(
    ...left.map((one) => made("circle", { class: kind(one), cx: tip(one), cy: head(one)[1], r: radius[kind(one)] })),
  );
}

/** The latest cut, the winner, and the plain sample by name. */
function paintLabels(layer, race, shown, at) {
  const labels = [];
  const cut = race.phase === "ended" ? null : race.decisions.findLast((one) => one.cut !== null);
  if (cut) labels.push(text(`cut ${spoken(cut.cut)}`, at.x(cut.numTokens) + WALL + 9, at.y(cut.cut) + 14, "start"));
  const winner = race.candidates.get(race.winner);
  let taken = null;
  if (winner && shown.heads.has(winner.index)) {
    const head = shown.heads.get(winner.index);
    taken = placed(`winner ${spoken(winner.reward)}`, at.x(head.x), at.y(head.y) - 12, at, "winner");
    labels.push(taken);
  }
  if (race.plain && race.plain.reward !== null) {
    const [x, y] = [at.x(race.plain.numTokens), at.y(race.plain.reward)];
    const isNear = taken !== null && Math.abs(y + 20 - Number(taken.getAttribute("y"))) < 16;
    labels.push(made("path", { class: "plain", d: `M${x} ${y - 6}l6 6-6 6-6-6z` }));
    labels.push(placed(`without selection ${spoken(race.plain.reward)}`, x, y + (isNear ? 36 : 20), at, "plain"));
  }
  layer.replaceChildren(...labels);
}

/** A label at a spot, on the side where there is room. */
function placed(words, x, y, at, kind) {
  const share = (x - at.left) / (at.right - at.left);
  const anchor = share > 0.75 ? "end" : share < 0.25 ? "start" : "middle";
  return text(words, x, Math.min(Math.max(y, 12), at.bottom - 6), anchor, kind);
}

/** Round numbers from 0 to an end, about so many. */
function evenTicks(high, num) {
  const rough = high / Math.max(num, 1);
  const power = 10 ** Math.max(Math.floor(Math.log10(rough)), 0);
  const step = power * ([1, 2, 5].find((one) => one * power >= rough) ?? 10);
  return Array.from({ length: Math.floor(high / step) + 1 }, (_, i) => i * step);
}

/** Rewards at even places, each as round as its neighbours allow. */
function bentTicks(at) {
  const found = [];
  for (let y = at.top + TICK / 2; y < at.bottom; y += TICK) {
    const space = at.rewardAt(y - TICK / 2) - at.rewardAt(y + TICK / 2);
    const power = Math.floor(Math.log10(space));
    const unit = [5, 2, 1].find((one) => one * 10 ** power <= space) * 10 ** power;
    const value = Math.round(at.rewardAt(y) / unit) * unit;
    const digits = [0, 1, 2, 3, 4, 5].find((one) => Math.abs(value - Number(value.toFixed(one))) < unit / 100) ?? 6;
    const gap = found.length ? at.y(value) - at.y(found.at(-1).value) : Infinity;
    if (gap > TICK / 2) found.push({ value, digits });
  }
  return found;
}

function made(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function added(parent, name, attributes) {
  return parent.appendChild(made(name, attributes));
}

function text(words, x, y, anchor, kind = "") {
  const element = made("text", { x, y, "text-anchor": anchor, class: kind });
  element.textContent = words;
  return element;
}
