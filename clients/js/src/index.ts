// @stagebus/client: follow Stagebus runs from browsers and Node.

export { Runs, Stagebus, Webhooks } from "./client.js";
export type { CreateOptions, DeliveryOptions, ListOptions } from "./client.js";
export type { FeedEvent, FeedOptions } from "./feed.js";
export {
  ProblemError, RunCancelledError, RunFailedError, StagebusError, StreamBrokenError, UnreachableError,
} from "./client_errors.js";
export type { ClientCall, ClientFunction, ClientTools } from "./client_tools.js";
export type { ConnectionState, ConnectionUpdate } from "./connection_state.js";
export type { FollowOptions } from "./follow.js";
export type { RunUpdate } from "./stream_follower.js";
export type { Transport } from "./connection.js";
export type { CallOptions, Fetch, Options, WaitOptions } from "./http.js";
export { isRetryable } from "./http.js";
export type { EventName, GapEvent, RunEvent } from "./event_sequencer.js";
export { Run } from "./run.js";
export type { AnsweringOptions, Decision, TicketOptions } from "./run.js";
export * from "./schema.js";
export type { ApprovalState, CallState, Discarded, Note, StageState } from "./stage_state.js";
export { partialJson } from "./partial_json.js";
export { answerStage, emptyRun, isTerminal, reduce, waitingCalls } from "./run_state.js";
export type { EventLog, RunState } from "./run_state.js";
export { RunWatch, Watch } from "./run_watch.js";
export { Thread, Threads, ThreadWatch } from "./thread.js";
export type { ThreadListOptions, ThreadMessage, ThreadPageOptions } from "./thread.js";
export type { ThreadEvent, ThreadUpdate } from "./thread_follower.js";
export { activeTurn, currentBranch, emptyThread, reduceThread, turnText } from "./thread_state.js";
export type { ChatMessage, ThreadState, TurnState } from "./thread_state.js";
export type { WatchOptions } from "./run_watch.js";
