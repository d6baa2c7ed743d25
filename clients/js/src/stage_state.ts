// Builds the state of one stage from its events.

import type { EventLog } from "./event_log.js";
import type { RunEvent } from "./event_sequencer.js";
import type { ApprovalDecidedData, CallDeferredData, StageRestartedData, Usage } from "./schema.js";
import { deltaOf, emptySplitter, push, shownText, type Splitter } from "./model_text.js";

/** A retry, restart or resumption of the stage, or a message that joined the run before it. */
export type Note =
  /** Retried after a backoff; `model` is the fallback model, if one is used. */
  | { readonly kind: "retry"; readonly retry: number; readonly backoffS: number; readonly reason: string; readonly model: string | null }
  /** Started again; `discarded` is what this removed. */
  | { readonly kind: "restart"; readonly attempt: number; readonly discarded: Discarded }
  /** Resumed by another attempt; nothing was discarded. */
  | { readonly kind: "resume"; readonly attempt: number }
  /** The message of another run, which was sent to steer this one. */
  | { readonly kind: "message"; readonly runId: string; readonly text: string };

export interface Discarded {
  readonly text: string;
  readonly reasoning: string;
  readonly calls: readonly CallState[];
}

/** What a call needs from a person: an approval or, if there is a question, an answer. */
export interface ApprovalState {
  readonly question: string | null;
  /** In Unix ms; after that the call counts as denied. */
  readonly expiresAt: number;
  /** Null until a decision. */
  readonly decided: ApprovalDecidedData | null;
}

export interface CallState {
  readonly id: string;
  readonly name: string;
  /** JSON text, as the model wrote it. */
  readonly arguments: string;
  /** `waiting` means for a person. */
  readonly state: "waiting" | "running" | "done" | "error" | "stopped";
  /** Null if the call needs no person. */
  readonly approval: ApprovalState | null;
  /** Set while the call waits for a result from outside. */
  readonly deferred: CallDeferredData | null;
  /** The progress that the tool reports; null before the first report and after the result. */
  readonly progress: { readonly message: string; readonly fraction: number | null } | null;
  /** The result. */
  readonly content: string;
  /** The id of an earlier call with the same name and arguments, whose result this call shares. */
  readonly sameAs: string | null;
  readonly durationMs: number | null;
  readonly startedAt: number | null;
  /** When the call began, in Unix ms by the worker's clock; null if the log does not say. */
  readonly beganAt: number | null;
}

export interface StageState {
  readonly id: string;
  readonly kind: string;
  readonly round: number;
  /** `waiting` means for a retry; `restarted` means running again. */
  readonly state: "running" | "waiting" | "restarted" | "done" | "failed" | "stopped";
  readonly text: string;
  readonly reasoning: string;
  readonly calls: readonly CallState[];
  readonly notes: readonly Note[];
  readonly usage: Usage | null;
  readonly startedAt: number | null;
  /** When the stage began, in Unix ms by the worker's clock; null if the log does not say. */
  readonly beganAt: number | null;
  readonly durationMs: number | null;
  /** The model has begun to call a tool. */
  readonly callsTools: boolean;
  readonly result: Record<string, unknown> | null;
  /** The sources of `text` and `reasoning`. */
  readonly output: { readonly split: Splitter; readonly thoughts: string; readonly refusal: string };
}

const ASK_USER = "ask_user"; // the tool that asks a person

export function emptyStage(id: string): StageState {
  const [kind = id, round = "1"] = id.split(".");
  return {
    id, kind, round: Number(round), state: "running", text: "", reasoning: "", calls: [], notes: [], usage: null,
    startedAt: null, beganAt: null, durationMs: null, callsTools: false, result: null, output: { split: emptySplitter, thoughts: "", refusal: "" },
  };
}

/** Returns the stage after one of its events, or an event of the run about it; `before` has the run's earlier events. */
export function reduceStage(stage: StageState, event: RunEvent, before: EventLog): StageState {
  if (event.name === "stage_restarted") return applyRestart(stage, event.sequence, event.data, before);
  if (event.name === "retry_scheduled") {
    const { retry, backoff_s: backoffS, reason, model = null } = event.data;
    return { ...stage, state: "waiting", notes: [...stage.notes, { kind: "retry", retry, backoffS, reason, model }] };
  }
  if (event.name === "message_added") {
    const { run_id: runId, messages } = event.data;
    return { ...stage, notes: [...stage.notes, { kind: "message", runId, text: messages.map(textOf).join("\n\n") }] };
  }
  return applyEvent(stage.state === "waiting" ? { ...stage, state: "running" } : stage, event);
}

