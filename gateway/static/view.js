// The view of a run in the page. What came from a model, a tool or a person is set as text, never as HTML.

import { duration, elapsed, pretty } from "./format.js";
import { answerStage, isTerminal } from "./vendor/stagebus-client.js";

const STAGE_PURPOSE = {
  extraction: "The model reads the prompt and picks its tools",
  tools: "The calls run side by side",
  synthesis: "The model writes from the tools’ results",
};
const STATE_TEXT = { waiting: "waiting to retry", restarted: "started over" };
const CONNECTION_TEXT = { replaying: "catching up" };
const PROMPT_EXCERPT_CHARS = 200; // the record holds no more of it
// Page and reader agree that they are at the end of the text when no more than this is left below.
const END_SLACK_PX = 48;

export const $ = (id) => document.getElementById(id);

export function showConnection(state, losses = 0) {
  document.body.dataset.connection = state;
  setText($("connection"), capital(CONNECTION_TEXT[state] ?? state) + (losses ? ` (${losses})` : ""));
}

/** Say something to those who listen to the page instead of looking at it. */
export function announce(text) {
  $("announcer").textContent = text;
}

/** Not `disabled`, which would take the focus away. */
export function setBusy(button, isBusy) {
  button.ariaDisabled = isBusy;
}

export function stageTitle({ kind, round }) {
  return capital(kind) + (round > 1 ? `, round ${round}` : "");
}

export class RunView {
  #run = null;
  #stages = new Map(); // stage id -> { item, stage, isAnswer, calls: call id -> { item, call } }
  #isFollowing = false;
  #top = 0;

  constructor() {
    addEventListener("scroll", () => this.#scrolled(), { passive: true });
    $("latest").addEventListener("click", () => this.follow());
  }

  reset(prompt = "") {
    this.#run = null;
    this.#stages.clear();
    this.#isFollowing = false;
    $("stages").replaceChildren();
    const texts = "#run-status, #run-time, #run-model, #answer, #cancel-error, #lost, #facts";
    for (const element of document.querySelectorAll(texts)) element.textContent = "";
    for (const id of ["answer-section", "end", "cancel", "latest"]) $(id).hidden = true;
    setText($("run-prompt"), prompt);
    setBusy($("cancel"), false);
    delete document.body.dataset.runStatus;
  }

  /** What the record says and the log does not. */
  describe({ prompt, created_at: createdAt, finished_at: finishedAt }) {
    setText($("run-prompt"), prompt.length < PROMPT_EXCERPT_CHARS ? prompt : `${prompt}…`);
    if (finishedAt) setText($("run-time"), duration(new Date(finishedAt) - new Date(createdAt)));
  }

  /** Keep the end of the text in sight, until the reader scrolls up. */
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
    showAnswer(run, answer);
    showEnd(run);
    showFacts(run);
    if (this.#isFollowing) this.#scrollToEnd();
    this.#showLatestButton();
  }

  /** Once a second: the times of what still goes on. */
  tick(now) {
    if (!this.#run || isTerminal(this.#run)) return;
    const show = (element, since) => since != null && setText(element, elapsed(now - since));
    show($("run-time"), this.#run.startedAt);
    for (const { item, stage, calls } of this.#stages.values()) {
      if (stage.state !== "done") show(item.querySelector(".time"), stage.startedAt);
      for (const { item: card, call } of calls.values()) {
        if (call.state === "running") show(card.querySelector(".time"), call.startedAt);
      }
    }
  }

  #showHead(run) {
    const { status, model, durationMs } = run;
    $("run-status").dataset.status = status ?? "";
    setText($("run-status"), status === "queued" ? "queued: waiting for a worker" : status ?? "");
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
    setText(part(".head > .state"), stage.state === "done" ? "" : STATE_TEXT[stage.state] ?? stage.state);
    if (stage.state === "done") setText(part(".head > .time"), duration(stage.durationMs));
    part(".notes").replaceChildren(...stage.notes.map(noteItem));
    part(".reasoning").hidden = stage.reasoning === "";
    setText(part(".reasoning > .text"), stage.reasoning);
    setText(part(".own-text"), isAnswer ? "" : stage.text);
    prune(calls, stage.calls);
    for (const call of stage.calls) showCall(part(".calls"), calls, call);
  }

  #addStage(stage) {
    const item = clone("stage-template");
    item.dataset.stage = stage.id;
    item.querySelector("h2").textContent = stageTitle(stage);
    item.querySelector(".purpose").textContent = STAGE_PURPOSE[stage.kind] ?? "";
    const shown = { item, calls: new Map() };
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
    scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
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

/** Take away what is shown and is no more. */
function prune(shown, those) {
  const ids = new Set(those.map(({ id }) => id));
  for (const [id, { item }] of shown) if (!ids.has(id)) item.remove(), shown.delete(id);
}

function showCall(list, shown, call) {
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
  put("h3", call.name);
  put(".state", call.state);
  put(".time", duration(call.durationMs));
  put(".arguments", pretty(call.arguments));
  put(".progress", progressText(call.progress));
  put(".result", pretty(call.content));
}

function progressText(progress) {
  if (progress === null) return "";
  const share = progress.fraction === null ? "" : `${Math.round(progress.fraction * 100)} %`;
  return [share, progress.message].filter(Boolean).join(" · ");
}

function noteItem({ kind, retry, backoffS, reason, discarded }) {
  const chars = discarded ? discarded.text.length + discarded.reasoning.length : 0;
  const item = document.createElement("li");
  item.dataset.kind = kind;
  item.textContent = {
    retry: () => `${reason}. Retry ${retry} after ${duration(backoffS * 1000)}.`,
    restart: () => `Started over${chars ? `; ${chars} characters of unfinished text discarded` : ""}.`,
    resume: () => "Taken up again by another attempt; finished calls were kept.",
  }[kind]();
  return item;
}

function showAnswer(run, answer) {
  const isWriting = answer !== null && answer.state !== "done" && !isTerminal(run);
  const text = answer?.text ?? "";
  $("answer-section").hidden = text === "" && !(isWriting && answer.kind === "synthesis");
  $("answer-section").dataset.writing = isWriting;
  setText($("answer-title"), run.status === "failed" || run.status === "cancelled" ? "Unfinished answer" : "Answer");
  setText($("answer"), text);
}

function showEnd({ status, error }) {
  $("end").hidden = status !== "failed" && status !== "cancelled";
  $("end").dataset.status = status;
  setText($("end-title"), status === "failed" ? "The run failed" : "Cancelled");
  setText($("end-text"), error?.error ?? "What was written until then is above.");
}

function showFacts({ id, lastId, attempts, usage }) {
  const facts = [`Run ${id}`, `last event ${lastId}`];
  if (attempts > 1) facts.push(`${attempts} attempts`);
  if (usage) facts.push(`${usage.total_tokens} tokens (${usage.prompt_tokens} in, ${usage.completion_tokens} out)`);
  setText($("facts"), facts.join(" · "));
}

/** The element's text; text that only grew is appended, so that a selection in it stays. */
function setText(element, text) {
  const node = element.firstChild ?? element.appendChild(new Text());
  if (node.data === text) return;
  if (node.data && text.startsWith(node.data)) node.appendData(text.slice(node.length));
  else node.data = text;
}

function capital(word) {
  return word.charAt(0).toUpperCase() + word.slice(1);
}

function clone(templateId) {
  return $(templateId).content.firstElementChild.cloneNode(true);
}
