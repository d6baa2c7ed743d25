// One run: its events, its result, and the requests about it.

import { RunCancelledError, RunFailedError, StagebusError } from "./client_errors.js";
import { answering, type ClientTools } from "./client_tools.js";
import type { FollowOptions } from "./follow.js";
import { follow, type RunUpdate } from "./stream_follower.js";
import type { CallOptions, Http, WaitOptions } from "./http.js";
import type { GapEvent, RunEvent } from "./event_sequencer.js";
import type { RunAccepted, RunExplanation, RunExport, RunView, TicketView } from "./schema.js";
import { RunWatch, type WatchOptions } from "./run_watch.js";

const EXPORT_MAX_MS = 300_000;

export interface AnsweringOptions extends FollowOptions {
  /** Functions that answer the calls of the run's client tools meanwhile; a function returns those for the next call. */
  tools?: ClientTools | (() => ClientTools) | undefined;
}

export interface RunOptions {
  /** Events after this cursor are received; default: all. */
  cursor?: string;
  /** The run was just created. */
  isNew?: boolean;
}

export type Decision =
  /** `arguments` replace the model's. */
  | { decision: "approve"; arguments?: Record<string, unknown> }
  /** The same as JSON text, in which integers may be larger than JavaScript's numbers can be. */
  | { decision: "approve"; argumentsJson: string }
  | { decision: "deny"; reason?: string }
  | { decision: "answer"; text: string };

/** Returns the JSON of a decision. Throws SyntaxError if its `argumentsJson` is not JSON. */
function encodeDecision(decision: Decision): string {
  if (!("argumentsJson" in decision)) return JSON.stringify(decision);
  JSON.parse(decision.argumentsJson);
  return `{"decision":${JSON.stringify(decision.decision)},"arguments":${decision.argumentsJson}}`;
}

export interface ResultOptions extends CallOptions {
  content: string;
  /** The call failed, and `content` says why. */
  isError?: boolean;
  ref?: string;
}

export interface TicketOptions extends CallOptions {
  /** For a link to pass on; valid for longer. */
  share?: boolean;
  ttlS?: number;
  /** Its holder may also give the results of waiting calls. */
  calls?: boolean;
}

export class Run {
  readonly id: string;
  readonly #http: Http;
  readonly #cursor: string;
  #isNew: boolean;

  constructor(http: Http, id: string, { cursor = "", isNew = false }: RunOptions = {}) {
    this.id = id;
    this.#http = http;
    this.#cursor = cursor;
    this.#isNew = isNew;
  }

  /**
   * Yields the run's events, each once and in order, to the terminal one.
   *
   * A `gap` between them means that the log lost events: discard those from its `sequence` on.
   */
  async *events(options: AnsweringOptions = {}): AsyncGenerator<RunEvent | GapEvent> {
    for await (const update of this.updates(options)) if (update.name !== "connection") yield update;
  }

  [Symbol.asyncIterator](): AsyncGenerator<RunEvent | GapEvent> {
    return this.events();
  }

