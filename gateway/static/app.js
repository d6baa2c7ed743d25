// The page: the address says which run is open, its stream brings the events, the view shows them.
//
//   /            the form
//   /?run=<id>   that run, from its first event on, here or in any other browser

import { cancelRun, getRun } from "./api.js";
import { initForm } from "./form.js";
import { initRecents, markRecent, noteStatus, refreshRecents } from "./recents.js";
import { applyEvents, dropFrom, emptyRun, isTerminal } from "./run_state.js";
import { RunStream } from "./stream.js";
import { $, announce, RunView, setBusy, showConnection, stageTitle } from "./view.js";

const TICK_MS = 1000;
const HIDDEN_RENDER_MS = 250; // a hidden page has no animation frames
const ASLEEP_MS = 60_000; // a page hidden for longer may hold a dead connection
const LOST_TEXT = "Part of this run’s log was lost or is no longer kept; this is what it holds now.";

const view = new RunView();
let open = null; // the OpenRun of the address, if it names one

/** The run that the page shows: takes its events and renders them, many at once where many come. */
class OpenRun {
  #run = emptyRun();
  #arrived = []; // events that are not in #run yet
  #isScheduled = false;
  #connection = "";

  constructor(runId, { isNew = false, prompt = "" } = {}) {
    this.id = runId;
    this.prompt = prompt;
    if (isNew) view.follow();
    const listener = {
      onEvent: (event) => this.#take(event),
      onDrop: (sequence) => this.#drop(sequence),
      onConnection: (state, losses) => this.#showConnection(state, losses),
      probe: () => this.#probe(),
    };
    this.stream = new RunStream(runId, listener, { isNew });
    this.stream.open();
  }

  #take(event) {
    this.#arrived.push(event);
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    if (document.hidden) setTimeout(() => this.flush(), HIDDEN_RENDER_MS);
    else requestAnimationFrame(() => this.flush());
  }

  /** Apply and show what has arrived. */
  flush() {
    this.#isScheduled = false;
    if (open !== this || this.#arrived.length === 0) return;
    const before = this.#run;
    this.#run = applyEvents(before, this.#arrived);
    this.#arrived = [];
    view.render(this.#run);
    this.#tell(before);
  }

  #drop(sequence) {
    this.#run = dropFrom(applyEvents(this.#run, this.#arrived), sequence);
    this.#arrived = [];
    view.render(this.#run);
    $("lost").textContent = LOST_TEXT;
    announce(LOST_TEXT);
  }

  /** For those who listen, and for the tab's title: what begins and what ends, never the text as it streams. */
  #tell(before) {
    const { status, stages } = this.#run;
    if (status !== before.status) {
      showTitle(status, this.prompt);
      noteStatus(status);
      if (isTerminal(this.#run)) announce(`The run has ended: ${status}.`);
    }
    const isNewStage = stages.length > before.stages.length && !isTerminal(this.#run);
    if (isNewStage) announce(`${stageTitle(stages.at(-1))} has begun.`);
  }

  #showConnection(state, losses) {
    showConnection(state, losses);
    if (state === "reconnecting" && losses === 1) announce("Connection lost, reconnecting.");
    if (state === "live" && this.#connection === "reconnecting") announce("Connected again.");
    if (state === "live" && !this.prompt) this.#describe();
    this.#connection = state;
  }

  /** What the log does not say: the prompt. The page works without it, too. */
  async #describe() {
    const record = await getRun(this.id).catch(() => null);
    if (open !== this || !record) return;
    this.prompt = record.prompt;
    view.describe(record);
    showTitle(this.#run.status ?? record.status, this.prompt);
    if (!isTerminal(record) && !isTerminal(this.#run)) view.follow();
  }

  async #probe() {
    try {
      await getRun(this.id);
      return "known";
    } catch ({ code }) {
      // By its code: a proxy's 404 for a gateway that restarts says nothing of the run.
      if (code !== "run_not_found") return "away";
      $("unknown-id").textContent = this.id;
      if (open === this) showSection("unknown");
      return "unknown";
    }
  }
}

function showTitle(status, prompt) {
  const mark = { succeeded: "✓", failed: "✗", cancelled: "✗" }[status] ?? "…";
  document.title = `${mark} ${prompt.slice(0, 60) || "Run"} · Stagebus`;
}

// --- the address ---

/** Go to a run, or to the form. */
function go(runId, options) {
  const address = runId ? `/?run=${encodeURIComponent(runId)}` : "/";
  if (address !== location.pathname + location.search) history.pushState(null, "", address);
  showAddress(options);
}

function showAddress(options) {
  const runId = new URLSearchParams(location.search).get("run");
  open?.stream.close();
  open = null;
  view.reset(options?.prompt);
  scrollTo({ top: 0, behavior: "instant" });
  markRecent(runId);
  showSection(runId ? "run" : "home");
  if (runId) {
    showTitle(null, options?.prompt ?? "");
    open = new OpenRun(runId, options);
    $("run-prompt").focus({ preventScroll: true });
  } else {
    document.title = "Stagebus";
    showConnection("idle");
    $("prompt").focus();
  }
}

function showSection(shownId) {
  for (const id of ["home", "run", "unknown"]) $(id).hidden = id !== shownId;
}

for (const link of document.querySelectorAll("[data-home]")) {
  link.addEventListener("click", (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    go(null);
  });
}
addEventListener("popstate", () => showAddress());
history.scrollRestoration = "manual";

// --- buttons ---

$("cancel").addEventListener("click", async () => {
  const { id } = open;
  if ($("cancel").ariaDisabled === "true") return;
  setBusy($("cancel"), true);
  $("cancel-error").textContent = "";
  try {
    await cancelRun(id); // the run's own `cancel` event says when it is so
  } catch (problem) {
    if (open?.id !== id) return;
    setBusy($("cancel"), false);
    $("cancel-error").textContent = `Not cancelled: ${problem.message}`;
  }
});

// --- the browser ---

let hiddenAt = Infinity;
document.addEventListener("visibilitychange", () => {
  const now = Date.now();
  open?.flush(); // a frame that was asked for may not come
  if (!document.hidden) {
    refreshRecents();
    if (now - hiddenAt > ASLEEP_MS) open?.stream.reconnect();
  }
  hiddenAt = document.hidden ? now : Infinity;
});
addEventListener("online", () => open?.stream.reconnect());
setInterval(() => view.tick(performance.now()), TICK_MS);

initRecents((runId) => go(runId));
initForm((created, body) => {
  go(created.id, { isNew: true, prompt: body.user_prompt });
  refreshRecents();
});
showAddress();
refreshRecents();
