// The view of one run in the page. Everything that came from a model, a tool or a person is set as text, never as HTML.

import { count, duration, elapsed, pretty } from "./format.js";
import { answerStage, isTerminal } from "./run_state.js";

const STATUS_TEXT = {
  queued: "Queued", running: "Running", succeeded: "Succeeded", failed: "Failed", cancelled: "Cancelled",
};
const STAGE_TITLE = { extraction: "Extraction", tools: "Tools", synthesis: "Synthesis" };
const STAGE_PURPOSE = {
  extraction: "The model reads the prompt and picks its tools",
  tools: "The calls run side by side",
  synthesis: "The model writes from the tools’ results",
};
const STAGE_STATE = {
  running: "running", waiting: "waiting", restarted: "started over", done: "", failed: "failed", stopped: "stopped",
};
const CALL_STATE = { running: "running", done: "done", error: "error", stopped: "stopped" };
const CONNECTION_TEXT = {
  idle: "Idle", connecting: "Connecting", live: "Live", reconnecting: "Reconnecting", gap: "Reading anew", ended: "Ended",
};
// Reader and page agree that they are at the end of the text when this little is left below.
const END_SLACK_PX = 48;

export const $ = (id) => document.getElementById(id);

// --- the connection ----------------------------------------------------------

export function showConnection(state, losses = 0) {
  document.body.dataset.connection = state;
  $("connection-text").textContent = CONNECTION_TEXT[state] + (losses ? ` (${losses})` : "");
}

/** Say something to those who listen to the page instead of looking at it. */
export function announce(text) {
  $("announcer").textContent = text;
}

// --- a run -------------------------------------------------------------------

export class RunView {
  #stages = new Map(); // id -> { item, stage, calls: Map of call id -> { item, call } }
  #run = null;
  #facts = {};
  #isFollowing = false;
  #lastTop = 0;

