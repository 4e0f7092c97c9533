// Runs that are over: kept in this browser, shared as files, checked when they come back.
//
// A run: {format, created (ms since 1970), model, reward, request (its body), events: [{at (ms), kind, ...}]}

const FORMAT = "specrej-run-1";
const MOST_KEPT = 20;
const MOST_BYTES = 50e6;

export const newRun = (model, reward, request) => ({
  format: FORMAT, created: Date.now(), model, reward, request, events: [],
});

/** The runs of this browser, newest first. Throws where it keeps none. */
export async function keptRuns() {
  const runs = await asked("readonly", (store) => store.getAll());
  return runs.reverse();
}

/** Keeps a run, and drops the oldest beyond the most. */
export async function keep(run) {
  await asked("readwrite", (store) => store.put(run));
  const keys = await asked("readonly", (store) => store.getAllKeys());
  for (const key of keys.slice(0, -MOST_KEPT)) await forget(key);
}

export const forget = (created) => asked("readwrite", (store) => store.delete(created));

async function asked(mode, ask) {
  const base = await settled(opening());
  const answer = await settled(ask(base.transaction("runs", mode).objectStore("runs")));
  base.close();
  return answer;
}

function opening() {
  const request = indexedDB.open("specrej", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("runs", { keyPath: "created" });
  return request;
}

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Hands a run to the user as a file. */
export function save(run) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(run)], { type: "application/json" }));
  link.download = `specrej-${new Date(run.created).toISOString().slice(0, 19).replaceAll(":", "-")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** The run in a file. Throws an Error that says why it is none. */
export async function fromFile(file) {
  if (file.size > MOST_BYTES) throw new Error(`${file.name} is too large for a run.`);
  let data;
  try {
    data = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is no JSON.`);
  }
  const wrong = RUN(data, "the run") || (data.events.some((one) => one.kind === "ended") ? "" : "it has no end");
  if (wrong) throw new Error(`${file.name} holds no run that this page can open: ${wrong}.`);
  return data;
}

// A shape takes a value and its name, and says what is wrong with it, or nothing.

const shape = (words, isRight) => (value, name) => (isRight(value) ? "" : `${name} must be ${words}`);
const text = shape("a text", (value) => typeof value === "string");
const flag = shape("true or false", (value) => typeof value === "boolean");
const count = shape("a whole number", (value) => Number.isSafeInteger(value) && value >= 0);
const amount = shape("a number", Number.isFinite);
const state = shape("a state", (value) => ["live", "complete", "rejected"].includes(value));
const start = shape("auto or a whole number", (value) => value === "auto" || Number.isSafeInteger(value));
const orNull = (inner) => (value, name) => (value === null ? "" : inner(value, name));

const list = (inner) => (value, name) => {
  if (!Array.isArray(value)) return `${name} must be a list`;
  return value.map((one, i) => inner(one, `${name}[${i}]`)).find(Boolean) ?? "";
};

const record = (fields) => (value, name) => {
  if (value === null || typeof value !== "object") return `${name} must be an object`;
  return Object.entries(fields).map(([key, inner]) => inner(value[key], `${name}.${key}`)).find(Boolean) ?? "";
};

const EVENTS = {
  queued: record({ num_ahead: count }),
  started: record({ num_candidates: count, memory_bytes: count }),
  step: record({ num_tokens: count, num_live: count, generated_tokens: count, kv_bytes: count, ended: list(count) }),
  decision: record({
    cause: text, num_tokens: count, cut: orNull(amount), kv_bytes: count, kv_bytes_after: count, best: orNull(count), text,
    candidates: list(record({ index: count, num_tokens: count, reward: orNull(amount), state })),
  }),
  text: record({ delta: text }),
  ended: record({
    winner: orNull(count), is_late: flag, generated_tokens: count,
    candidates: list(record({
      index: count, state, num_tokens: count, reward: orNull(amount), text, finish_reason: orNull(text),
    })),
  }),
  plain: record({ num_tokens: count, reward: orNull(amount), text }),
};

function event(value, name) {
  const wrong = record({ at: amount, kind: text })(value, name);
  if (wrong) return wrong;
  return Object.hasOwn(EVENTS, value.kind) ? EVENTS[value.kind](value, name) : `${name} is of no kind known here`;
}

const RUN = record({
  format: shape(FORMAT, (value) => value === FORMAT),
  created: shape("a time", (value) => Number.isFinite(value) && Math.abs(value) < 8.64e15),
  model: text,
  reward: text,
  request: record({
    messages: list(record({ content: text })),
    max_tokens: count,
    seed: count,
    temperature: amount,
    specrej: record({ n: start, alpha: amount, decide: text }),
  }),
  events: list(event),
});
