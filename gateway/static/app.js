// The page: the address names the open run, its stream delivers the events, the view shows them.
//
//   /            the form
//   /?run=<id>   that run from its first event, in any browser
//   /?view=ops   the system

import { client, isGuest, isSignInNeeded, runAddress } from "./api.js";
import { $, announce, isPlainClick, setBusy } from "./dom.js";
import { initForm } from "./form.js";
import { showOps } from "./ops.js";
import { initRunsList, markRun, noteStatus, refreshRuns } from "./runs_list.js";
import { initShare } from "./share.js";
import { initSignIn, showSignIn } from "./sign_in.js";
import { emptyRun, isTerminal } from "./vendor/stagebus-client.js";
import { RunView, showConnection, stageTitle, waitingText } from "./view.js";

const TICK_MS = 1000;
const LOST_TEXT = "Part of this run’s log was lost or deleted; the rest is shown.";

const view = new RunView(isGuest ? null : {
  decide: (call, decision) => open.run.decide(call.id, decision),
  giveResult: (call, result) => open.run.giveResult(call.id, { ...result, ref: call.deferred.ref }),
});
let open = null; // the OpenRun of the address, if it names a run

/** The run that the page shows. */
class OpenRun {
  #shown = emptyRun();

  constructor(run, { isNew = false, prompt = "" } = {}) {
    this.id = run.id;
    this.run = run;
    this.prompt = prompt;
    if (isNew) view.follow();
    this.watch = run.watch();
    this.watch.subscribe(() => this.#show());
  }

  #show() {
    const before = this.#shown;
    const state = this.watch.state;
    this.#shown = state;
    if (state.events !== before.events) view.render(state);
    if (state.connection !== before.connection) this.#showConnection(before.connection.state);
    if (this.watch.error) this.#giveUp(this.watch.error);
    this.#tell(before);
  }

  /** Tells screen readers and the tab's title what begins and what ends, but not the streaming text. */
  #tell(before) {
    const { status, stages, isLossy } = this.#shown;
    if (status !== before.status) {
      showTitle(status, this.prompt);
      noteStatus(status);
      if (status === "parked") announce("The run waits for you.");
      if (isTerminal(this.#shown)) announce(`The run has ended: ${status}.`);
    }
    const isNewStage = stages.length > before.stages.length && !isTerminal(this.#shown);
    if (isNewStage) announce(`${stageTitle(stages.at(-1))} has begun.`);
    if (isLossy && !before.isLossy) {
      $("lost").textContent = LOST_TEXT;
      announce(LOST_TEXT);
    }
  }

  #showConnection(before) {
    const { connection, status } = this.#shown;
    const { state, losses, waitingFor } = connection;
    showConnection(connection, status);
    view.showStatus(this.#shown);
    if (waitingFor) announce(`No news: ${waitingText(waitingFor, status)}.`);
    if (state === "reconnecting" && losses === 1) announce("Connection lost, reconnecting.");
    if (before === "reconnecting" && state !== "reconnecting" && state !== "ended") announce("Connected again.");
    if ((state === "live" || state === "replaying") && !this.prompt) this.#describe();
  }

  /** Shows the prompt, which the log does not contain. The page works without it, too. */
  async #describe() {
    const record = await this.run.get().catch(() => null);
    if (open !== this || !record) return;
    this.prompt = record.prompt;
    view.describe(record);
    showTitle(this.#shown.status ?? record.status, this.prompt);
    if (!isTerminal(record) && !isTerminal(this.#shown)) view.follow();
  }

  #giveUp(error) {
    if (isSignInNeeded(error)) return showSignIn();
    if (error.code !== "run_not_found") {
      $("lost").textContent = error.message;
      return;
    }
    $("unknown-id").textContent = this.id;
    showSection("unknown");
  }
}

function showTitle(status, prompt) {
  const mark = { succeeded: "✓", failed: "✗", cancelled: "✗" }[status] ?? "…";
  document.title = `${mark} ${prompt.slice(0, 60) || "Run"} · Stagebus`;
}

// --- the address ---

/** Goes to an address of the page: a path with its query. */
function go(address, options) {
  if (address !== location.pathname + location.search) history.pushState(null, "", address);
  showAddress(options);
}

function showAddress(options) {
  const query = new URLSearchParams(location.search);
  const runId = query.get("run");
  const isOps = !runId && query.get("view") === "ops";
  open?.watch.close();
  open = null;
  view.reset(options?.prompt);
  scrollTo({ top: 0, behavior: "instant" });
  markRun(runId);
  showOps(isOps);
  showSection(runId ? "run" : isOps ? "ops" : "home");
  if (runId) {
    showTitle(null, options?.prompt ?? "");
    showConnection({ state: "connecting" });
    open = new OpenRun(options?.run ?? client.runs.resume(runId), options);
    $("run-prompt").focus({ preventScroll: true });
  } else {
    document.title = isOps ? "System · Stagebus" : "Stagebus";
    showConnection({ state: "idle" });
    $(isOps ? "main" : "prompt").focus();
  }
}

function showSection(shownId) {
  for (const id of ["home", "run", "ops", "unknown"]) $(id).hidden = id !== shownId;
}

// A guest sees one run: a link to the form would lead to the sign-in.
document.body.classList.toggle("guest", isGuest);
if (isGuest) document.querySelector(".brand").removeAttribute("href");
for (const link of document.querySelectorAll("[data-home][href], [data-ops]")) {
  link.addEventListener("click", (event) => {
    if (!isPlainClick(event)) return;
    event.preventDefault();
    go(link.pathname + link.search);
  });
}
addEventListener("popstate", () => showAddress());
history.scrollRestoration = "manual";

// --- buttons ---

$("cancel").addEventListener("click", async () => {
  const { id, run } = open;
  if ($("cancel").ariaDisabled === "true") return;
  setBusy($("cancel"), true);
  $("cancel-error").textContent = "";
  try {
    await run.cancel(); // the run's `cancel` event tells when it has happened
  } catch (problem) {
    if (open?.id !== id) return;
    setBusy($("cancel"), false);
    $("cancel-error").textContent = `Not cancelled: ${problem.message}`;
  }
});

// --- the browser ---

setInterval(() => view.tick(performance.now()), TICK_MS);

initSignIn();
initShare(() => open?.run);
initRunsList((runId) => go(runAddress(runId)));
initForm((run, body) => {
  go(runAddress(run.id), { run, isNew: true, prompt: body.user_prompt });
  refreshRuns();
});
showAddress();
refreshRuns();