  constructor() {
    addEventListener("scroll", () => this.#scrolled(), { passive: true });
    $("latest").addEventListener("click", () => this.follow());
  }

  /** An empty view, before anything of the run is known. */
  reset() {
    this.#stages.clear();
    this.#run = null;
    this.#facts = {};
    this.#isFollowing = false;
    $("stages").replaceChildren();
    setText($("answer"), "");
    for (const id of ["answer-section", "end", "usage", "about", "lost-note", "queued-note", "action-error", "latest"]) {
      $(id).hidden = true;
    }
    for (const id of ["run-status", "run-time", "run-model", "run-prompt"]) $(id).textContent = "";
    $("cancel").hidden = true;
    delete document.body.dataset.runStatus;
  }

  /** What only the run's record says: its prompt, and when it was made. */
  describe(facts) {
    this.#facts = { ...this.#facts, ...facts };
    $("run-prompt").textContent = this.#facts.prompt ?? "";
    if (this.#run) this.#showFacts(this.#run);
  }

  /** Keep the end of the text in sight, until the reader scrolls up. */
  follow() {
    this.#isFollowing = true;
    this.#scrollToEnd();
  }

  showLost(text) {
    $("lost-note").textContent = text;
    $("lost-note").hidden = false;
  }

  render(run) {
    const before = this.#run;
    this.#run = run;
    document.body.dataset.runStatus = run.status ?? "";
    this.#showFacts(run);
    const answer = answerStage(run);
    if (run.stages !== before?.stages) this.#showStages(run, answer);
    this.#showAnswer(run, answer);
    if (run.status !== before?.status) this.#showEnd(run);
    if (this.#isFollowing) this.#scrollToEnd();
    this.#showLatestButton();
  }

  /** Once a second: times of what still goes on. */
  tick(now) {
    if (!this.#run || isTerminal(this.#run)) return;
    if (this.#run.startedAt != null) setText($("run-time"), elapsed(now - this.#run.startedAt));
    for (const { item, stage, calls } of this.#stages.values()) {
      if (stage.state === "done") continue;
      if (stage.startedAt != null) setText(item.querySelector(".stop-time"), elapsed(now - stage.startedAt));
      for (const { item: card, call } of calls.values()) {
        const isTimed = call.state === "running" && call.startedAt != null;
        if (isTimed) setText(card.querySelector(".call-time"), elapsed(now - call.startedAt));
      }
    }
  }

  // --- facts ---

  #showFacts(run) {
    const isOver = isTerminal(run);
    setText($("run-status"), STATUS_TEXT[run.status] ?? "");
    setText($("run-model"), run.model);
    $("queued-note").hidden = run.status !== "queued";
    $("cancel").hidden = isOver || run.status === null;
    if (isOver) setText($("run-time"), run.durationMs == null ? "" : duration(run.durationMs));
    $("about").hidden = run.lastId === "";
    const attempts = run.attempts.map(({ attempt, worker }) => `${attempt} by ${worker}`).join(", ");
    showPairs($("about-list"), [
      ["Run", run.id],
      ["Created", this.#facts.createdAt?.toLocaleString() ?? ""],
      ["Attempts", attempts],
      ["Last event", run.lastId],
      ["Follow it", `curl -N ${location.origin}/runs/${run.id}/events -H 'Last-Event-ID: ${run.lastId}'`],
    ]);
  }

  #showEnd(run) {
    const texts = {
      failed: ["The run failed", run.error?.error ?? ""],
      cancelled: ["Cancelled", "What was written until then is above."],
    }[run.status];
    $("end").hidden = !texts;
    $("end").dataset.status = run.status ?? "";
    if (texts) [$("end-title").textContent, $("end-text").textContent] = texts;
    $("usage").hidden = !run.usage;
    if (!run.usage) return;
    const { prompt_tokens: prompt, completion_tokens: completion, total_tokens: total } = run.usage;
    showPairs($("usage"), [
      ["Tokens", total.toLocaleString("en")],
      ["in", prompt.toLocaleString("en")],
      ["out", completion.toLocaleString("en")],
    ]);
  }

  // --- stages ---

  #showStages(run, answer) {
    const ids = new Set(run.stages.map((stage) => stage.id));
    for (const [id, { item }] of this.#stages) {
      if (ids.has(id)) continue;
      item.remove();
      this.#stages.delete(id);
    }
    for (const stage of run.stages) this.#showStage(stage, stage.id === answer?.id);
  }

  #showStage(stage, isAnswer) {
    let shown = this.#stages.get(stage.id);
    if (!shown) {
      shown = { item: clone("stage-template"), stage: null, calls: new Map() };
      this.#stages.set(stage.id, shown);
      shown.item.dataset.stage = stage.id;
      shown.item.querySelector("h2").textContent = stageTitle(stage);
      shown.item.querySelector(".stop-purpose").textContent = STAGE_PURPOSE[stage.kind] ?? "";
      $("stages").append(shown.item);
    }
    if (shown.stage === stage && shown.isAnswer === isAnswer) return;
    const hasNotes = shown.stage?.notes.length !== stage.notes.length;
    shown.stage = stage;
    shown.isAnswer = isAnswer;
    const part = (name) => shown.item.querySelector(name);
    shown.item.dataset.state = stage.state;
    setText(part(".stop-state"), STAGE_STATE[stage.state] ?? stage.state);
    if (stage.state === "done") setText(part(".stop-time"), stage.durationMs == null ? "" : duration(stage.durationMs));
    if (hasNotes) showNotes(part(".notes"), stage.notes);
    showText(part(".reasoning"), part(".reasoning .text"), stage.reasoning);
    const text = isAnswer ? "" : stage.text + (stage.refusal && `\n\nThe model declined: ${stage.refusal}`);
    showText(part(".stop-text"), part(".stop-text"), text);
    setText(part(".stop-pointer"), isAnswer ? pointer(stage) : "");
    part(".stop-pointer").hidden = !isAnswer || !pointer(stage);
    this.#showCalls(part(".calls"), shown.calls, stage.calls);
  }

  #showCalls(list, shown, calls) {
    list.hidden = calls.length === 0;
    const ids = new Set(calls.map((call) => call.id));
    for (const [id, { item }] of shown) {
      if (ids.has(id)) continue;
      item.remove();
      shown.delete(id);
    }
    for (const call of calls) {
      let entry = shown.get(call.id);
      if (!entry) {
        entry = { item: clone("call-template"), call: null };
        entry.item.dataset.callId = call.id;
        shown.set(call.id, entry);
        list.append(entry.item);
      }
      if (entry.call !== call) showCall(entry.item, call);
      entry.call = call;
    }
  }

  // --- the answer ---

  #showAnswer(run, answer) {
    const text = answer ? answer.text + (answer.refusal && `${answer.text && "\n\n"}${answer.refusal}`) : "";
    const isWriting = answer !== null && !isTerminal(run) && answer.state !== "done";
    $("answer-section").hidden = text === "" && !(isWriting && answer.kind === "synthesis");
    $("answer-section").dataset.writing = isWriting;
    setText($("answer"), text);
    $("copy-answer").hidden = !isTerminal(run) || text === "";
  }

