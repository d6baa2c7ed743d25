// Made by `make client` out of the gateway's own schemas. Do not edit.

/** The state of a run. */
export type RunStatus = "queued" | "running" | "parked" | "succeeded" | "failed" | "cancelled";

/** A new run. Exactly one of `user_prompt` and `messages` says what is asked. */
export interface CreateRun {
  /** a model's name, or {extraction, synthesis} with one each; the operator's own choice where left out */
  model?: (string | StageModels) | null;
  /** what the user asks */
  user_prompt?: string | null;
  /** what the model is told to be; goes with user_prompt */
  system_prompt?: string | null;
  /** a conversation, as chat completions have it */
  messages?: (InstructionMessage | UserMessage | AssistantMessage | ToolMessage)[] | null;
  /** names of tools to offer; all by default, none with [] */
  tools?: string[] | null;
  /** auto, none, required, or the tool to call: its name or chat completions' object */
  tool_choice?: string | NamedToolChoice;
  /** whether the model may ask for calls at once */
  parallel_tool_calls?: boolean | null;
  /** whether the model writes an answer from the tools' results */
  synthesis?: boolean;
  /** one number, or [extraction, synthesis] */
  max_tokens?: (number | (number | null)[]) | null;
  /** one number, or [extraction, synthesis] */
  temperature?: (number | (number | null)[]) | null;
  /** how often the model may ask for tools */
  max_rounds?: number;
  /** the run's time limit, within the operator's */
  timeout_s?: number | null;
  /** the client's own notes, given back with the run */
  metadata?: {
    [k: string]: string;
  };
}
/** A model for each stage that asks one; a stage that is left out gets the operator's own choice. */
export interface StageModels {
  extraction?: string | null;
  synthesis?: string | null;
}
/** What the model is told to be. */
export interface InstructionMessage {
  role: "system" | "developer";
  content: string | (TextPart | ImagePart | AudioPart | FilePart | RefusalPart)[];
  name?: string | null;
}
/** A piece of text. */
export interface TextPart {
  type: "text";
  text: string;
}
/** An image. */
export interface ImagePart {
  type: "image_url";
  image_url: ImageUrl;
}
/** Where an image is, or the image itself as a data URL; the provider fetches it, Stagebus does not. */
export interface ImageUrl {
  url: string;
  detail?: ("auto" | "low" | "high") | null;
}
/** A piece of sound. */
export interface AudioPart {
  type: "input_audio";
  input_audio: InputAudio;
}
/** Sound, base64. */
export interface InputAudio {
  data: string;
  format: "wav" | "mp3";
}
/** A file. */
export interface FilePart {
  type: "file";
  file: InputFile;
}
/** A file, by its base64 data or by the provider's id. */
export interface InputFile {
  file_data?: string | null;
  file_id?: string | null;
  filename?: string | null;
}
/** What the model said instead of an answer. */
export interface RefusalPart {
  type: "refusal";
  refusal: string;
}
/** What the user says. */
export interface UserMessage {
  role: "user";
  content: string | (TextPart | ImagePart | AudioPart | FilePart | RefusalPart)[];
  name?: string | null;
}
/** What the model said, or the calls that it asked for. */
export interface AssistantMessage {
  role: "assistant";
  content?: (string | (TextPart | ImagePart | AudioPart | FilePart | RefusalPart)[]) | null;
  tool_calls?: CallMessage[] | null;
  refusal?: string | null;
  name?: string | null;
}
/** A call that the model asked for. */
export interface CallMessage {
  id: string;
  type: "function";
  function: CalledFunction;
}
/** A call's function and the JSON text of its arguments, as the model wrote it. */
export interface CalledFunction {
  name: string;
  arguments: string;
}
/** A call's result. */
export interface ToolMessage {
  role: "tool";
  tool_call_id: string;
  content: string | (TextPart | ImagePart | AudioPart | FilePart | RefusalPart)[];
}
/** The model has to call this tool. */
export interface NamedToolChoice {
  type: "function";
  function: ToolChoiceFunction;
}
/** The function of a `NamedToolChoice`. */
export interface ToolChoiceFunction {
  name: string;
}
/** The models that a run may use. */
export interface ModelList {
  models: ModelView[];
  /** Patterns of further names; `*` matches any text. */
  patterns: string[];
  /** Whether a provider accepts any other name. */
  any_model: boolean;
}
/** A model that a run may use. */
export interface ModelView {
  /** The name to use in a run. */
  id: string;
  /** Used for runs that name no model. */
  is_default: boolean;
  /** The provider's name in the configuration. */
  provider: string;
  abilities: Abilities;
  /** The models that replace it while it is unavailable, in order. */
  fallbacks: string[];
  /** The configured price; null if none is set. */
  price: ModelPrice | null;
}
/** The abilities of a model and the form of its requests. The defaults are those of OpenAI. */
export interface Abilities {
  /** native: the model calls tools by the API; prompted: tools are described in the prompt; none: no tools are offered */
  tools?: "native" | "prompted" | "none";
  /** show a prompted model an example of a call first; very small models need it */
  worked_example?: boolean;
  /** the API accepts the parameter parallel_tool_calls; if not, it is not sent */
  parallel_tool_calls?: boolean;
  /** name of the parameter that limits the output */
  max_tokens_parameter?: "max_tokens" | "max_completion_tokens";
  /** the API accepts stream_options, which requests usage; some APIs send usage anyway and reject it */
  stream_options?: boolean;
  /** field in which the model's reasoning is sent back together with its calls; default: it is not sent back */
  reasoning_field?: ("reasoning_content" | "reasoning" | "reasoning_details") | null;
  /** call ids must have nine letters and digits (Mistral) */
  short_call_ids?: boolean;
  /**
   * parameters that the API rejects, such as temperature
   *
   * @maxItems 32
   */
  leave_out?: string[];
}
/** The price of a million tokens of a model. */
export interface ModelPrice {
  /** Prompt tokens. */
  input: number;
  /** Completion tokens. */
  output: number;
  /** Prompt tokens that the provider read from its cache. */
  cached: number;
  /** ISO 4217 code. */
  currency: string;
}
/** An error as problem details (RFC 9457). */
export interface Problem {
  /** The URL of the problem type's explanation, or `about:blank` if the status says everything. */
  type: string;
  /** The HTTP status. */
  status: number;
  /** What went wrong in this case, and what to do. */
  detail: string;
  /** A stable code for programs. */
  code: string;
  /** The invalid fields of the request. */
  errors?: FieldError[];
  /** The problem type in a few words. */
  title: string;
}
/** An invalid field. */
export interface FieldError {
  /** The field's path, such as `messages.0.content`; empty for the whole body. */
  field: string;
  /** What is wrong with it. */
  message: string;
}
/** A run after it was created, cancelled or decided upon. */
export interface RunAccepted {
  /** A ULID. */
  id: string;
  status: RunStatus;
  created_at: string;
  links: RunLinks;
}
/** The URLs of a run. */
export interface RunLinks {
  /** The run. */
  self: string;
  /** The run's event stream. */
  events: string;
  /** POST here to cancel the run. */
  cancel: string;
}
/** A page of runs, newest first. */
export interface RunList {
  runs: RunSummary[];
  /** Pass it as `before` to get the next page; null on the last page. A page with fewer runs than `limit` is not necessarily the last one. */
  next: string | null;
}
/** A run in a list. */
export interface RunSummary {
  /** A ULID. */
  id: string;
  status: RunStatus;
  created_at: string;
  links: RunLinks;
  /** The model's name, or `extraction=<name>,synthesis=<name>`. */
  model: string;
  started_at: string | null;
  finished_at: string | null;
  /** The beginning of the last user message, at most 200 characters. */
  prompt: string;
  /** Tokens over all stages. */
  usage: Usage | null;
  /** Set if the run has failed. */
  error: RunError | null;
  /** The client's own key-value pairs. */
  metadata: {
    [k: string]: string;
  };
}
/** Tokens as the providers count them, summed over the stages. */
export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  /** part of prompt_tokens that the provider had cached; absent if no provider reports it */
  cached_tokens?: number | null;
  /** cost of all these tokens; absent if one of the models has no price */
  cost?: Cost | null;
}
/** The cost of tokens by the operator's prices. */
export interface Cost {
  amount: number;
  /** ISO 4217 code, such as EUR */
  currency: string;
}
/** Why a run failed. */
export interface RunError {
  /** A message for people. */
  error: string;
  /** A stable code for programs. */
  code: string;
}
/** A run with its stages and its result. */
export interface RunView {
  /** A ULID. */
  id: string;
  status: RunStatus;
  created_at: string;
  links: RunLinks;
  /** The model's name, or `extraction=<name>,synthesis=<name>`. */
  model: string;
  started_at: string | null;
  finished_at: string | null;
  /** The beginning of the last user message, at most 200 characters. */
  prompt: string;
  /** Tokens over all stages. */
  usage: Usage | null;
  /** Set if the run has failed. */
  error: RunError | null;
  /** The client's own key-value pairs. */
  metadata: {
    [k: string]: string;
  };
  /** The number of the latest attempt. It only grows. */
  attempt: number;
  /** How many attempts followed the crash of a worker. */
  tries: number;
  cancel_requested: boolean;
  /** The cursor at the end of the run's log. */
  last_event_id: string;
  stages: StageView[];
  /** Calls and questions that wait for a person. */
  pending_approvals: PendingApproval[];
  /** Set if the run has succeeded. */
  result: RunResult | null;
}
/** A stage of a run. */
export interface StageView {
  stage_id: string;
  /** `incomplete`: the run ended before the stage did. */
  status: "running" | "completed" | "incomplete";
  /** The id of the stage's first event. */
  first_id: string;
  /** Tokens of this stage. */
  usage: Usage | null;
  /** The model that answered, by the provider's name for it. */
  model: string | null;
  /** The provider that answered, by its name in the configuration. */
  provider: string | null;
  /** The URL of the stage's event stream. */
  events: string;
}
/** A call that waits for a person's decision. */
export interface PendingApproval {
  call_id: string;
  /** The tool's name. */
  name: string;
  /** The call's arguments as JSON text; null for a question. */
  arguments: string | null;
  /** The model's question; null for a call that needs approval. */
  question: string | null;
  /** The call is denied if there is no decision by this time. */
  expires_at: string;
  /** POST the decision here. */
  url: string;
}
/** A run's result. */
export interface RunResult {
  /** The model's answer. */
  text: string;
}
/** The whole system; what workers and gateways say of themselves is a few seconds old. */
export interface Stats {
  queue: QueueStats;
  workers: WorkerStats[];
  /** over all gateways */
  streams_open: number;
  totals: Totals;
}
/** The runs that have not ended, by what they wait for. */
export interface QueueStats {
  /** due, and in no worker's hands */
  waiting: number;
  /** due, but their tenant has enough running */
  held_back: number;
  /** in a worker's hands, or left behind by one that died */
  running: number;
  /** they wait for a person */
  parked: number;
}
/** A worker, as it spoke of itself last. */
export interface WorkerStats {
  /** host:pid */
  name: string;
  /** how many runs it takes at most */
  concurrency: number;
  runs: HeldRunStats[];
  seen_ms_ago: number;
}
/** A run that a worker holds. */
export interface HeldRunStats {
  id: string;
  attempt: number;
  /** unless it is renewed; below 0: another worker may take the run */
  lease_ends_in_ms: number;
}
/** What all runs came to that have ended since Redis was new. */
export interface Totals {
  events: number;
  runs_succeeded: number;
  runs_failed: number;
  runs_cancelled: number;
  tokens: number;
}
/** A ticket for one run. */
export interface TicketView {
  /** The ticket's id in logs and for revocation. Not a secret. */
  id: string;
  /** The secret: the query parameter `ticket` of the run's URL and of its event streams. */
  ticket: string;
  expires_at: string;
  links: TicketLinks;
}
/** The URLs that a ticket opens. */
export interface TicketLinks {
  /** The run's event stream, for an `EventSource`. */
  events: string;
  /** The web page that shows the run, for sharing. */
  page: string;
}
/** The tools that a run may use. */
export interface ToolList {
  tools: ToolDescription[];
}
/** A tool as a model, and a client of `GET /tools`, is told of it. */
export interface ToolDescription {
  name: string;
  description: string;
  /** the JSON Schema of its arguments */
  parameters: {
    [k: string]: unknown;
  };
  /** whether a call waits for a person's approval */
  requires_approval?: boolean;
}
/** A person decided on a call that waited, or the time ran out. One event for each call; the first decision is final. */
export interface ApprovalDecidedData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the clocks of two machines differ; absent in logs of older versions */
  at?: number | null;
  call_id: string;
  decision: "approve" | "deny" | "answer";
  /** nobody decided in time, so the call is denied */
  is_expired: boolean;
  /** JSON text that replaces the model's arguments, if they were changed */
  arguments?: string | null;
  /** reason of a denial; the model gets it */
  reason?: string | null;
  /** the answer to the model's question */
  text?: string | null;
}
/**
 * A tool call waits for a person's approval. One event for each such call.
 *
 * Once the run has nothing else to do, it is parked: no worker holds it until a decision arrives. At `expires_at` the
 * call is denied.
 */
