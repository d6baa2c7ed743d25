// Made by `make client` out of the gateway's own schemas. Do not edit.

/** Where a run is in its life; the `status` field of its record. */
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
/** The models that a run may name. */
export interface ModelList {
  models: ModelView[];
  /** further names, where a * stands for anything */
  patterns: string[];
  /** whether any other name goes to a provider as it is */
  any_model: boolean;
}
/** A model that a run may name. */
export interface ModelView {
  id: string;
  is_default: boolean;
  /** who serves it, as the operator calls them */
  provider: string;
  abilities: Abilities;
  /** what is asked in its place while it is down, in order */
  fallbacks: string[];
  /** the operator's; null where none is set */
  price: ModelPrice | null;
}
/** What a model can do and how it wants to be asked. The defaults are OpenAI's own ways. */
export interface Abilities {
  /** native: it calls tools itself; prompted: it is told how in words; none: it is offered none */
  tools?: "native" | "prompted" | "none";
  /** a prompted model is shown a call before the conversation; very small ones need it */
  worked_example?: boolean;
  /** it can ask for several calls at once; if not, the parameter is not sent */
  parallel_tool_calls?: boolean;
  /** what the limit on its output is called */
  max_tokens_parameter?: "max_tokens" | "max_completion_tokens";
  /** it takes stream_options, which asks for usage; some send usage unasked and reject it */
  stream_options?: boolean;
  /** where its reasoning is given back to it together with its calls; else it is not */
  reasoning_field?: ("reasoning_content" | "reasoning" | "reasoning_details") | null;
  /** ids of calls must be nine letters and digits (Mistral) */
  short_call_ids?: boolean;
  /**
   * parameters that it rejects: temperature, say
   *
   * @maxItems 32
   */
  leave_out?: string[];
}
/** What a million tokens of a model cost. */
export interface ModelPrice {
  input: number;
  output: number;
  /** of those tokens of a prompt that the provider had at hand */
  cached: number;
  /** ISO 4217 */
  currency: string;
}
/** An error, RFC 9457. */
export interface Problem {
  /** stable; a URL that says more, or about:blank where the status says it all */
  type: string;
  status: number;
  /** what to do */
  detail: string;
  /** stable */
  code: string;
  /** the fields that do not hold */
  errors?: FieldError[];
  title: string;
}
/** What is wrong with one field. */
export interface FieldError {
  /** its path, such as messages.0.content; empty for the whole body */
  field: string;
  message: string;
}
/** A run that exists: made, or asked to stop. */
export interface RunAccepted {
  id: string;
  status: RunStatus;
  created_at: string;
  links: RunLinks;
}
/** Where to go on from a run. */
export interface RunLinks {
  self: string;
  events: string;
  cancel: string;
}
/** Runs, newest first. */
export interface RunList {
  runs: RunSummary[];
  /** give it as `before` for the next page, which there is even where this one is short; null on the last one */
  next: string | null;
}
/** A run in a list. */
export interface RunSummary {
  id: string;
  status: RunStatus;
  created_at: string;
  links: RunLinks;
  model: string;
  started_at: string | null;
  finished_at: string | null;
  /** how the last user message begins, at most 200 characters */
  prompt: string;
  usage: Usage | null;
  error: RunError | null;
  metadata: {
    [k: string]: string;
  };
}
/** Tokens as the provider counted them, summed over the stages. */
export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  /** those of prompt_tokens that the provider had at hand; absent where none says so */
  cached_tokens?: number | null;
  /** of all these tokens, by the models that answered; absent where one has no price */
  cost?: Cost | null;
}
/** What tokens cost, by the operator's prices. */
export interface Cost {
  amount: number;
  /** ISO 4217, such as EUR */
  currency: string;
}
/** Why a run failed; `code` is stable. */
export interface RunError {
  error: string;
  code: string;
}
/** A run. */
export interface RunView {
  id: string;
  status: RunStatus;
  created_at: string;
  links: RunLinks;
  model: string;
  started_at: string | null;
  finished_at: string | null;
  /** how the last user message begins, at most 200 characters */
  prompt: string;
  usage: Usage | null;
  error: RunError | null;
  metadata: {
    [k: string]: string;
  };
  /** the number of the last claim; it only grows */
  attempt: number;
  /** claims that followed a worker's death */
  tries: number;
  cancel_requested: boolean;
  /** the cursor at the end of its log */
  last_event_id: string;
  stages: StageView[];
  /** what the run asks persons now */
  pending_approvals: PendingApproval[];
  /** set once the run has succeeded */
  result: RunResult | null;
}
/** A stage of a run. */
export interface StageView {
  stage_id: string;
  /** incomplete: the run ended before the stage did */
  status: "running" | "completed" | "incomplete";
  /** the id of its first event */
  first_id: string;
  usage: Usage | null;
  /** which model answered, as its provider names it */
  model: string | null;
  /** which provider answered, as the operator calls it */
  provider: string | null;
  /** where its own stream is */
  events: string;
}
/** A call that waits for a person. */
export interface PendingApproval {
  call_id: string;
  /** the tool */
  name: string;
  /** JSON text, as the model wrote it; null where it asks a question */
  arguments: string | null;
  /** what the model asks; null where a call wants an approval */
  question: string | null;
  /** when the call counts as denied */
  expires_at: string;
  /** where to POST the decision */
  url: string;
}
/** What a run came to. */
export interface RunResult {
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
  /** names it in logs, and where it is taken back */
  id: string;
  /** goes into the query, as `ticket`, of the run's URL and of its streams' */
  ticket: string;
  expires_at: string;
  links: TicketLinks;
}
/** Where a ticket leads. */
export interface TicketLinks {
  /** the run's stream, for an EventSource */
  events: string;
  /** the page that shows the run, to pass on */
  page: string;
}
/** The tools that a run may name. */
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
/** A call that waited was decided upon. One for each; the first decision stands. */
export interface ApprovalDecidedData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of their ids, and two machines' clocks differ. Absent in logs of older versions */
  at?: number | null;
  call_id: string;
  decision: "approve" | "deny" | "answer";
  /** nobody decided in time, which denies */
  is_expired: boolean;
  /** JSON text in the place of the model's, if it was changed */
  arguments?: string | null;
  /** why it was denied, as the model is told */
  reason?: string | null;
  /** the answer to the model's question */
  text?: string | null;
}
/**
 * A call waits for a person's approval. One for each call that does.
 *
 * The run parks once nothing else is left to do: it holds no worker until a decision
 * comes, or `expires_at`, when the call counts as denied.
 */