/** Returns the text of a chat completion message, whose content is text or a list of parts. */
function textOf({ content }: Record<string, unknown>): string {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return "";
  return content.map((part: unknown) => (isObject(part) && typeof part["text"] === "string" ? part["text"] : "")).join("");
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

/** Ends a stage that was open when the run ended, at `endedAt` in Unix ms. */
export function stopStage(stage: StageState, state: "failed" | "stopped", endedAt: number | null): StageState {
  if (stage.state === "done") return stage;
  const tookMs = (beganAt: number | null) => (beganAt === null || endedAt === null ? null : Math.max(0, endedAt - beganAt));
  const calls = stage.calls.map((call): CallState => (
    isOpen(call) ? { ...call, state: "stopped", durationMs: tookMs(call.beganAt) } : call
  ));
  return { ...stage, state, calls, durationMs: tookMs(stage.beganAt) };
}

/** Returns true if a call has no result yet. */
export function isOpen({ state }: CallState): boolean {
  return state === "running" || state === "waiting";
}

function applyEvent(stage: StageState, event: RunEvent): StageState {
  const { name, data, at } = event;
  switch (name) {
    case "stage_started":
      return { ...stage, startedAt: at, beganAt: data.at ?? null };
    case "tool_completion_chunk":
      return withDelta(stage, data.tool_results);
    case "approval_required":
      return withCall(stage, data.call_id, {
        name: data.name, arguments: data.arguments, state: "waiting",
        approval: { question: null, expiresAt: data.expires_at, decided: null },
      });
    case "input_required":
      return withCall(stage, data.call_id, {
        name: ASK_USER, state: "waiting",
        approval: { question: data.question, expiresAt: data.expires_at, decided: null },
      });
    case "approval_decided":
      return withDecision(stage, data);
    case "tool_call":
      return withCall(stage, data.call_id, {
        name: data.name, arguments: data.arguments, state: "running", startedAt: at, beganAt: data.at ?? null,
      });
    case "call_deferred":
      return withCall(stage, data.call_id, { name: data.name, arguments: data.arguments, deferred: data, progress: null });
    case "tool_progress":
      return withCall(stage, data.call_id, { progress: { message: data.message, fraction: data.fraction ?? null } });
    case "tool_result":
      return withCall(stage, data.call_id, {
        name: data.name, content: data.content, state: data.is_error ? "error" : "done", progress: null, deferred: null,
        durationMs: data.duration_ms ?? null, sameAs: data.same_as ?? null,
      });
    case "stage_completed":
      return complete(stage, data.result ?? {}, data.usage ?? null, data.duration_ms ?? observedMs(stage, at));
    default:
      return stage;
  }
}

/** Discards the events from `discard_from` on by applying the remaining ones again. */
function applyRestart(stage: StageState, sequence: number, data: StageRestartedData, before: EventLog): StageState {
  const { attempt, discard_from: discardFrom } = data;
  const note: Note = discardFrom === sequence
    ? { kind: "resume", attempt }
    : { kind: "restart", attempt, discarded: { text: stage.text, reasoning: stage.reasoning, calls: stage.calls } };
  let kept = emptyStage(stage.id);
  for (const event of validEvents(stage.id, before)) if (event.sequence < discardFrom) kept = applyEvent(kept, event);
  return { ...kept, startedAt: stage.startedAt, notes: [...stage.notes, note], state: "restarted" };
}

/** Returns the stage's events that no restart has discarded. */
function validEvents(stageId: string, events: EventLog): RunEvent[] {
  let kept: RunEvent[] = [];
  for (const event of events) {
    if (event.data.stage_id !== stageId) continue;
    if (event.name !== "stage_restarted") kept.push(event);
    else kept = kept.filter(({ sequence }) => sequence < event.data.discard_from);
  }
  return kept;
}

/** Measures a stage's duration by arrival times, for logs of versions whose stages do not say it. */
function observedMs(stage: StageState, at: number | null): number | null {
  if (at === null || stage.startedAt === null) return null;
  // Events that arrive together seem to take no time; the calls have real durations.
  return Math.max(at - stage.startedAt, ...stage.calls.map((call) => call.durationMs ?? 0));
}

function complete(
  stage: StageState, result: Record<string, unknown>, usage: Usage | null, durationMs: number | null,
): StageState {
  // The text of the result is authoritative.
  const text = typeof result["text"] === "string" ? result["text"] || stage.output.refusal : stage.text;
  return { ...stage, state: "done", result, usage, durationMs, text };
}

function withDelta(stage: StageState, chunk: unknown): StageState {
  const { content, thoughts, refusal, isCall } = deltaOf(chunk);
  const callsTools = stage.callsTools || isCall;
  if (content === "" && thoughts === "" && refusal === "" && callsTools === stage.callsTools) return stage;
  const output = {
    split: push(stage.output.split, content),
    thoughts: stage.output.thoughts + thoughts,
    refusal: stage.output.refusal + refusal,
  };
  return {
    ...stage, output, callsTools, text: shownText(output.split) || output.refusal, reasoning: output.thoughts + output.split.thoughts,
  };
}

function withDecision(stage: StageState, data: ApprovalDecidedData): StageState {
  const approval = stage.calls.find((call) => call.id === data.call_id)?.approval;
  return withCall(stage, data.call_id, {
    state: "running",
    ...(approval && { approval: { ...approval, decided: data } }),
    ...(data.arguments != null && { arguments: data.arguments }),
  });
}

function withCall(stage: StageState, id: string, fields: Partial<CallState>): StageState {
  const calls = [...stage.calls];
  const index = calls.findIndex((call) => call.id === id);
  const call = calls[index] ?? {
    id, name: "", arguments: "", state: "running", approval: null, deferred: null, progress: null, content: "", sameAs: null, durationMs: null,
    startedAt: null, beganAt: null,
  };
  calls[index < 0 ? calls.length : index] = { ...call, ...fields };
  return { ...stage, calls };
}