export interface ApprovalRequiredData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the clocks of two machines differ; absent in logs of older versions */
  at?: number | null;
  call_id: string;
  /** name of the tool */
  name: string;
  /** JSON text, as the model wrote it */
  arguments: string;
  /** Unix ms by the clock of Redis */
  expires_at: number;
}
/** The run was cancelled. Terminal. */
export interface CancelData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the clocks of two machines differ; absent in logs of older versions */
  at?: number | null;
}
/** The fields that are equal in all chat completion chunks of a stage. `?chunks=full` puts them back into each chunk. */
export interface ChunkTemplate {
  id: string;
  object: "chat.completion.chunk";
  /** Unix seconds */
  created: number;
  model: string;
}
/** The run succeeded. Terminal. */
export interface DoneData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the clocks of two machines differ; absent in logs of older versions */
  at?: number | null;
  usage: Usage;
}
/**
 * The run failed. Terminal.
 *
 * The browser's EventSource fires an `error` event of its own when the connection breaks. Only this one has `data`.
 */
export interface ErrorData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the clocks of two machines differ; absent in logs of older versions */
  at?: number | null;
  /** the reason in words, without secrets or provider internals */
  error: string;
  /** stable; one of the codes in docs/design.md */
  code: string;
  /** the stage that failed */
  failed_stage?: string | null;
}
/**
 * The client's cursor is not in the run's log, because events were trimmed or lost. A frame without an id.
 *
 * The stream continues at `earliest`. Discard the events that you have from that sequence on.
 */
