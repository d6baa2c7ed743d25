// A stage of a run as its events make it.

import type { EventLog } from "./event_log.js";
import type { RunEvent } from "./place.js";
import type { ApprovalDecidedData, StageRestartedData, Usage } from "./schema.js";
import { deltaOf, emptySplitter, push, shownText, type Splitter } from "./text.js";

/** What went wrong on the way. */
export type Note =
  /** Tried again after a backoff; `model` is the fallback that is asked now, where it is one. */
  | { readonly kind: "retry"; readonly retry: number; readonly backoffS: number; readonly reason: string; readonly model: string | null }
  /** Done again; this is what became void by it. */
  | { readonly kind: "restart"; readonly attempt: number; readonly discarded: Discarded }
  /** Taken up again; nothing became void. */
  | { readonly kind: "resume"; readonly attempt: number };

export interface Discarded {
  readonly text: string;
  readonly reasoning: string;
  readonly calls: readonly CallState[];
}

/** What a call asks a person: to let it run, or, where there is a question, to answer it. */
export interface ApprovalState {
  readonly question: string | null;
  /** Unix ms; from then on the call counts as denied. */
  readonly expiresAt: number;
  /** Null as long as nobody has decided. */
  readonly decided: ApprovalDecidedData | null;
}

export interface CallState {
  readonly id: string;
  readonly name: string;
  /** JSON text, as the model wrote it. */
  readonly arguments: string;
  /** `waiting` for a person. */
  readonly state: "waiting" | "running" | "done" | "error" | "stopped";
  /** Null where nobody is asked. */
  readonly approval: ApprovalState | null;
  /** How far its tool says that it is; null before the first word and once it has its result. */
  readonly progress: { readonly message: string; readonly fraction: number | null } | null;
  /** The result. */
  readonly content: string;
  /** The earlier call, with the same name and arguments, that ran for both. */
  readonly sameAs: string | null;
  readonly durationMs: number | null;
  readonly startedAt: number | null;
}

export interface StageState {
  readonly id: string;
  readonly kind: string;
  readonly round: number;
  /** `waiting` for a retry; `restarted` and running again. */
  readonly state: "running" | "waiting" | "restarted" | "done" | "failed" | "stopped";
  readonly text: string;
  readonly reasoning: string;
  readonly calls: readonly CallState[];
  readonly notes: readonly Note[];
  readonly usage: Usage | null;
  readonly startedAt: number | null;
  readonly durationMs: number | null;
  readonly result: Record<string, unknown> | null;
  /** How `text` and `reasoning` came about. */
  readonly said: { readonly split: Splitter; readonly thoughts: string; readonly refusal: string };
}

const ASK_USER = "ask_user"; // the tool by which a model asks a person

export function emptyStage(id: string): StageState {
  const [kind = id, round = "1"] = id.split(".");
  return {
    id, kind, round: Number(round), state: "running", text: "", reasoning: "", calls: [], notes: [], usage: null,
    startedAt: null, durationMs: null, result: null, said: { split: emptySplitter, thoughts: "", refusal: "" },
  };
}

/** The stage after an event of it, or after one of the run that is about it; `before` are the run's earlier ones. */
export function reduceStage(stage: StageState, event: RunEvent, before: EventLog): StageState {
  if (event.name === "stage_restarted") return restarted(stage, event.sequence, event.data, before);
  if (event.name === "retry_scheduled") {
    const { retry, backoff_s: backoffS, reason, model = null } = event.data;
    return { ...stage, state: "waiting", notes: [...stage.notes, { kind: "retry", retry, backoffS, reason, model }] };
  }
  return applied(stage.state === "waiting" ? { ...stage, state: "running" } : stage, event);
}

/** A stage that was open when the run ended. */
export function stopStage(stage: StageState, state: "failed" | "stopped"): StageState {
  if (stage.state === "done") return stage;
  const calls = stage.calls.map((call): CallState => (isOpen(call) ? { ...call, state: "stopped" } : call));
  return { ...stage, state, calls };
}

/** Whether a call has no result yet. */
export function isOpen({ state }: CallState): boolean {
  return state === "running" || state === "waiting";
}

function applied(stage: StageState, event: RunEvent): StageState {
  const { name, data, at } = event;
  switch (name) {
    case "stage_started":
      return { ...stage, startedAt: at };
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
        name: data.name, arguments: data.arguments, state: "running", startedAt: at,
      });
    case "tool_progress":
      return withCall(stage, data.call_id, { progress: { message: data.message, fraction: data.fraction ?? null } });
    case "tool_result":
      return withCall(stage, data.call_id, {
        name: data.name, content: data.content, state: data.is_error ? "error" : "done", progress: null,
        durationMs: data.duration_ms ?? null, sameAs: data.same_as ?? null,
      });
    case "stage_completed":
      return completed(stage, data.result ?? {}, data.usage ?? null, data.duration_ms ?? watchedMs(stage, at));
    default:
      return stage;
  }
}

/** Void what came from `discard_from` on, by folding what is left anew. */
function restarted(stage: StageState, sequence: number, data: StageRestartedData, before: EventLog): StageState {
  const { attempt, discard_from: discardFrom } = data;
  const note: Note = discardFrom === sequence
    ? { kind: "resume", attempt }
    : { kind: "restart", attempt, discarded: { text: stage.text, reasoning: stage.reasoning, calls: stage.calls } };
  let kept = emptyStage(stage.id);
  for (const event of validEvents(stage.id, before)) if (event.sequence < discardFrom) kept = applied(kept, event);
  return { ...kept, startedAt: stage.startedAt, notes: [...stage.notes, note], state: "restarted" };
}

/** The stage's events that no restart has voided. */
function validEvents(stageId: string, events: EventLog): RunEvent[] {
  let kept: RunEvent[] = [];
  for (const event of events) {
    if (event.data.stage_id !== stageId) continue;
    if (event.name !== "stage_restarted") kept.push(event);
    else kept = kept.filter(({ sequence }) => sequence < event.data.discard_from);
  }
  return kept;
}

/** How long a stage took as it was watched: for logs of before stages said it themselves. */
function watchedMs(stage: StageState, at: number | null): number | null {
  if (at === null || stage.startedAt === null) return null;
  // What comes at once seems to take no time; the calls know better.
  return Math.max(at - stage.startedAt, ...stage.calls.map((call) => call.durationMs ?? 0));
}

function completed(
  stage: StageState, result: Record<string, unknown>, usage: Usage | null, durationMs: number | null,
): StageState {
  // The result has the last word on the text.
  const text = typeof result["text"] === "string" ? result["text"] || stage.said.refusal : stage.text;
  return { ...stage, state: "done", result, usage, durationMs, text };
}

function withDelta(stage: StageState, chunk: unknown): StageState {
  const { content, thoughts, refusal } = deltaOf(chunk);
  if (content === "" && thoughts === "" && refusal === "") return stage;
  const said = {
    split: push(stage.said.split, content),
    thoughts: stage.said.thoughts + thoughts,
    refusal: stage.said.refusal + refusal,
  };
  return { ...stage, said, text: shownText(said.split) || said.refusal, reasoning: said.thoughts + said.split.thoughts };
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
    id, name: "", arguments: "", state: "running", approval: null, progress: null, content: "", sameAs: null, durationMs: null,
    startedAt: null,
  };
  calls[index < 0 ? calls.length : index] = { ...call, ...fields };
  return { ...stage, calls };
}