export interface ApprovalRequiredData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of their ids, and two machines' clocks differ. Absent in logs of older versions */
  at?: number | null;
  call_id: string;
  name: string;
  /** JSON text, as the model wrote it */
  arguments: string;
  /** Unix ms, by Redis's clock */
  expires_at: number;
}
/** The run was cancelled. Terminal. */
export interface CancelData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of their ids, and two machines' clocks differ. Absent in logs of older versions */
  at?: number | null;
}
/** What every chat completion chunk of a stage repeats; `?chunks=full` puts it back. */
export interface ChunkTemplate {
  id: string;
  object: "chat.completion.chunk";
  /** Unix seconds */
  created: number;
  model: string;
}
/** The run succeeded. Terminal. */
export interface DoneData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of their ids, and two machines' clocks differ. Absent in logs of older versions */
  at?: number | null;
  usage: Usage;
}
/**
 * The run failed; `error` says why without secrets or provider internals. Terminal.
 *
 * `error` is also the name of EventSource's own connection event: a client tells
 * them apart by `data`, which only this one has.
 */
export interface ErrorData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of their ids, and two machines' clocks differ. Absent in logs of older versions */
  at?: number | null;
  error: string;
  /** stable: one of the codes in docs/design.md */
  code: string;
  failed_stage?: string | null;
}
/**
 * A frame, not an event: the cursor does not stand in the run's log (trimmed or lost).
 *
 * It has no id. The stream goes on from `earliest`; the client drops what it has
 * from that sequence on.
 */
export interface GapData {
  requested: string;
  earliest: string;
  latest: string;
}
/** The model asks a person, by the tool `ask_user`. The run parks as it does for an approval. */
export interface InputRequiredData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of their ids, and two machines' clocks differ. Absent in logs of older versions */
  at?: number | null;
  call_id: string;
  question: string;
  /** Unix ms, by Redis's clock */
  expires_at: number;
}
/** The `result` of extraction and synthesis. */
export interface ModelStageResult {
  text: string;
  tool_calls: ToolCallRequest[];
  finish_reason?: string | null;
  /** as the provider names it */
  model?: string | null;
  /** who answered, as the providers file names it */
  provider?: string | null;
  /** what led to the calls; kept only for a provider that wants it back */
  reasoning?: string | null;
  /** the same in the provider's own blocks, for one that wants those back */
  reasoning_details?:
    | {
        [k: string]: unknown;
      }[]
    | null;
}
/** A call that the model asks for. */
export interface ToolCallRequest {
  /** unique in the run, whatever the provider sent */
  id: string;
  name: string;
  /** JSON text, as the model wrote it */
  arguments: string;
  /** the provider's own notes on the call, which it wants back (Gemini's thought_signature) */
  extra_content?: {
    [k: string]: unknown;
  } | null;
}
/**
 * A stage failed in a way that may pass; it is done again after the backoff, or by another model at once.
 *
 * So it is, at once, where a model that calls tools in words wrote a call that cannot be carried out.
 */
