// The view of a run: its stages as a timeline, its answer, its events.

import { showApproval } from "./approvals.js";
import { showResultBox } from "./call_result.js";
import { $, clone, make, setBusy, setText } from "./dom.js";
import { EventsView } from "./events_view.js";
import { duration, elapsed, finishText, money } from "./format.js";
import { pretty, reveal, showControls } from "./json_text.js";
import { MarkdownText } from "./markdown.js";
import { answerStage, isTerminal, waitingCalls } from "./vendor/stagebus-client.js";

const STAGE_PURPOSE = {
  extraction: "The model reads the prompt and picks its tools",
  tools: "The calls run in parallel",
  synthesis: "The model writes from the tools’ results",
};
const CALL_STATE_TEXT = { waiting: "waiting for you" };
const DEFERRED_TEXT = "waiting for a result";
const STATE_TEXT = { waiting: "waiting to retry", restarted: "started over" };
const STATUS_TEXT = { queued: "queued: waiting for a worker", parked: "waiting for you" };
const CONNECTION_TEXT = { replaying: "catching up" };
const POLLING_TITLE = "This page asks for new events instead of keeping a stream open.";
const PROMPT_EXCERPT_CHARS = 200; // the record contains no more than this
// The page counts as scrolled to the end if no more than this is left below.
const END_SLACK_PX = 48;

/** Shows how events arrive, or what the run waits for. */
export function showConnection({ state, losses = 0, transport = "stream", waitingFor = null }, runStatus = null) {
  document.body.dataset.connection = waitingFor ? "stalled" : state;
  const text = waitingFor ? waitingText(waitingFor, runStatus) : CONNECTION_TEXT[state] ?? state;
  const detail = losses || (state === "live" && !waitingFor && transport === "polling" && transport);
  setText($("connection"), capital(text) + (detail ? ` (${detail})` : ""));
  $("connection").title = transport === "polling" ? POLLING_TITLE : "";
}

/** Returns what a run waits for as text. */
export function waitingText(waitingFor, runStatus) {
  if (waitingFor === "storage") return "storage is away";
  return runStatus === "queued" ? "waiting for a worker" : "waiting for the worker";
}

export function stageTitle({ kind, round }) {
  return capital(kind) + (round > 1 ? `, round ${round}` : "");
}

export class RunView {
  #run = null;
  #stages = new Map(); // stage id -> { item, stage, isAnswer, notes, calls: call id -> { item, call } }
  #isFollowing = false;
  #top = 0;
  #answer = new MarkdownText($("answer"));
  #events = new EventsView();
  #acts;