export interface GapData {
  /** the cursor that the client sent */
  requested: string;
  /** the first id of the log */
  earliest: string;
  /** the last id of the log */
  latest: string;
}
/** The model asks a person a question with the tool `ask_user`. The run is parked as it is for an approval. */
export interface InputRequiredData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the clocks of two machines differ; absent in logs of older versions */
  at?: number | null;
  call_id: string;
  /** the question, as the model wrote it */
  question: string;
  /** Unix ms by the clock of Redis */
  expires_at: number;
}
/** The `result` of the stages extraction and synthesis. */
export interface ModelStageResult {
  text: string;
  tool_calls: ToolCallRequest[];
  finish_reason?: string | null;
  /** the model that answered, as the provider calls it */
  model?: string | null;
  /** the provider that answered, as the providers file calls it */
  provider?: string | null;
  /** the model's reasoning before the calls; kept only if the provider needs it back */
  reasoning?: string | null;
  /** the same as blocks in the provider's format, kept only if it needs them back */
  reasoning_details?:
    | {
        [k: string]: unknown;
      }[]
    | null;
}
/** A tool call requested by the model. */
export interface ToolCallRequest {
  /** unique in the run, even if the provider repeats its ids */
  id: string;
  /** name of the tool */
  name: string;
  /** JSON text, as the model wrote it */
  arguments: string;
  /** data of the provider that later requests must return to it, such as Gemini's thought_signature */
  extra_content?: {
    [k: string]: unknown;
  } | null;
}
/**
 * A stage failed for a temporary reason and is retried, after a backoff or immediately with a fallback model.
 *
 * A stage is also retried, immediately, if a model with `tools = "prompted"` wrote an invalid tool call.
 */
