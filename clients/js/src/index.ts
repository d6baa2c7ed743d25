// @stagebus/client: follow Stagebus runs from browsers and Node.

export { Runs, Stagebus } from "./client.js";
export type { CreateOptions, ListOptions } from "./client.js";
export {
  ProblemError, RunCancelledError, RunFailedError, StagebusError, StreamBrokenError, UnreachableError,
} from "./errors.js";
export type { ConnectionState, ConnectionUpdate, FollowOptions, RunUpdate } from "./follow.js";
export type { CallOptions, Fetch, Options } from "./http.js";
export { isPassing } from "./http.js";
export type { EventName, GapEvent, RunEvent } from "./place.js";
export { Run } from "./run.js";
export type { Decision, TicketOptions } from "./run.js";
export * from "./schema.js";
export type { ApprovalState, CallState, Discarded, Note, StageState } from "./stage_state.js";
export { answerStage, emptyRun, isTerminal, reduce, waitingCalls } from "./state.js";
export type { EventLog, RunState } from "./state.js";
export { RunWatch } from "./watch.js";
export type { WatchOptions } from "./watch.js";