  /** `acts.decide(call, decision)` and `acts.giveResult(call, result)` send what a person enters; null if this page may not. */
  constructor(acts) {
    this.#acts = acts;
    addEventListener("scroll", () => this.#scrolled(), { passive: true });
    $("latest").addEventListener("click", () => this.follow());
  }

  reset(prompt = "") {
    this.#run = null;
    this.#stages.clear();
    this.#isFollowing = false;
    $("stages").replaceChildren();
    this.#answer.show("");
    this.#events.reset();
    const texts = "#run-status, #run-time, #run-model, #cancel-error, #share-error, #lost, #facts, #usage";
    for (const element of document.querySelectorAll(texts)) element.textContent = "";
    for (const id of ["answer-section", "end", "cancel", "latest", "share-link"]) $(id).hidden = true;
    setText($("run-prompt"), prompt);
    setBusy($("cancel"), false);
    delete document.body.dataset.runStatus;
  }

  /** Shows what only the run's record contains. */
  describe({ prompt, created_at: createdAt, finished_at: finishedAt }) {
    setText($("run-prompt"), prompt.length < PROMPT_EXCERPT_CHARS ? prompt : `${prompt}…`);
    if (finishedAt) setText($("run-time"), duration(new Date(finishedAt) - new Date(createdAt)));
  }

  /** Keeps the end of the text visible until the reader scrolls up. */
  follow() {
    this.#isFollowing = true;
    this.#scrollToEnd();
  }

  render(run) {
    this.#run = run;
    document.body.dataset.runStatus = run.status ?? "";
    const answer = answerStage(run);
    this.#showHead(run);
    prune(this.#stages, run.stages);
    for (const stage of run.stages) this.#showStage(stage, stage === answer);
    this.#showAnswer(run, answer);
    showEnd(run);
    showFacts(run);
    this.#events.render(run);
    if ($("run-time").textContent === "") this.tick(performance.now());
    if (this.#isFollowing) this.#scrollToEnd();
    this.#showLatestButton();
  }

  /** Updates the running times, once a second. */
  tick(now) {
    if (!this.#run || isTerminal(this.#run)) return;
    const show = (element, since) => since != null && setText(element, elapsed(Math.max(0, now - since)));
    // If the start was not seen live, compare this machine's clock with the server's.
    show($("run-time"), this.#run.startedAt ?? (this.#run.queuedAt && now - (Date.now() - this.#run.queuedAt)));
    for (const { item, stage, calls } of this.#stages.values()) {
      if (stage.state !== "done") show(item.querySelector(".time"), stage.startedAt);
      for (const { item: card, call } of calls.values()) {
        if (call.state === "running") show(card.querySelector(".time"), call.startedAt);
      }
    }
  }

  /** Shows the run's state, or what it waits for. */
  showStatus(run) {
    const { status, connection: { waitingFor } } = run;
    const isDeferred = status === "parked" && waitingCalls(run).length === 0;
    const text = isDeferred ? DEFERRED_TEXT : STATUS_TEXT[status] ?? status ?? "";
    $("run-status").dataset.status = waitingFor ? "stalled" : status ?? "";
    setText($("run-status"), waitingFor ? waitingText(waitingFor, status) : text);
  }

  #showHead(run) {
    const { status, model, durationMs } = run;
    this.showStatus(run);
    setText($("run-model"), model);
    if (durationMs != null) setText($("run-time"), duration(durationMs));
    $("cancel").hidden = status === null || isTerminal(run);
  }

  #showStage(stage, isAnswer) {
    const shown = this.#stages.get(stage.id) ?? this.#addStage(stage);
    if (shown.stage === stage && shown.isAnswer === isAnswer) return;
    Object.assign(shown, { stage, isAnswer });
    const { item, calls } = shown;
    const part = (name) => item.querySelector(`:scope > ${name}`);
    item.dataset.state = stage.state;
    item.classList.toggle("asking", isAsking(stage));
    setText(part(".head > .state"), stateText(stage));
    if (stage.durationMs !== null) setText(part(".head > .time"), duration(stage.durationMs));
    this.#showNotes(part(".notes"), shown, stage.notes);
    part(".reasoning").hidden = stage.reasoning === "";
    setText(part(".reasoning > .text"), stage.reasoning);
    setText(part(".own-text"), isAnswer ? "" : stage.text);
    prune(calls, stage.calls);
    for (const call of stage.calls) this.#showCall(part(".calls"), calls, call);
  }

  /** Shows the stage's retries and restarts. If the run is watched live, discarded text fades out. */
  #showNotes(list, shown, notes) {
    const isGrown = shown.notes.every((note, n) => note === notes[n]);
    if (!isGrown) list.replaceChildren(); // a gap removed notes
    // Without motion nothing would fade, and so nothing would end it.
    const isShown = this.#run.connection.state === "live" && !matchMedia("(prefers-reduced-motion: reduce)").matches;
    for (const note of notes.slice(list.children.length)) {
      list.append(noteItem(note));
      if (!isShown || !note.discarded?.text) continue;
      const ghost = make("div", "text discarded", note.discarded.text);
      ghost.ariaHidden = "true";
      ghost.addEventListener("animationend", () => ghost.remove());
      list.lastChild.append(ghost);
    }
    shown.notes = notes;
  }

  #showCall(list, shown, call) {
    let entry = shown.get(call.id);
    if (entry?.call === call) return;
    if (!entry) {
      entry = { item: clone("call-template") };
      entry.item.dataset.callId = call.id;
      shown.set(call.id, entry);
      list.append(entry.item);
    }
    entry.call = call;
    const put = (name, text) => setText(entry.item.querySelector(name), text);
    entry.item.dataset.state = call.state;
    put("h3", reveal(call.name));
    put(".state", call.deferred ? DEFERRED_TEXT : CALL_STATE_TEXT[call.state] ?? call.state);
    put(".time", duration(call.durationMs));
    put(".arguments", pretty(call.arguments));
    put(".progress", showControls(progressText(call.progress)));
    showBar(entry.item.querySelector("progress"), call.progress);
    put(".result", pretty(call.content));
    put(".same", call.sameAs === null ? "" : "Same call as another one in this round; it ran once for both.");
    showApproval(entry.item, call, this.#acts?.decide);
    showResultBox(entry.item, call, this.#acts?.giveResult);
  }

  #showAnswer(run, answer) {
    const isWriting = answer !== null && answer.state !== "done" && !isTerminal(run);
    const text = answer?.text ?? "";
    $("answer-section").hidden = text === "" && !(isWriting && answer.kind === "synthesis");
    $("answer-section").dataset.writing = isWriting;
    setText($("answer-title"), run.status === "failed" || run.status === "cancelled" ? "Unfinished answer" : "Answer");
    this.#answer.show(text);
  }

  #addStage(stage) {
    const item = clone("stage-template");
    item.dataset.stage = stage.id;
    item.querySelector("h2").textContent = stageTitle(stage);
    item.querySelector(".purpose").textContent = STAGE_PURPOSE[stage.kind] ?? "";
    const shown = { item, calls: new Map(), notes: [] };
    this.#stages.set(stage.id, shown);
    $("stages").append(item);
    return shown;
  }

  #scrolled() {
    const { top, below } = scrollPlace();
    if (top < this.#top - 1 && below > 4) this.#isFollowing = false;
    else if (this.#run && below <= END_SLACK_PX) this.#isFollowing = true;
    this.#top = top;
    this.#showLatestButton();
  }

  #scrollToEnd() {
    const asking = this.#run?.status === "parked" && document.querySelector("[data-call-id][data-state=waiting]");
    if (asking) asking.scrollIntoView({ block: "center", behavior: "instant" });
    else scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
    this.#top = scrollPlace().top;
  }

  #showLatestButton() {
    const isWanted = this.#run && !isTerminal(this.#run) && !this.#isFollowing;
    $("latest").hidden = !isWanted || scrollPlace().below <= END_SLACK_PX;
  }
}

