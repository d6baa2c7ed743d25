// Builds the state of a run from its events: pure functions without DOM, clock or network.
//
//   let state = emptyRun();
//   for await (const update of run.updates()) state = reduce(state, update);
//   answerStage(state)?.text
//
// States are immutable, and parts that an event does not change stay the same object.

import { EventLog } from "./event_log.js";
import type { ConnectionUpdate } from "./connection_state.js";
import type { RunUpdate } from "./stream_follower.js";
import type { RunEvent } from "./event_sequencer.js";
import type { ErrorData, RunStatus, Usage } from "./schema.js";
import { type CallState, emptyStage, isOpen, reduceStage, type StageState, stopStage } from "./stage_state.js";

export type { EventLog };

export interface RunState {
  readonly id: string;
  readonly status: RunStatus | null;
  readonly model: string;
  /** The number of attempts so far. */
  readonly attempts: number;
  readonly stages: readonly StageState[];
  readonly usage: Usage | null;
  /** Why the last model stage ended, such as `stop`, `length`, `content_filter` or `refusal`; null until it has. */
  readonly finishReason: string | null;
  readonly error: ErrorData | null;
  /** Why the run was cancelled, if somebody said so. */
  readonly cancelReason: string | null;
  /** The id of the last event. */
  readonly cursor: string;
  /** When the run started, by `performance.now()`; null if that was replayed. */
  readonly startedAt: number | null;
  /** When the run was created, in Unix ms by the gateway's clock; null in logs of older versions. */
  readonly queuedAt: number | null;
  readonly durationMs: number | null;
  /** All events in the log so far, including discarded ones. */
  readonly events: EventLog;
  /** The log lost events; the state shows what it has now. */
  readonly isLossy: boolean;
  readonly connection: Omit<ConnectionUpdate, "name">;
}

const RUN_STAGE = "run";

/** Returns the state before the first event. */
export function emptyRun(): RunState {
  return {
    id: "", status: null, model: "", attempts: 0, stages: [], usage: null, finishReason: null, error: null, cancelReason: null, cursor: "",
    startedAt: null, queuedAt: null, durationMs: null, events: EventLog.empty, isLossy: false,
    connection: { state: "connecting", losses: 0, transport: "stream", waitingFor: null },
  };
}

/** Returns the state after an event, a gap, or a change of the connection. */
export function reduce(state: RunState, update: RunUpdate): RunState {
  if (update.name === "connection") {
    const { name: _, ...connection } = update;
    return { ...state, connection };
  }
  if (update.name === "gap") return discardFrom(state, update.sequence);
  const next = applyEvent(state, update);
  return { ...next, cursor: update.id, events: state.events.with(update) };
}

/** Returns true once the terminal event was received. */
export function isTerminal({ status }: RunState): boolean {
  return status === "succeeded" || status === "failed" || status === "cancelled";
}

/** Returns the calls that wait for a person, for `run.decide`. */
export function waitingCalls({ stages }: RunState): CallState[] {
  return stages.flatMap(({ calls }) => calls.filter((call) => call.state === "waiting"));
}

/**
 * Returns the stage whose text is the answer: synthesis, or an extraction without a tool call; else null.
 *
 * A running extraction may still call a tool. Then its text was only an introduction, and it is no longer returned.
 */
export function answerStage({ stages }: RunState): StageState | null {
  const last = stages.findLast((stage) => stage.kind !== "tools");
  if (!last) return null;
  if (last.kind === "synthesis") return last;
  const callsTools = last.result === null ? last.callsTools : hasCalls(last.result);
  return callsTools ? null : last;
}

function hasCalls(result: Record<string, unknown>): boolean {
  return Array.isArray(result["tool_calls"]) && result["tool_calls"].length > 0;
}

/** Removes the events from that sequence on, which the log has lost or replaced. */
function discardFrom(state: RunState, sequence: number): RunState {
  let kept: RunState = { ...emptyRun(), isLossy: true, connection: state.connection };
  for (const event of state.events) if (event.sequence < sequence) kept = reduce(kept, event);
  return kept;
}

function applyEvent(state: RunState, event: RunEvent): RunState {
  const { name, data, at } = event;
  switch (name) {
    case "run_queued":
      return { ...state, id: data.run_id, model: data.model, status: "queued", startedAt: at, queuedAt: data.at ?? null };
    case "run_started":
      return { ...state, status: "running", attempts: state.attempts + 1 };
    case "retry_scheduled":
      return changeStage(state, data.retry_of, event);
    case "message_added":
      return changeStage(state, data.before, event);
    case "done":
      return { ...withEnd(state, "succeeded", event), usage: data.usage ?? null };
    case "cancel":
      return {
        ...withEnd(state, "cancelled", event), usage: data.usage ?? null, cancelReason: data.reason ?? null,
        stages: stopStages(state, data.at),
      };
    case "error":
      return {
        ...withEnd(state, "failed", event), usage: data.usage ?? null, error: data,
        stages: stopStages(state, data.at, data.failed_stage),
      };
    default:
      if (data.stage_id === RUN_STAGE) return state; // written by another version
      return withActivity(changeStage(state, data.stage_id, event));
  }
}

/** A run parks once every unfinished call waits for a person. */
function withActivity(state: RunState): RunState {
  if (isTerminal(state)) return state;
  const open = state.stages.flatMap(({ calls }) => calls.filter(isOpen));
  const isParked = open.length > 0 && open.every((call) => call.state === "waiting" || call.deferred !== null);
  return { ...state, status: isParked ? "parked" : "running" };
}

function withEnd(state: RunState, status: RunStatus, { at, data }: RunEvent): RunState {
  const writtenAt = "at" in data ? data.at : null;
  if (writtenAt != null && state.queuedAt !== null) {
    return { ...state, status, durationMs: Math.max(0, writtenAt - state.queuedAt) };
  }
  const isSeen = at !== null && state.startedAt !== null;
  return { ...state, status, durationMs: isSeen ? at - state.startedAt : null };
}

function changeStage(state: RunState, stageId: string, event: RunEvent): RunState {
  const index = state.stages.findIndex((stage) => stage.id === stageId);
  const stages = [...state.stages];
  if (index < 0) stages.push(reduceStage(emptyStage(stageId), event, state.events));
  else stages[index] = reduceStage(state.stages[index] as StageState, event, state.events);
  const reason = stages.findLast((stage) => stage.kind !== "tools")?.result?.["finish_reason"];
  return { ...state, stages, finishReason: typeof reason === "string" ? reason : null };
}

function stopStages({ stages }: RunState, endedAt: number | null = null, failedStage?: string | null): StageState[] {
  return stages.map((stage) => stopStage(stage, stage.id === failedStage ? "failed" : "stopped", endedAt));
}
