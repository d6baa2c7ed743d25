// The page: the address says which run is open, its stream brings the events, the view shows them.
//
//   /            the form
//   /?run=<id>   that run, from its first event on, here or in any other browser

import { cancelRun, getRun } from "./api.js";
import { RunForm } from "./form.js";
import { Recents } from "./recents.js";
import { applyEvents, dropFrom, emptyRun, isTerminal } from "./run_state.js";
import { RunStream } from "./stream.js";
import { $, announce, RunView, showConnection, stageTitle } from "./view.js";

const TICK_MS = 1000;
const HIDDEN_RENDER_MS = 250; // a hidden page has no animation frames
const ASLEEP_MS = 60_000; // a page hidden for longer may hold a dead connection
const COPIED_MS = 1500;
const PROMPT_TITLE_MAX = 60;

const view = new RunView();
const recents = new Recents((runId) => go(runId));
const form = new RunForm((created, body) => {
  go(created.id, { isNew: true, prompt: body.user_prompt });
  recents.refresh();
});

let open = null; // the OpenRun of the address, if it names one

// --- one open run ------------------------------------------------------------

/** A run that the page shows: takes its events and renders them, many at once where many come. */
class OpenRun {
  #run = emptyRun();
  #arrived = []; // events that are not in #run yet
  #isScheduled = false;
  #connection = "";
  #prompt = "";

  constructor(runId, { isNew = false, prompt = "" } = {}) {
    this.id = runId;
    this.#prompt = prompt;
    view.reset();
    view.describe({ prompt });
    if (isNew) view.follow();
    this.stream = new RunStream(runId, {
      onEvent: (event) => this.#take(event),
      onDrop: (sequence) => this.#drop(sequence),
      onConnection: (state, losses) => this.#showConnection(state, losses),
      probe: () => this.#probe(),
    }, { isNew });
    this.stream.open();
    this.#describe(isNew);
  }

  get prompt() {
    return this.#prompt;
  }

