// One run: its events, its result, and the requests about it.

import { RunCancelledError, RunFailedError, StagebusError } from "./client_errors.js";
import { follow, type FollowOptions, type RunUpdate } from "./stream_follower.js";
import type { CallOptions, Http, WaitOptions } from "./http.js";
import type { GapEvent, RunEvent } from "./event_sequencer.js";
import type { RunAccepted, RunExport, RunView, TicketView } from "./schema.js";
import { RunWatch, type WatchOptions } from "./run_watch.js";

const EXPORT_MAX_MS = 300_000;

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

export interface TicketOptions extends CallOptions {
  /** For a link to pass on; valid for longer. */
  share?: boolean;
  ttlS?: number;
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
  async *events(options: FollowOptions = {}): AsyncGenerator<RunEvent | GapEvent> {
    for await (const update of this.updates(options)) if (update.name !== "connection") yield update;
  }

  [Symbol.asyncIterator](): AsyncGenerator<RunEvent | GapEvent> {
    return this.events();
  }

  /** Yields the events and changes of the connection, as `reduce` takes them. */
  updates(options: FollowOptions = {}): AsyncGenerator<RunUpdate> {
    const isNew = this.#isNew;
    this.#isNew = false; // a second reader gets replayed events
    return follow(this.#http, `${this.#path}/events`, { from: this.#cursor, ...options }, isNew);
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
  async result({ signal }: { signal?: AbortSignal } = {}): Promise<RunView> {
    const record = await this.get({ signal });
    const ended = record.finished_at === null ? await this.#waitForEnd(record.last_event_id, signal) : record;
    const text = ended.result?.text;
    if (ended.status === "cancelled") throw new RunCancelledError(this.id, ended.cancel_reason, text);
    if (ended.error) throw new RunFailedError(this.id, ended.error.error, ended.error.code, text);
    return ended;
  }

  /** Waits for the end and returns the answer's text. Throws as `result` does. */
  async text(options: { signal?: AbortSignal } = {}): Promise<string> {
    const { result } = await this.result(options);
    return result?.text ?? "";
  }

  /** Cancels the run; its `cancel` event confirms the end and has the reason. */
  cancel({ reason, ...options }: CallOptions & { reason?: string } = {}): Promise<RunAccepted> {
    const body = reason === undefined ? undefined : { reason };
    return this.#http.call(`${this.#path}/cancel`, { ...options, method: "POST", body });
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

  /** Creates a ticket that gives read access to this run: for a plain EventSource, or to pass on. */
  ticket({ share, ttlS, ...options }: TicketOptions = {}): Promise<TicketView> {
    const body = { ...(share !== undefined && { share }), ...(ttlS !== undefined && { ttl_s: ttlS }) };
    return this.#http.call(`${this.#path}/ticket`, { ...options, method: "POST", body });
  }

  /** Revokes a ticket by its `id` and ends the streams opened with it. */
  revokeTicket(ticketId: string, options: CallOptions = {}): Promise<void> {
    return this.#http.call(`${this.#path}/ticket/${encodeURIComponent(ticketId)}`, { ...options, method: "DELETE" });
  }

  get #path(): string {
    return `/runs/${encodeURIComponent(this.id)}`;
  }

  async #waitForEnd(from: string, signal: AbortSignal | undefined): Promise<RunView> {
    for await (const _ of this.events({ from, signal })) continue;
    const record = await this.get({ signal });
    if (record.finished_at === null) throw new StagebusError(`the stream of run ${this.id} ended before the run did`);
    return record;
  }
}
