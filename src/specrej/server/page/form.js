// What the form asks for, and what it is filled with.

import { share } from "./words.js";

const at = (id) => document.getElementById(id);

/** The body of the request that the form describes. */
export function asked(model) {
  return {
    model,
    messages: [{ role: "user", content: at("prompt").value }],
    max_tokens: at("max-tokens").valueAsNumber,
    temperature: at("temperature").valueAsNumber,
    seed: at("seed").valueAsNumber,
    specrej: {
      algorithm: "speculative_rejection",
      n: at("n").value === "" ? "auto" : at("n").valueAsNumber,
      alpha: at("alpha").valueAsNumber,
      decide: at("decide").value === "every" ? `every:${at("every").value}` : at("decide").value,
    },
  };
}

/** Fills the options with the server's defaults; the seed is the page's own, for both of its requests. */
export function fillDefaults(defaults) {
  fill({ ...defaults, max_tokens: defaults.max_new_tokens, seed: at("seed").value });
  const { keep, policy } = defaults;
  if (keep === null && policy === null) return;
  at("alpha").disabled = true;
  const how = policy === null ? `keeps the ${keep} best` : `decides by ${policy}`;
  at("alpha-said").textContent = `the server ${how}`;
  at("decide").disabled = policy !== null;
}

/** Fills the form with what a run was asked. */
export function fillRequest(request) {
  at("prompt").value = request.messages.at(-1).content;
  fill({ ...request, ...request.specrej });
}

function fill({ max_tokens: maxTokens, temperature, seed, n, alpha, decide }) {
  at("max-tokens").value = maxTokens;
  at("temperature").value = temperature;
  at("seed").value = seed;
  at("n").value = n === "auto" ? "" : n;
  at("alpha").value = alpha;
  const [kind, tokens] = decide.split(":");
  if (kind === "every") at("every").value = tokens;
  const value = kind === "every" ? kind : decide;
  if (![...at("decide").options].some((one) => one.value === value)) at("decide").add(new Option(decide, value));
  at("decide").value = value;
  sayOptions();
}

/** Says what the slider means, and shows K where it has a meaning. */
export function sayOptions() {
  if (!at("alpha").disabled) at("alpha-said").textContent = share(at("alpha").valueAsNumber);
  at("every-option").hidden = at("decide").value !== "every";
  at("every").disabled = at("every-option").hidden;
}