  /** Yields the events and changes of the connection, as `reduce` takes them. */
  updates({ tools, ...options }: AnsweringOptions = {}): AsyncGenerator<RunUpdate> {
    const isNew = this.#isNew;
    this.#isNew = false; // a second reader gets replayed events
    const updates = follow(this.#http, `${this.#path}/events`, { from: this.#cursor, ...options }, isNew);
    return tools ? answering(updates, this.#http, this.id, tools) : updates;
  }

  /** Follows the run in the background and keeps its state. */
  watch(options: WatchOptions = {}): RunWatch {
    return new RunWatch((following) => this.updates(following), options);
  }

  /** Gets the run's record, with `waitS` when the run has ended or waits for a person. */
  get(options: WaitOptions = {}): Promise<RunView> {
    return this.#http.call(options.waitS ? `${this.#path}?wait=${options.waitS}` : this.#path, options);
  }

  /** Waits for the end and returns the record with its `result`. Throws `RunFailedError` or `RunCancelledError`. */
  async result({ signal, tools }: Pick<AnsweringOptions, "signal" | "tools"> = {}): Promise<RunView> {
    const record = await this.get({ signal });
    const from = tools ? "0" : record.last_event_id; // calls may wait already
    const ended = record.finished_at === null ? await this.#waitForEnd({ from, signal, tools }) : record;
    const text = ended.result?.text;
    if (ended.status === "cancelled") throw new RunCancelledError(this.id, ended.cancel_reason, text);
    if (ended.error) throw new RunFailedError(this.id, ended.error.error, ended.error.code, text);
    return ended;
  }

  /** Waits for the end and returns the answer's text. Throws as `result` does. */
  async text(options: Pick<AnsweringOptions, "signal" | "tools"> = {}): Promise<string> {
    const { result } = await this.result(options);
    return result?.text ?? "";
  }

  /** Cancels the run; its `cancel` event confirms the end and has the reason. */
  cancel({ reason, ...options }: CallOptions & { reason?: string } = {}): Promise<RunAccepted> {
    const body = reason === undefined ? undefined : { reason };
    return this.#http.call(`${this.#path}/cancel`, { ...options, method: "POST", body });
  }

  /** Gets what has happened to the run (`story`), what it waits for (`waits_for`, `now`), and what would move it (`next`). */
  explain(options: CallOptions = {}): Promise<RunExplanation> {
    return this.#http.call(`${this.#path}/explain`, options);
  }

  /** Exports the run as one document: its record, its request and all its events. */
  export(options: CallOptions = {}): Promise<RunExport> {
    return this.#http.call(`${this.#path}/export`, { ...options, answerMaxMs: EXPORT_MAX_MS });
  }

  /** Deletes the run and all that is stored of it; an active one is cancelled first. Safe to repeat for an hour. */
  delete(options: CallOptions = {}): Promise<void> {
    return this.#http.call(this.#path, { ...options, method: "DELETE" });
  }

  /** Decides on a waiting call: `approve` or `deny` a tool call, `answer` or `deny` a question. */
  decide(callId: string, decision: Decision, options: CallOptions = {}): Promise<RunAccepted> {
    const path = `${this.#path}/approvals/${encodeURIComponent(callId)}`;
    return this.#http.call(path, { ...options, method: "POST", body: encodeDecision(decision) });
  }

  /**
   * Gives the result of a call that waits for it; the first one is final. `ref`, that of the call, tells it from one of the
   * same id after a loss of data.
   */
  giveResult(callId: string, { content, isError = false, ref, ...options }: ResultOptions): Promise<{ run_id: string; call_id: string }> {
    const path = `${this.#path}/calls/${encodeURIComponent(callId)}/result`;
    const body = { content, is_error: isError, ...(ref !== undefined && { ref }) };
    return this.#http.call(path, { ...options, method: "POST", body });
  }

  /** Creates a ticket that gives read access to this run: for a plain EventSource, or to pass on. */
  ticket({ share, ttlS, calls, ...options }: TicketOptions = {}): Promise<TicketView> {
    const body = {
      ...(share !== undefined && { share }), ...(ttlS !== undefined && { ttl_s: ttlS }), ...(calls !== undefined && { calls }),
    };
    return this.#http.call(`${this.#path}/ticket`, { ...options, method: "POST", body });
  }

  /** Revokes a ticket by its `id` and ends the streams opened with it. */
  revokeTicket(ticketId: string, options: CallOptions = {}): Promise<void> {
    return this.#http.call(`${this.#path}/ticket/${encodeURIComponent(ticketId)}`, { ...options, method: "DELETE" });
  }

  get #path(): string {
    return `/runs/${encodeURIComponent(this.id)}`;
  }

  async #waitForEnd(options: AnsweringOptions): Promise<RunView> {
    for await (const _ of this.events(options)) continue;
    const record = await this.get({ signal: options.signal });
    if (record.finished_at === null) throw new StagebusError(`the stream of run ${this.id} ended before the run did`);
    return record;
  }
}