  close() {
    this.stream.close();
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
    this.#announceChange(before);
    showTitle(this.#run, this.#prompt);
    if (isTerminal(this.#run) && !isTerminal(before)) this.#ended();
  }

  #drop(sequence) {
    this.#run = dropFrom(applyEvents(this.#run, this.#arrived), sequence);
    this.#arrived = [];
    const text = "Part of this run’s log was lost or is no longer kept; this page shows what the log holds now.";
    view.showLost(text);
    view.render(this.#run);
    announce(text);
  }

  #ended() {
    resetCancel();
    recents.refresh();
  }

  #showConnection(state, losses) {
    if (open !== this && open !== null) return;
    showConnection(state, losses);
    if (state === "reconnecting" && losses === 1) announce("Connection lost, reconnecting.");
    if (state === "live" && this.#connection === "reconnecting") announce("Connected again.");
    this.#connection = state;
  }

  /** For those who listen: what begins and what ends, never the text as it streams. */
  #announceChange(before) {
    const { status, stages } = this.#run;
    if (status !== before.status && isTerminal(this.#run)) announce(`The run has ended: ${status}.`);
    else if (stages.length > before.stages.length) announce(`${stageTitle(stages.at(-1))} has begun.`);
  }

  /** What the log does not say. The page works without it, too. */
  async #describe(isNew) {
    try {
      const record = await getRun(this.id);
      if (open !== this) return;
      this.#prompt ||= promptOf(record);
      view.describe({ prompt: this.#prompt, createdAt: dateOf(record.created_at) });
      if (!isNew && !isTerminal(record) && !isTerminal(this.#run)) view.follow();
    } catch (problem) {
      if (isUnknown(problem)) this.#showUnknown();
    }
  }

  async #probe() {
    try {
      await getRun(this.id);
      return "known";
    } catch (problem) {
      if (!isUnknown(problem)) return "away";
      this.#showUnknown();
      return "unknown";
    }
  }

  #showUnknown() {
    if (open !== this) return;
    this.close();
    showConnection("ended");
    $("unknown-id").textContent = this.id;
    show("unknown");
    document.title = "Unknown run · Stagebus";
  }
}

function isUnknown(problem) {
  // A proxy's 404 on the way to a gateway that restarts says nothing of the run.
  return problem.status === 404 && problem.code === "run_not_found";
}

function promptOf(record) {
  const { prompt, request = {} } = record;
  const asked = request.messages?.findLast?.((message) => message.role === "user")?.content;
  return [prompt, request.user_prompt, asked].find((text) => typeof text === "string" && text) ?? "";
}

function dateOf(text) {
  const date = new Date(text ?? NaN);
  return Number.isNaN(date.getTime()) ? null : date;
}

// --- the address -------------------------------------------------------------

function go(runId, options) {
  const address = runId ? `/?run=${encodeURIComponent(runId)}` : "/";
  if (address !== location.pathname + location.search) history.pushState(null, "", address);
  showAddress(options);
  (runId ? $("run-prompt") : $("prompt")).focus({ preventScroll: true });
}

/** Open what the address names. */
function showAddress(options) {
  const runId = new URLSearchParams(location.search).get("run");
  open?.close();
  open = null;
  resetCancel();
  scrollTo({ top: 0, behavior: "instant" });
  if (runId) {
    show("run");
    open = new OpenRun(runId, options);
    showTitle(emptyRun(), options?.prompt ?? "");
  } else {
    show("home");
    view.reset();
    showConnection("idle");
    document.title = "Stagebus";
  }
  recents.mark(runId);
}

function show(section) {
  for (const id of ["home", "run", "unknown"]) $(id).hidden = id !== section;
}

function showTitle({ status }, prompt) {
  const mark = { succeeded: "✓ ", failed: "✗ ", cancelled: "✗ ", queued: "… ", running: "… " }[status] ?? "";
  const short = prompt.length > PROMPT_TITLE_MAX ? `${prompt.slice(0, PROMPT_TITLE_MAX)}…` : prompt;
  document.title = `${mark}${short || "Run"} · Stagebus`;
}

// --- buttons -----------------------------------------------------------------

async function cancel() {
  const run = open;
  if (!run || $("cancel").getAttribute("aria-disabled") === "true") return;
  setCancelBusy(true);
  $("action-error").hidden = true;
  try {
    await cancelRun(run.id); // the run's own `cancel` event says that it is so
  } catch (problem) {
    if (open !== run) return;
    setCancelBusy(false);
    $("action-error").textContent = `Not cancelled: ${problem.message}`;
    $("action-error").hidden = false;
  }
}

function setCancelBusy(isBusy) {
  $("cancel").setAttribute("aria-disabled", isBusy);
  $("cancel").querySelector("span").textContent = isBusy ? "Cancelling…" : "Cancel";
}

function resetCancel() {
  setCancelBusy(false);
}

async function copy(button, text) {
  const label = button.querySelector("span");
  const before = label.textContent;
  try {
    await navigator.clipboard.writeText(text);
    label.textContent = "Copied";
  } catch {
    label.textContent = "Not allowed";
  }
  setTimeout(() => (label.textContent = before), COPIED_MS);
}

$("cancel").addEventListener("click", cancel);
$("copy-link").addEventListener("click", () => copy($("copy-link"), location.href));
$("copy-answer").addEventListener("click", () => copy($("copy-answer"), $("answer").textContent));
$("again").addEventListener("click", () => {
  const prompt = open?.prompt ?? "";
  go(null);
  form.fill(prompt);
});
for (const link of document.querySelectorAll("[data-home]")) {
  link.addEventListener("click", (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    go(null);
  });
}

// --- the browser -------------------------------------------------------------

let hiddenAt = null;
document.addEventListener("visibilitychange", () => {
  const now = Date.now();
  if (!document.hidden) {
    open?.flush();
    recents.refresh();
    if (hiddenAt !== null && now - hiddenAt > ASLEEP_MS) open?.stream.reconnect();
  }
  hiddenAt = document.hidden ? now : null;
});
addEventListener("online", () => open?.stream.reconnect());
addEventListener("popstate", () => showAddress());
history.scrollRestoration = "manual";
setInterval(() => view.tick(performance.now()), TICK_MS);

showAddress();
recents.refresh();
if (!open) $("prompt").focus();
