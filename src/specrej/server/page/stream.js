// Asks the server, and makes events of what it sends. Knows no page.
//
//   for await (const event of race(request, key, signal)) ...      // {kind: "started", ...}, ... {kind: "ended", ...}
//   const event = await plainSample(request, key, signal);         // {kind: "plain", ...}

import { bestOf } from "./race.js";
import { plural } from "./words.js";

/** What went wrong, in words; `needsKey` where the server wants to know who asks. */
export class Trouble extends Error {
  constructor(words, needsKey = false) {
    super(words);
    this.needsKey = needsKey;
  }
}

/** The model that the server serves: {id, specrej: {reward, defaults}}. */
export async function model(key) {
  const answer = await send("v1/models", { headers: headers(key) });
  return (await answer.json()).data[0];
}

/** The events of a race. Throws Trouble, or an AbortError where the signal stopped it. */
export async function* race(request, key, signal) {
  const own = { ...request.specrej, progress: true, return: ["rewards", "decisions", "candidates"] };
  const answer = await post({ ...request, stream: true, specrej: own }, key, signal);
  let isWhole = false;
  for await (const data of payloads(answer.body, signal)) {
    if (data === "[DONE]") isWhole = true;
    else yield* eventsOf(parsed(data));
  }
  if (!isWhole) throw lost();
}

/** What the model says without selection. */
export async function plainSample(request, key, signal) {
  const answer = await post({ ...request, specrej: { algorithm: "best_of_n", n: 1 } }, key, signal);
  const body = await answer.json();
  return {
    kind: "plain",
    text: body.choices[0].message.content,
    reward: body.specrej.rewards[0],
    num_tokens: body.usage.completion_tokens,
  };
}

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

function post(body, key, signal) {
  const sent = { "Content-Type": "application/json", ...headers(key) };
  return send("v1/chat/completions", { method: "POST", headers: sent, body: JSON.stringify(body), signal });
}

async function send(path, options) {
  const answer = await fetch(path, options).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server cannot be reached. Is “specrej serve” still running?");
  });
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const body = await answer.json().catch(() => null);
  const message = sentence(body?.error?.message ?? `status ${answer.status}`);
  const wait = Number(answer.headers.get("Retry-After"));
  const again = wait > 0 ? ` Try again in ${plural(wait, "second")}.` : " Try again in a moment.";
  switch (answer.status) {
    case 401:
      return new Trouble("This server asks for an API key. Enter it above, and press Run.", true);
    case 429:
      return new Trouble(`The server is busy, its queue is full.${again}`);
    case 503:
      return new Trouble(`The server takes no requests now: ${message}`);
    case 504:
      return new Trouble(`No answer was finished in time: ${message}`);
    default:
      return new Trouble(`The server ${answer.status < 500 ? "cannot do this" : "failed"}: ${message}`);
  }
}

const sentence = (message) => (/[.!?]$/.test(message) ? message : `${message}.`);

const lost = () => new Trouble("The connection was lost in the middle of the race. What had come by then is shown.");

/** The data of server-sent events, one text each; comments and other fields are left out. */
async function* payloads(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  while (true) {
    const { done, value } = await reader.read().catch((error) => {
      throw signal.aborted ? error : lost();
    });
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.map((one) => one.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new Trouble("The server sent something that is no JSON: is there another program between?");
  }
}

function* eventsOf(chunk) {
  if (chunk.error) throw new Trouble(`The race ended with an error: ${sentence(String(chunk.error.message))}`);
  if (chunk.object === "specrej.progress") yield chunk.progress;
  const delta = chunk.choices?.[0]?.delta?.content;
  if (delta) yield { kind: "text", delta };
  if (chunk.specrej) yield ended(chunk.specrej);
}

function ended(own) {
  return {
    kind: "ended",
    winner: bestOf(own.candidates),
    is_late: own.is_late === true,
    generated_tokens: own.generated_tokens,
    candidates: own.candidates.map((one) => ({
      index: one.index,
      state: one.state,
      num_tokens: one.token_ids.length,
      reward: one.reward,
      text: one.text,
      finish_reason: one.finish_reason,
    })),
  };
}