function scrollPlace() {
  const { scrollTop, scrollHeight, clientHeight } = document.documentElement;
  return { top: scrollTop, below: scrollHeight - clientHeight - scrollTop };
}

/** Removes the shown items that no longer exist. */
function prune(shown, those) {
  const ids = new Set(those.map(({ id }) => id));
  for (const [id, { item }] of shown) if (!ids.has(id)) item.remove(), shown.delete(id);
}

function showBar(bar, progress) {
  bar.hidden = progress?.fraction == null;
  if (!bar.hidden) bar.value = progress.fraction;
}

function stateText(stage) {
  if (stage.state === "done") return finishText(stage.result?.finish_reason);
  return isAsking(stage) ? CALL_STATE_TEXT.waiting : STATE_TEXT[stage.state] ?? stage.state;
}

/** Returns true if everything that the stage still has to do waits for a person. */
function isAsking({ state, calls }) {
  const has = (wanted) => calls.some((call) => call.state === wanted);
  return state !== "done" && has("waiting") && !has("running");
}

function progressText(progress) {
  if (progress === null) return "";
  const share = progress.fraction === null ? "" : `${Math.round(progress.fraction * 100)} %`;
  return [share, progress.message].filter(Boolean).join(" · ");
}

function noteItem({ kind, retry, backoffS, reason, discarded, text }) {
  const chars = discarded ? discarded.text.length + discarded.reasoning.length : 0;
  const item = document.createElement("li");
  item.dataset.kind = kind;
  item.textContent = {
    retry: () => `${reason}. Retry ${retry} after ${duration(backoffS * 1000)}.`,
    restart: () => `Started over${chars ? `; ${chars} characters of unfinished text discarded` : ""}.`,
    resume: () => "Resumed; finished calls were kept.",
    message: () => `A message joined: ${text}`,
  }[kind]();
  return item;
}

function showEnd({ status, error, cancelReason }) {
  $("end").hidden = status !== "failed" && status !== "cancelled";
  $("end").dataset.status = status;
  setText($("end-title"), status === "failed" ? "The run failed" : cancelReason ? `Cancelled: ${cancelReason}` : "Cancelled");
  setText($("end-text"), error?.error ?? "The text up to then is shown above.");
}

function showFacts(run) {
  const { id, model, cursor, attempts, usage, stages } = run;
  const facts = [`Run ${id}`, model, `last event ${cursor}`].filter(Boolean);
  if (attempts > 1) facts.push(`${attempts} attempts`);
  setText($("facts"), facts.join(" · "));
  // Until the run has ended, the sum of the stages so far.
  const used = usage ?? stages.map((stage) => stage.usage).filter(Boolean).reduce(sum, null);
  const { prompt_tokens: read, completion_tokens: written, total_tokens: total } = used ?? {};
  const about = used?.estimated ? "about " : "";
  const tokens = total ? `${about}${total.toLocaleString()} tokens (${read.toLocaleString()} in, ${written.toLocaleString()} out)` : "";
  const cost = isTerminal(run) ? money(used?.cost) : ""; // a partial cost would mislead
  setText($("usage"), [tokens, cost].filter(Boolean).join(" · "));
}

function sum(all, usage) {
  if (all === null) return usage;
  const add = (name) => all[name] + usage[name];
  const isPriced = all.cost && usage.cost;
  return {
    prompt_tokens: add("prompt_tokens"), completion_tokens: add("completion_tokens"), total_tokens: add("total_tokens"),
    cost: isPriced ? { ...all.cost, amount: all.cost.amount + usage.cost.amount } : undefined,
  };
}

function capital(word) {
  return word.charAt(0).toUpperCase() + word.slice(1);
}
