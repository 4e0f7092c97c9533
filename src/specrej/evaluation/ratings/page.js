
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const { sheet, scale: [low, high], items } = JSON.parse(at("sheet").textContent);
  const NAMES = { system: "Instruction", user: "Question", assistant: "Answer" };
  const scores = new Map();
  let place = 0;

  // What the browser keeps: an entry an item, so that two windows do not overwrite each other.
  const entry = (name) => `specrej ratings ${sheet} ${name}`;
  const keep = (name, value) => {
    try {
      if (value === undefined) localStorage.removeItem(entry(name));
      else localStorage.setItem(entry(name), String(value));
    } catch {
      at("trouble").textContent = "This browser keeps nothing: save the file before you close the page.";
    }
  };
  const kept = (name) => {
    try {
      return localStorage.getItem(entry(name));
    } catch {
      return null;
    }
  };
  const load = () => {
    for (const { item } of items) {
      const score = kept(item);
      if (score !== null) scores.set(item, Number(score));
      else scores.delete(item);
    }
  };

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    made.className = className;
    made.textContent = text;
    return made;
  };
  const passage = (name, text, className) => {
    const made = element("div", className, text);
    made.dir = "auto";
    at("conversation").append(element("h3", "", name), made);
  };

  const mark = () => {
    const score = scores.get(items[place].item);
    for (const button of at("scores").children) {
      button.setAttribute("aria-pressed", String(Number(button.textContent) === score));
    }
    at("bar").value = scores.size;
    const done = scores.size === items.length ? ". Save the file, and send it back." : "";
    at("progress").textContent = `${scores.size} of ${items.length} rated${done}`;
  };
  const show = (next) => {
    place = Math.min(Math.max(next, 0), items.length - 1);
    const { messages, answer } = items[place];
    at("place").textContent = `Item ${place + 1} of ${items.length}`;
    at("conversation").replaceChildren();
    for (const { role, content } of messages) {
      passage(NAMES[role] ?? role, content, role === "assistant" ? "text answer" : "text");
    }
    passage("Answer", answer, "text answer");
    at("previous").disabled = place === 0;
    at("next").disabled = place === items.length - 1;
    mark();
    scrollTo(0, 0);
    at("place").focus({ preventScroll: true });
  };
  const rate = (score) => {
    const { item } = items[place];
    if (score === undefined) scores.delete(item);
    else scores.set(item, score);
    keep(item, score);
    mark();
  };
  const step = (by, first) => {
    const score = scores.get(items[place].item);
    rate(score === undefined ? first : Math.min(Math.max(score + by, low), high));
  };
  const nextOpen = () => {
    const order = items.map((_, number) => (place + 1 + number) % items.length);
    const open = order.find((number) => !scores.has(items[number].item));
    if (open !== undefined) show(open);
  };

  const save = () => {
    const rater = at("rater").value.trim();
    at("trouble").textContent = rater ? "" : "Give your name or initials first.";
    if (!rater) {
      at("rater").focus();
      return;
    }
    const rated = items.filter(({ item }) => scores.has(item));
    const lines = rated.map(({ item }) => JSON.stringify({ sheet, rater, item, score: scores.get(item) }));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(lines.map((line) => `${line}\n`), { type: "application/jsonl" }));
    link.download = `ratings-${rater.replace(/[^\p{L}\p{N}]+/gu, "-")}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };

  const digit = (key) => {
    const score = Number(key);
    if (low <= score && score <= high) rate(score);
    else if (score === 0 && low <= 10 && 10 <= high) rate(10);
  };
  const KEYS = {
    ArrowLeft: () => show(place - 1),
    ArrowRight: () => show(place + 1),
    Enter: nextOpen,
    Backspace: () => rate(undefined),
    "+": () => step(1, low),
    "-": () => step(-1, high),
  };
  document.addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.ctrlKey || event.altKey || event.metaKey || target.matches("input")) return;
    if (key === "Enter" && target.matches("button")) return;
    const act = /^[0-9]$/.test(key) ? () => digit(key) : KEYS[key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  for (let score = low; score <= high; score += 1) {
    const button = element("button", "", String(score));
    button.type = "button";
    button.addEventListener("click", (event) => {
      rate(score);
      if (event.detail > 0) button.blur(); // a mouse: Enter means the next item again
    });
    at("scores").append(button);
  }
  at("previous").addEventListener("click", () => show(place - 1));
  at("next").addEventListener("click", () => show(place + 1));
  at("open").addEventListener("click", nextOpen);
  at("save").addEventListener("click", save);
  at("rater").addEventListener("input", () => keep("rater", at("rater").value));
  addEventListener("storage", () => { load(); mark(); });

  at("bar").max = items.length;
  at("task").textContent = `Give each answer a score from ${low} (worst) to ${high} (best).`
    + " Judge each by itself. Where there are several answers, score all of them together.";
  const tenth = low > 0 && high >= 10 ? ", 0 for 10" : "";
  at("keys").textContent = `Keys: the digits are scores${tenth};`;
  at("rater").value = kept("rater") ?? "";
  load();
  const first = items.findIndex(({ item }) => !scores.has(item));
  show(first < 0 ? 0 : first);
})();
