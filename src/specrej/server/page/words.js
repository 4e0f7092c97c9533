// How the page says numbers and sentences. Nothing is computed or drawn here.

const CAUSES = {
  budget: "memory is full",
  schedule: "the schedule says so",
  complete: "all have come to their end",
  out_of_memory: "the device ran out of memory",
  filter: "the reward's filter",
  lost: "the engine lost them",
};

/** With commas and a real minus sign; a dash for what is not known. */
export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  const rounded = Number(value.toFixed(digits)) + 0; // no minus before zero
  const text = rounded.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return text.replace("-", "−");
}

/** A reward: three digits tell neighbours apart, where rewards are not in thousands. */
export const reward = (value) => number(value, Math.abs(value) >= 1000 ? 0 : 3);

export const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const powerOf = (value) => Math.min(Math.floor(Math.log2(Math.max(value, 1)) / 10), UNITS.length - 1);
const inUnit = (value, power) => number(value / 2 ** (10 * power), power && value / 2 ** (10 * power) < 100 ? 1 : 0);

/** Bytes in the unit that suits them. */
export const bytes = (value) => `${inUnit(value, powerOf(value))} ${UNITS[powerOf(value)]}`;

/** "12.5 of 47.0 MiB" */
export function bytesOf(part, whole) {
  return `${part ? inUnit(part, powerOf(whole)) : 0} of ${bytes(whole)}`;
}

export const cause = (name) => CAUSES[name] ?? name;

/** "67 → 34 → 17"; of many only the first and the last. */
export function counts(numbers, arrow = " → ") {
  const shown = numbers.length > 9 ? [...numbers.slice(0, 3), "…", ...numbers.slice(-5)] : numbers;
  return shown.map((one) => (one === "…" ? one : number(one))).join(arrow);
}

/** A decision in a sentence. */
export function decision(made) {
  const when = `At ${plural(made.numTokens, "token")}, ${cause(made.cause)}`;
  if (made.numRejected === 0) return `${when}: ${number(made.numScored)} scored, nobody rejected.`;
  const below = made.cut === null ? "" : ` below ${reward(made.cut)}`;
  const stay = made.numLeft === 1 ? "1 stays" : `${number(made.numLeft)} stay`;
  return `${when}: ${number(made.numScored)} scored, ${number(made.numRejected)} rejected${below}, ${stay}.`;
}

/** What a share of candidates is called. */
export function share(alpha) {
  if (alpha === 0) return "0: nobody";
  const names = { 0.25: "a quarter", 0.5: "half", 0.75: "three quarters" };
  return `${alpha.toFixed(2)}: ${names[alpha] ?? `${Math.round(100 * alpha)}%`}`;
}

/** What became of a candidate that is not the winner. */
export function fate(candidate) {
  const tokens = plural(candidate.numTokens, "token");
  if (candidate.state === "rejected") return candidate.hasEnded ? "finished, then rejected" : `rejected at ${tokens}`;
  return candidate.state === "complete" ? "finished" : "unfinished";
}
