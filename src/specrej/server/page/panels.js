// Fills the page's panels from a race: figures, answers, tables, past runs.
// Texts of models go in as text, never as HTML.

import { countsOf, estimatedTokens, ranked, runnerUp } from "./race.js";
import { bytes, bytesOf, cause, counts, fate, number, plural, reward } from "./words.js";

const at = (id) => document.getElementById(id);

/** The line of figures above the picture. */
export function showFigures(race, seconds) {
  at("counts").textContent = race.total ? counts(countsOf(race)) : "–";
  at("generated").textContent = race.total ? number(race.generated) : "–";
  at("seconds").textContent = race.phase === "waiting" ? "–" : number(seconds, 1);
  at("memory").textContent = race.memoryBytes ? bytesOf(race.kvBytes, race.memoryBytes) : "–";
  at("memory-bar").value = race.memoryBytes ? race.kvBytes / race.memoryBytes : 0;
  at("saved").textContent = saved(race);
}

function saved(race) {
  const whole = race.phase === "ended" ? estimatedTokens(race) : null;
  if (whole === null) return race.phase === "waiting" || race.phase === "ended" ? "–" : "…";
  const share = Math.round(100 * (1 - race.generated / whole));
  return share > 0 ? `${number(Math.round(whole - race.generated))} (${share}%)` : "nothing";
}

/** The winner, or who leads until there is one; the runner-up; the plain sample. */
export function showAnswers(race, plainTrouble) {
  const winner = race.candidates.get(race.winner);
  const leader = race.candidates.get(race.leader);
  if (winner) {
    const late = race.isLate ? ", the best that was finished at the deadline" : "";
    answer("winner", "The winner", about(winner, late), winner.text);
  } else if (leader) {
    const words = race.answer ? ", nobody can overtake it" : ", so far";
    answer("winner", "In the lead", about(leader, words), `${race.text} …`);
  } else answer("winner", "The winner", "", "");
  const second = race.phase === "ended" ? runnerUp(race) : null;
  const isRejected = second?.state === "rejected";
  const fallen = isRejected ? `, ${fate(second)}` : "";
  const title = isRejected ? "The best of those rejected" : "The runner-up";
  answer("runner-up", title, second ? about(second, fallen) : "", second ? second.text : "");
  const plain = race.plain;
  const isSame = plain && plain.text === winner?.text;
  const words = plain ? `reward ${reward(plain.reward)}${isSame ? ", the winner itself" : ""}` : plainTrouble;
  answer("plain", "Without selection", words, plain ? plain.text : "");
}

const about = (candidate, more) => `candidate ${candidate.index}, reward ${reward(candidate.reward)}${more}`;

function answer(id, title, words, text) {
  const parts = at(id).children;
  [title, words, text].forEach((one, i) => {
    if (parts[i].textContent !== one) parts[i].textContent = one;
  });
}

let tabled = "";

/** The race in tables, for those who would rather read it; made again when a decision has changed them. */
export function showTables(race) {
  const state = `${race.decisions.length} ${race.phase} ${race.winner}`;
  if (state === tabled && race.phase !== "ended") return;
  tabled = state;
  at("decisions").replaceChildren(
    ...race.decisions.map((one) =>
      row(plural(one.numTokens, "token"), [
        [cause(one.cause), "words"],
        [number(one.numScored)],
        [number(one.numRejected)],
        [reward(one.cut)],
        [bytes(one.kvBefore)],
        [bytes(one.kvAfter)],
      ]),
    ),
  );
  at("candidates").replaceChildren(
    ...ranked(race).map((one) =>
      row(String(one.index), [
        [one.index === race.winner ? "winner" : fate(one), "words"],
        [number(one.numTokens)],
        [reward(one.reward)],
        [one.text, "words text"],
      ]),
    ),
  );
}

function row(name, cells) {
  const head = element("th", name);
  head.scope = "row";
  const line = element("tr");
  line.append(head, ...cells.map(([text, kind]) => element("td", text, kind)));
  return line;
}

/** Past runs, each with its deeds: {open, save, forget}, called with the run. */
export function showRuns(runs, deeds) {
  at("kept").replaceChildren(
    ...runs.map((run) => {
      const prompt = run.request.messages.at(-1).content;
      const short = prompt.length > 90 ? `${prompt.slice(0, 90)}…` : prompt;
      const item = element("li");
      item.append(
        button(short, () => deeds.open(run), "link"),
        element("span", summary(run), "note"),
        button("Save", () => deeds.save(run), "", `Save as a file: ${short}`),
        button("Delete", () => deeds.forget(run), "", `Delete: ${short}`),
      );
      return item;
    }),
  );
}

function summary(run) {
  const ended = run.events.find((one) => one.kind === "ended");
  const best = ended.candidates.find((one) => one.index === ended.winner);
  const when = new Date(run.created).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
  return `${plural(ended.candidates.length, "candidate")}, reward ${reward(best?.reward)}, ${when}`;
}

function button(words, act, kind = "", label = "") {
  const made = element("button", words, kind);
  made.type = "button";
  if (label) made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

function element(name, text = "", kind = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
