// The page: asks for races, follows them, plays them again, and keeps them.

import { makeChart } from "./chart.js";
import { asked, fillDefaults, fillRequest, sayOptions } from "./form.js";
import { showAnswers, showFigures, showRuns, showTables } from "./panels.js";
import { advance, countsOf, newRace } from "./race.js";
import { makePlayer } from "./replay.js";
import { forget, fromFile, keep, keptRuns, newRun, save } from "./runs.js";
import { Trouble, model as askModel, plainSample, race as askRace } from "./stream.js";
import { counts, decision, plural, reward } from "./words.js";

const at = (id) => document.getElementById(id);
const chart = makeChart(at("chart"));
const player = makePlayer(showMoment);

let served = null; // what /v1/models says
let run = null;
let race = newRace();
let stopping = null; // the AbortController of the request that is under way
let plainTrouble = "";

// A race, from the button to the end

async function start() {
  if (stopping) return;
  player.stop();
  stopping = new AbortController();
  at("trouble").textContent = "";
  plainTrouble = "";
  setRunning(true);
  try {
    served ??= await meetServer();
    run = newRun(served.id, served.specrej.reward, asked(served.id));
    race = newRace();
    at("replay").hidden = true;
    chart.clear();
    showAll(0);
    await follow();
    await askPlain();
  } catch (error) {
    complain(error);
  }
  stopping = null;
  setRunning(false);
  if (race.phase === "ended") await finish();
}

async function follow() {
  const begunMs = performance.now();
  const elapsed = () => performance.now() - begunMs;
  const clock = setInterval(() => showFigures(race, elapsed() / 1000), 100);
  try {
    for await (const event of askRace(run.request, key(), stopping.signal)) {
      note({ ...event, at: elapsed() });
    }
  } finally {
    clearInterval(clock);
  }
}

async function askPlain() {
  plainTrouble = "asking the model once more …";
  showAnswers(race, plainTrouble);
  const endMs = run.events.at(-1).at;
  try {
    note({ ...(await plainSample(run.request, key(), stopping.signal)), at: endMs });
  } catch (error) {
    if (!(error instanceof Trouble) && error.name !== "AbortError") throw error;
    plainTrouble = error.name === "AbortError" ? "stopped" : `could not be had: ${error.message}`;
    showAnswers(race, plainTrouble);
  }
}

/** Takes an event of the race that is under way. */
function note(event) {
  run.events.push(event);
  advance(race, event);
  say(event);
  showAll(event.at / 1000);
}

async function finish() {
  showReplay();
  await keep(run).catch(() => {}); // the list says so where none are kept
  await listRuns();
}

// What is shown

function showAll(seconds) {
  chart.show(race, run.request.max_tokens);
  showFigures(race, seconds);
  showAnswers(race, plainTrouble);
  showTables(race);
}

/** The race as it was after so many milliseconds. */
function showMoment(milliseconds) {
  const past = run.events.filter((event) => event.at <= milliseconds);
  race = newRace();
  for (const event of past) advance(race, event);
  const told = past.findLast((event) => Object.hasOwn(SAYINGS, event.kind));
  if (told) say(told);
  showAll(milliseconds / 1000);
}

function showReplay() {
  at("replay").hidden = false;
  player.load(run.events.at(-1).at);
}

/** What an event means, after it. */
const SAYINGS = {
  queued: () =>
    race.numAhead ? `Waiting: ${plural(race.numAhead, "request")} come first.` : "The prompt is being read.",
  started: () => `${plural(race.total, "candidate")} are on their way, none of them scored yet.`,
  decision: () => decision(race.decisions.at(-1)),
  ended: outcome,
};

function say(event) {
  const words = SAYINGS[event.kind]?.();
  if (words && at("said").textContent !== words) at("said").textContent = words;
}

function outcome() {
  const winner = race.candidates.get(race.winner);
  if (!winner) return "The race is over, and no candidate was finished.";
  const numbers = countsOf(race);
  const left = numbers.length > 1 ? ` Left were ${counts(numbers, ", then ")}.` : " Nobody was rejected.";
  const late = race.isLate ? "The deadline came. " : "";
  return `${late}Candidate ${winner.index} of ${race.total} wins with a reward of ${reward(winner.reward)}.${left}`;
}

function complain(error) {
  if (error.name === "AbortError") {
    at("said").textContent = "Stopped: the server has dropped the candidates and freed their memory.";
  } else if (error instanceof Trouble) {
    at("trouble").textContent = error.message;
    if (stopping) at("said").textContent = race.total ? "The race did not come to its end." : "No race.";
    if (error.needsKey) askKey();
  } else throw error;
}

function setRunning(isRunning) {
  const hadFocus = [at("run"), at("stop")].includes(document.activeElement);
  at("run").hidden = isRunning;
  at("stop").hidden = !isRunning;
  if (hadFocus) at(isRunning ? "stop" : "run").focus();
}

// The server and its key

async function meetServer() {
  const met = await askModel(key());
  at("model").textContent = `· ${met.id} · reward ${met.specrej.reward}`;
  return met;
}

function key() {
  return at("key").value;
}

function askKey() {
  at("key-option").hidden = false;
  at("key").focus();
}

function recallKey() {
  at("key").value = sessionStorage.getItem("specrej-key") ?? "";
  at("key-option").hidden = !at("key").value;
}

// Past runs

async function listRuns() {
  try {
    showRuns(await keptRuns(), { open, save, forget: (one) => forget(one.created).then(listRuns) });
  } catch {
    at("runs-note").textContent = "This browser keeps no runs here (a private window?). A run can be saved as a file.";
  }
}

function open(past) {
  if (stopping) return;
  player.stop();
  run = past;
  plainTrouble = "";
  at("trouble").textContent = "";
  chart.clear();
  fillRequest(run.request);
  showReplay();
  showMoment(run.events.at(-1).at);
  at("race-title").scrollIntoView();
}

async function openFile(file) {
  try {
    open(await fromFile(file));
  } catch (error) {
    at("trouble").textContent = error.message;
  }
}

// What the user does

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
at("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});
at("form").addEventListener("input", sayOptions);
at("key").addEventListener("input", () => sessionStorage.setItem("specrej-key", at("key").value));
at("stop").addEventListener("click", () => stopping?.abort());
at("save").addEventListener("click", () => save(run));
at("file").addEventListener("change", () => {
  openFile(at("file").files[0]);
  at("file").value = ""; // the same file can be chosen again
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) openFile(event.dataTransfer.files[0]);
});

recallKey();
sayOptions();
listRuns();
try {
  served = await meetServer();
  fillDefaults(served.specrej.defaults);
} catch (error) {
  complain(error);
}
