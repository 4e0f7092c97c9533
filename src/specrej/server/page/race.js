// A race as the events tell it: who is where, who was rejected, who leads. Knows no page and no server.
//
//   const race = newRace();
//   for (const event of events) advance(race, event);

export function newRace() {
  return {
    phase: "waiting",
    numAhead: 0,
    total: 0,
    memoryBytes: 0,
    kvBytes: 0,
    generated: 0,
    length: 0, // tokens of those that are live
    numLive: 0,
    candidates: new Map(), // index: {index, state, hasEnded, isOut, numTokens, reward, text, points}
    decisions: [],
    leader: null,
    text: "", // of the leader, so far
    answer: "", // what can no longer be beaten, so far
    winner: null,
    isLate: false,
    plain: null,
  };
}

/** Takes one event into the race. */
export function advance(race, event) {
  TAKES[event.kind]?.(race, event);
}

const TAKES = {
  queued(race, event) {
    race.phase = "queued";
    race.numAhead = event.num_ahead;
  },

  started(race, event) {
    race.phase = "running";
    race.total = event.num_candidates;
    race.numLive = event.num_candidates;
    race.memoryBytes = event.memory_bytes;
  },

  step(race, event) {
    race.length = event.num_tokens;
    race.numLive = event.num_live;
    race.generated = event.generated_tokens;
    race.kvBytes = event.kv_bytes;
    for (const index of event.ended) {
      Object.assign(known(race, index), { state: "complete", numTokens: event.num_tokens, hasEnded: true });
    }
  },

  decision(race, event) {
    for (const scored of event.candidates) {
      const candidate = known(race, scored.index);
      candidate.state = scored.state;
      candidate.hasEnded ||= scored.state === "complete";
      candidate.isOut ||= scored.state === "rejected" && ["filter", "lost"].includes(event.cause);
      candidate.numTokens = scored.num_tokens;
      if (scored.reward !== null) {
        candidate.reward = scored.reward;
        candidate.points.push({ x: scored.num_tokens, y: scored.reward });
      }
    }
    race.total = Math.max(race.total, race.candidates.size);
    race.length = event.num_tokens;
    race.numLive = live(race).length;
    race.kvBytes = event.kv_bytes_after;
    race.leader = event.best;
    race.text = race.answer || event.text;
    race.decisions.push({
      cause: event.cause,
      numTokens: event.num_tokens,
      cut: event.cut,
      numScored: event.candidates.length,
      numRejected: event.candidates.filter((one) => one.state === "rejected").length,
      numLeft: race.total - rejected(race).length,
      kvBefore: event.kv_bytes,
      kvAfter: event.kv_bytes_after,
    });
  },

  text(race, event) {
    race.answer += event.delta;
    race.text = race.answer;
  },

  ended(race, event) {
    race.phase = "ended";
    race.isLate = event.is_late;
    race.generated = event.generated_tokens;
    race.kvBytes = 0;
    for (const one of event.candidates) {
      const { index, state, num_tokens: numTokens, reward, text } = one;
      Object.assign(known(race, index), { state, numTokens, reward, text, hasEnded: ![null, "lost"].includes(one.finish_reason) });
    }
    race.total = Math.max(race.total, race.candidates.size);
    race.winner = race.leader = event.winner;
    race.text = race.candidates.get(event.winner)?.text ?? race.text;
  },

  plain(race, event) {
    race.plain = { numTokens: event.num_tokens, reward: event.reward, text: event.text };
  },
};

function known(race, index) {
  if (!race.candidates.has(index)) {
    const unscored = { index, state: "live", numTokens: 0, reward: null, text: "", hasEnded: false, isOut: false, points: [] };
    race.candidates.set(index, unscored);
  }
  return race.candidates.get(index);
}

const inState = (race, state) => [...race.candidates.values()].filter((one) => one.state === state);
export const live = (race) => inState(race, "live");
export const rejected = (race) => inState(race, "rejected");

/** Candidates on their way that no decision has scored: the first ones, or those of a later wave. */
export function numUnscored(race) {
  return race.phase === "running" && live(race).length === 0 ? race.numLive : 0;
}

/** How many were left, at first and after each decision that rejected somebody. */
export function countsOf(race) {
  return [race.total, ...race.decisions.filter((one) => one.numRejected).map((one) => one.numLeft)];
}

const byRank = (one, other) => (other.reward ?? -Infinity) - (one.reward ?? -Infinity) || one.index - other.index;

/** All candidates: those left before the rejected, those rejected late before the early, then by reward. */
export function ranked(race) {
  const fell = (one) => (one.state === "rejected" ? one.numTokens : Infinity);
  return [...race.candidates.values()].sort(
    (one, other) => (fell(one) === fell(other) ? byRank(one, other) : fell(other) - fell(one)),
  );
}

/** The one behind the winner: the second of the complete, else the best of those that came furthest. Never who was lost
 * or did not pass a filter. */
export function runnerUp(race) {
  return ranked(race).find((one) => one.index !== race.winner && one.state !== "live" && !one.isOut) ?? null;
}

/** The best complete candidate of a list as the server gives it; null where none is complete. */
export function bestOf(candidates) {
  const complete = candidates.filter((one) => one.state === "complete");
  return complete.length ? complete.sort(byRank)[0].index : null;
}

/** Tokens that Best-of-N with the same start would take. Whoever was stopped counts with the mean length of those that
 * came to their end and were longer; where there are none, with what it had. Null before anybody has ended. */
export function estimatedTokens(race) {
  const all = [...race.candidates.values()];
  const lengths = all.filter((one) => one.hasEnded).map((one) => one.numTokens);
  const whole = ({ hasEnded, numTokens }) => {
    const longer = hasEnded ? [] : lengths.filter((length) => length > numTokens);
    return longer.length ? sum(longer) / longer.length : numTokens;
  };
  return lengths.length ? sum(all.map(whole)) : null;
}

const sum = (numbers) => numbers.reduce((total, one) => total + one, 0);