export interface RetryScheduledData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of their ids, and two machines' clocks differ. Absent in logs of older versions */
  at?: number | null;
  /** the stage that is done again */
  retry_of: string;
  /** 1 for the first retry */
  retry: number;
  backoff_s: number;
  reason: string;
  /** the fallback that is asked now, where it is one */
  model?: string | null;
}
/** The run exists: accepted, and never lost from here on. Always the first event, `0-1`. */
export interface RunQueuedData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of their ids, and two machines' clocks differ. Absent in logs of older versions */
  at?: number | null;
  run_id: string;
  model: string;
}
/** A worker has claimed the run; one for each attempt that went to work. */
export interface RunStartedData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of their ids, and two machines' clocks differ. Absent in logs of older versions */
  at?: number | null;
  attempt: number;
  worker: string;
}
/** A stage is done and never done again; always its stream's last event but for a run's end. */
export interface StageCompletedData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of their ids, and two machines' clocks differ. Absent in logs of older versions */
  at?: number | null;
  /** what later stages need: see ModelStageResult and ToolStageResult */
  result: {
    [k: string]: unknown;
  };
  usage?: Usage | null;
  /** how long the attempt that completed it was at it, retries and waits included; monotonic. Absent in logs of older versions */
  duration_ms?: number | null;
}
/**
 * An unfinished stage is done again; the first event of its new go.
 *
 * Every event of this stage from sequence `discard_from` on that came before this one
 * is void; its `stage_started` still holds. A stage that resumes from checkpoints voids
 * nothing: `discard_from` is then this event's own sequence.
 */
export interface StageRestartedData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of their ids, and two machines' clocks differ. Absent in logs of older versions */
  at?: number | null;
  attempt: number;
  discard_from: number;
}
/** A stage begins. `chunk` stands for what its stored chunks leave out. */
export interface StageStartedData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of their ids, and two machines' clocks differ. Absent in logs of older versions */
  at?: number | null;
  attempt: number;
  chunk?: ChunkTemplate | null;
}
/** A tool is about to run. One for each call, whatever attempt runs it. */
export interface ToolCallData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of their ids, and two machines' clocks differ. Absent in logs of older versions */
  at?: number | null;
  call_id: string;
  name: string;
  /** JSON text, as the model wrote it or an approval changed it */
  arguments: string;
}
/** One chat completion chunk of the model's output, lean: see `ChunkTemplate`. */
export interface ToolCompletionChunkData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** a chat completion chunk */
  tool_results: {
    [k: string]: unknown;
  };
}
/** What became of one call. */
export interface ToolOutcome {
  call_id: string;
  name: string;
  arguments: string;
  /** what the model is told; at most the tool's max_result_bytes of UTF-8 */
  content: string;
  is_error: boolean;
}
/** How far a call is, in its tool's own words. Between the call and its result; the newest one counts. */
export interface ToolProgressData {
  /** the stage whose stream holds this event */
  stage_id: string;
  call_id: string;
  message: string;
  /** of the work, where the tool knows */
  fraction?: number | null;
}
/**
 * One tool call has its result; the run never executes this call again.
 *
 * Exactly one per call, in the order in which the calls end.
 */
export interface ToolResultData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of their ids, and two machines' clocks differ. Absent in logs of older versions */
  at?: number | null;
  call_id: string;
  name: string;
  /** what the model is told; at most the tool's max_result_bytes of UTF-8 */
  content: string;
  is_error: boolean;
  /** for how long the call ran; monotonic */
  duration_ms: number;
  /** the earlier call of the round, with the same name and arguments, that ran for both */
  same_as?: string | null;
}
/** The `result` of tools. */
export interface ToolStageResult {
  outcomes: ToolOutcome[];
}
/** All calls of the round with their results, in the order in which the model asked. */
export interface ToolSummaryData {
  /** the stage whose stream holds this event */
  stage_id: string;
  /** Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of their ids, and two machines' clocks differ. Absent in logs of older versions */
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
