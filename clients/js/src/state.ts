// What a run looks like, as a pure function of what came: no DOM, no clock, no network.
//
//   let state = emptyRun();
//   for await (const update of run.updates()) state = reduce(state, update);
//   answerStage(state)?.text
//
// What is passed in is never changed, and what no event touched stays the same object.

import { EventLog } from "./event_log.js";
import type { ConnectionUpdate, RunUpdate } from "./follow.js";
import type { RunEvent } from "./place.js";
import type { ErrorData, RunStatus, Usage } from "./schema.js";
import { type CallState, emptyStage, isOpen, reduceStage, type StageState, stopStage } from "./stage_state.js";

export type { EventLog };

export interface RunState {
  readonly id: string;
  readonly status: RunStatus | null;
  readonly model: string;
  /** How many workers' claims went to work on it. */
  readonly attempts: number;
  readonly stages: readonly StageState[];
  readonly usage: Usage | null;
  readonly error: ErrorData | null;
  /** The cursor. */
  readonly lastId: string;
  /** When it began, by `performance.now()`; null where that was not seen. */
  readonly startedAt: number | null;
  /** When it was made, in Unix ms by the gateway's clock; null in logs of older versions. */
  readonly queuedAt: number | null;
  readonly durationMs: number | null;
  /** All that came and still stands in the log, void events included. */
  readonly events: EventLog;
  /** The log lost a part; this is what it holds now. */
  readonly isLossy: boolean;
  readonly connection: Omit<ConnectionUpdate, "name">;
}

const RUN_STAGE = "run";

/** A run of which nothing is known yet. */
export function emptyRun(): RunState {
  return {
    id: "", status: null, model: "", attempts: 0, stages: [], usage: null, error: null, lastId: "",
    startedAt: null, queuedAt: null, durationMs: null, events: EventLog.empty, isLossy: false,
    connection: { state: "connecting", losses: 0 },
  };
}

/** The run after this: an event, a gap, or news of the connection. */
export function reduce(state: RunState, update: RunUpdate): RunState {
  if (update.name === "connection") {
    return { ...state, connection: { state: update.state, losses: update.losses } };
  }
  if (update.name === "gap") return dropFrom(state, update.sequence);
  const next = applyEvent(state, update);
  return { ...next, lastId: update.id, events: state.events.with(update) };
}

/** Whether the run's terminal event was seen. */
export function isTerminal({ status }: RunState): boolean {
  return status === "succeeded" || status === "failed" || status === "cancelled";
}

/** The calls that wait for a person, for `run.decide`. */
export function waitingCalls({ stages }: RunState): CallState[] {
  return stages.flatMap(({ calls }) => calls.filter((call) => call.state === "waiting"));
}

/** The stage whose text is the answer: synthesis, or an extraction that ended without a call; or null. */
export function answerStage({ stages }: RunState): StageState | null {
  const last = stages.findLast((stage) => stage.kind !== "tools");
  if (!last) return null;
  // Until an extraction has ended its text may yet turn out to be what the model says before a call.
  const isAnswer = last.kind === "synthesis" || (last.result !== null && !hasCalls(last.result));
  return isAnswer ? last : null;
}

function hasCalls(result: Record<string, unknown>): boolean {
  return Array.isArray(result["tool_calls"]) && result["tool_calls"].length > 0;
}

/** The run without its events from that sequence on: the log no longer has them, or has others. */
function dropFrom(state: RunState, sequence: number): RunState {
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
    case "done":
      return { ...ended(state, "succeeded", event), usage: data.usage ?? null };
    case "cancel":
      return { ...ended(state, "cancelled", event), stages: stopped(state) };
    case "error":
      return { ...ended(state, "failed", event), error: data, stages: stopped(state, data.failed_stage ?? undefined) };
    default:
      if (data.stage_id === RUN_STAGE) return state; // of another time
      return atWork(changeStage(state, data.stage_id, event));
  }
}

/** A run parks once all that it has left to do waits for persons. */
function atWork(state: RunState): RunState {
  if (isTerminal(state)) return state;
  const open = state.stages.flatMap(({ calls }) => calls.filter(isOpen));
  const isParked = open.length > 0 && open.every((call) => call.state === "waiting");
  return { ...state, status: isParked ? "parked" : "running" };
}

function ended(state: RunState, status: RunStatus, { at, data }: RunEvent): RunState {
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
  return { ...state, stages };
}

function stopped({ stages }: RunState, failedStage?: string): StageState[] {
  return stages.map((stage) => stopStage(stage, stage.id === failedStage ? "failed" : "stopped"));
}