  // --- following the end ---

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = document.documentElement;
    const below = scrollHeight - clientHeight - scrollTop;
    if (scrollTop < this.#lastTop - 1 && below > 4) this.#isFollowing = false;
    else if (below <= END_SLACK_PX && this.#run && !isTerminal(this.#run)) this.#isFollowing = true;
    this.#lastTop = scrollTop;
    this.#showLatestButton();
  }

  #scrollToEnd() {
    scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
    this.#lastTop = document.documentElement.scrollTop;
    if (this.#run && isTerminal(this.#run)) this.#isFollowing = false;
  }

  #showLatestButton() {
    const { scrollTop, scrollHeight, clientHeight } = document.documentElement;
    const isAway = scrollHeight - clientHeight - scrollTop > END_SLACK_PX;
    $("latest").hidden = !this.#run || isTerminal(this.#run) || this.#isFollowing || !isAway;
  }
}

export function stageTitle({ id, kind, round }) {
  const title = STAGE_TITLE[kind] ?? id;
  return round > 1 ? `${title}, round ${round}` : title;
}

function pointer(stage) {
  if (stage.kind === "synthesis") return stage.state === "done" ? "" : "The answer is below as it comes.";
  return stage.state === "done" ? "No tool was needed: the model answered at once." : "";
}

function showCall(card, call) {
  const part = (name) => card.querySelector(name);
  card.dataset.state = call.state;
  setText(part("h3"), call.name);
  setText(part(".call-state"), CALL_STATE[call.state]);
  setText(part(".call-time"), call.durationMs == null ? "" : duration(call.durationMs));
  setText(part(".call-arguments"), pretty(call.arguments));
  part(".call-arguments").hidden = call.arguments === "" || call.arguments === "{}";
  setText(part(".call-result"), pretty(call.content));
  part(".call-result").hidden = call.state !== "done" && call.state !== "error";
}

function showNotes(list, notes) {
  list.hidden = notes.length === 0;
  list.replaceChildren(...notes.map((note) => {
    const item = document.createElement("li");
    item.textContent = noteText(note);
    item.dataset.kind = note.kind;
    return item;
  }));
}

function noteText(note) {
  switch (note.kind) {
    case "retry":
      return `${note.reason}. Retry ${note.retry} after ${duration(note.backoffS * 1000)}.`;
    case "restart":
      return `Started over; ${count(note.discarded, "character")} of the unfinished text discarded.`;
    default:
      return "Taken up again by another attempt; finished calls were kept.";
  }
}

/** Show `box` with its text, or hide it while there is none. */
function showText(box, element, text) {
  box.hidden = text === "";
  setText(element, text);
}

function showPairs(list, pairs) {
  const filled = pairs.filter(([, value]) => value);
  while (list.children.length > filled.length) list.lastElementChild.remove();
  filled.forEach(([term, value], index) => {
    const pair = list.children[index] ?? list.appendChild(document.createElement("div"));
    if (!pair.firstChild) pair.append(document.createElement("dt"), document.createElement("dd"));
    setText(pair.firstChild, term);
    setText(pair.lastChild, value);
  });
}

/** The element's text; text that only grew is appended, so that a selection in it stays. */
export function setText(element, text) {
  const node = element.firstChild ?? element.appendChild(document.createTextNode(""));
  if (node.data === text) return;
  if (node.data && text.startsWith(node.data)) node.appendData(text.slice(node.length));
  else node.data = text;
}

function clone(templateId) {
  return $(templateId).content.firstElementChild.cloneNode(true);
}