export interface RetryScheduledData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the clocks of two machines differ; absent in logs of older versions */
  at?: number | null;
  /** the stage that is retried */
  retry_of: string;
  /** 1 for the first retry */
  retry: number;
  /** seconds until the retry */
  backoff_s: number;
  /** why the stage failed */
  reason: string;
  /** the fallback model, if the retry uses one */
  model?: string | null;
}
/** The run is accepted and stored. Always the first event, with the id `0-1`. */
export interface RunQueuedData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the clocks of two machines differ; absent in logs of older versions */
  at?: number | null;
  run_id: string;
  /** the requested model, or `extraction=…,synthesis=…` if the stages use two */
  model: string;
}
/** A worker has claimed the run. One event for each attempt. */
export interface RunStartedData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the clocks of two machines differ; absent in logs of older versions */
  at?: number | null;
  /** number of the attempt; it only grows */
  attempt: number;
  /** name of the worker */
  worker: string;
}
/** A stage is complete and never runs again. The last event of its stream, except for a terminal event. */
export interface StageCompletedData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the clocks of two machines differ; absent in logs of older versions */
  at?: number | null;
  /** the input of later stages: a ModelStageResult or a ToolStageResult */
  result: {
    [k: string]: unknown;
  };
  usage?: Usage | null;
  /** duration of the stage in the attempt that completed it, with retries and waits, by a monotonic clock; absent in logs of older versions */
  duration_ms?: number | null;
}
/**
 * An unfinished stage starts again. This is the first event of the new try.
 *
 * Discard the earlier events of this stage whose sequence is `discard_from` or higher; its `stage_started` stays valid.
 * The tools stage resumes from its stored results and discards nothing: `discard_from` is then this event's own
 * sequence.
 */
