// Plays a stretch of time again, at a pace of the user's choice, or shows one moment of it.
//
//   const player = makePlayer((milliseconds) => ...);
//   player.load(durationMs);

const at = (id) => document.getElementById(id);

export function makePlayer(show) {
  let durationMs = 0;
  let frame = 0;
  let lastMs = 0;

  function load(milliseconds) {
    durationMs = milliseconds;
    seek(durationMs);
  }

  function seek(milliseconds) {
    at("moment").value = durationMs ? milliseconds / durationMs : 1;
    at("moment").setAttribute("aria-valuetext", `${(milliseconds / 1000).toFixed(1)} seconds`);
  }

  function play() {
    const isAtEnd = at("moment").valueAsNumber >= 1;
    if (isAtEnd) seek(0);
    lastMs = performance.now();
    frame = requestAnimationFrame(step);
    at("play").textContent = "Pause";
  }

  function step(nowMs) {
    const passedMs = Math.max(nowMs - lastMs, 0) * rate();
    lastMs = nowMs;
    const momentMs = Math.min(at("moment").valueAsNumber * durationMs + passedMs, durationMs);
    seek(momentMs);
    show(momentMs);
    if (momentMs < durationMs) frame = requestAnimationFrame(step);
    else stop();
  }

  /** Milliseconds of the race to a millisecond here: "10" is in so many seconds, "4x" so many times slower. */
  function rate() {
    const pace = at("pace").value;
    return pace.endsWith("x") ? 1 / parseFloat(pace) : durationMs / (1000 * parseFloat(pace));
  }

  function stop() {
    cancelAnimationFrame(frame);
    frame = 0;
    at("play").textContent = "Replay";
  }

  at("play").addEventListener("click", () => (frame ? stop() : play()));
  at("moment").addEventListener("input", () => {
    stop();
    show(at("moment").valueAsNumber * durationMs);
  });
  return { load, stop };
}