export interface StageRestartedData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the clocks of two machines differ; absent in logs of older versions */
  at?: number | null;
  /** the attempt that runs the stage now */
  attempt: number;
  /** first sequence to discard */
  discard_from: number;
}
/** A stage begins. */
export interface StageStartedData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the clocks of two machines differ; absent in logs of older versions */
  at?: number | null;
  /** the attempt that runs the stage */
  attempt: number;
  /** the fields that the stage's chunks leave out */
  chunk?: ChunkTemplate | null;
}
/** A tool is about to run. One event for each call, even if several attempts run it. */
export interface ToolCallData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the clocks of two machines differ; absent in logs of older versions */
  at?: number | null;
  call_id: string;
  /** name of the tool */
  name: string;
  /** JSON text, as the model wrote it or as an approval changed it */
  arguments: string;
}
/** One chat completion chunk of the model's output, without the fields of `ChunkTemplate`. */
export interface ToolCompletionChunkData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** a chat completion chunk */
  tool_results: {
    [k: string]: unknown;
  };
}
/** A tool call with its result. */
export interface ToolOutcome {
  call_id: string;
  /** name of the tool */
  name: string;
  /** JSON text */
  arguments: string;
  /** the result as the model gets it; at most the tool's max_result_bytes of UTF-8 */
  content: string;
  is_error: boolean;
}
/** The progress of a running call, reported by the tool. Comes between the call and its result; the newest one counts. */
export interface ToolProgressData {
  /** the stage whose stream contains this event */
  stage_id: string;
  call_id: string;
  /** text for people; the model does not get it */
  message: string;
  /** finished part of the work, from 0 to 1, if the tool knows it */
  fraction?: number | null;
}
/**
 * A tool call has a result. The run never executes this call again.
 *
 * Exactly one event for each call, in the order in which the calls end.
 */
export interface ToolResultData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the clocks of two machines differ; absent in logs of older versions */
  at?: number | null;
  call_id: string;
  /** name of the tool */
  name: string;
  /** the result as the model gets it; at most the tool's max_result_bytes of UTF-8 */
  content: string;
  is_error: boolean;
  /** duration of the call, by a monotonic clock */
  duration_ms: number;
  /** id of an earlier call of the round with the same name and arguments, which ran for both */
  same_as?: string | null;
}
/** The `result` of the stage tools. */
export interface ToolStageResult {
  outcomes: ToolOutcome[];
}
/** All calls of a round with their results, in the order of the model's requests. */
export interface ToolSummaryData {
  /** the stage whose stream contains this event */
  stage_id: string;
  /** time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the clocks of two machines differ; absent in logs of older versions */
  at?: number | null;
  tool_summary: ToolOutcome[];
}

/** The data of each event, by its name. */
export interface EventDataByName {
  run_queued: RunQueuedData;
  run_started: RunStartedData;
  retry_scheduled: RetryScheduledData;
  stage_started: StageStartedData;
  stage_restarted: StageRestartedData;
  tool_completion_chunk: ToolCompletionChunkData;
  approval_required: ApprovalRequiredData;
  input_required: InputRequiredData;
  approval_decided: ApprovalDecidedData;
  tool_call: ToolCallData;
  tool_progress: ToolProgressData;
  tool_result: ToolResultData;
  tool_summary: ToolSummaryData;
  stage_completed: StageCompletedData;
  done: DoneData;
  cancel: CancelData;
  error: ErrorData;
}

/** Every event that a log may hold. A plain EventSource gives only those that are asked for by name. */
export const EVENT_NAMES = [
  "run_queued",
  "run_started",
  "retry_scheduled",
  "stage_started",
  "stage_restarted",
  "tool_completion_chunk",
  "approval_required",
  "input_required",
  "approval_decided",
  "tool_call",
  "tool_progress",
  "tool_result",
  "tool_summary",
  "stage_completed",
  "done",
  "cancel",
  "error",
] as const;

/** Those that end a run: one of them, always last. */
export const TERMINAL_NAMES: ReadonlySet<string> = new Set([
  "cancel",
  "done",
  "error",
]);
