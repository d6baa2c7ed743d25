// One run: its events, its end, and what may be asked of it.

import { RunCancelledError, RunFailedError, StagebusError } from "./errors.js";
import { follow, type FollowOptions, type RunUpdate } from "./follow.js";
import type { CallOptions, Http } from "./http.js";
import type { GapEvent, RunEvent } from "./place.js";
import type { RunAccepted, RunView, TicketView } from "./schema.js";
import { RunWatch, type WatchOptions } from "./watch.js";

export interface RunOptions {
  /** The cursor that its events follow; from the first one on where it is left out. */
  cursor?: string;
  /** The run was just made. */
  isNew?: boolean;
}

export type Decision =
  /** `arguments` take the place of the model's. */
  | { decision: "approve"; arguments?: Record<string, unknown> }
  | { decision: "deny"; reason?: string }
  | { decision: "answer"; text: string };

export interface TicketOptions extends CallOptions {
  /** A link to pass on, which is good for longer. */
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
   * Its events, each once and in order, to the one that ends it.
   *
   * Between them may stand a `gap`: the log lost a part, so drop what you have from its `sequence` on.
   */
  async *events(options: FollowOptions = {}): AsyncGenerator<RunEvent | GapEvent> {
    for await (const update of this.updates(options)) if (update.name !== "connection") yield update;
  }

  [Symbol.asyncIterator](): AsyncGenerator<RunEvent | GapEvent> {
    return this.events();
  }

  /** Its events, and how the connection to them is: what `reduce` takes. */
  updates(options: FollowOptions = {}): AsyncGenerator<RunUpdate> {
    const isNew = this.#isNew;
    this.#isNew = false; // what comes a second time is old
    return follow(this.#http, `${this.#path}/events`, { from: this.#cursor, ...options }, isNew);
  }

  /** Follow it in the background, as a state that changes. */
  watch(options: WatchOptions = {}): RunWatch {
    return new RunWatch((following) => this.updates(following), options);
  }

  /** Its record as it is now. */
  get(options: CallOptions = {}): Promise<RunView> {
    return this.#http.call(this.#path, options);
  }

  /** Wait for its end; the record with its `result`. Throws `RunFailedError` or `RunCancelledError` at another end. */
  async result({ signal }: { signal?: AbortSignal } = {}): Promise<RunView> {
    const record = await this.get({ signal });
    const ended = record.finished_at === null ? await this.#ended(record.last_event_id, signal) : record;
    if (ended.status === "cancelled") throw new RunCancelledError(this.id);
    if (ended.error) throw new RunFailedError(this.id, ended.error.error, ended.error.code);
    return ended;
  }

  /** Wait for its end; the answer's text. Throws as `result` does. */
  async text(options: { signal?: AbortSignal } = {}): Promise<string> {
    const { result } = await this.result(options);
    return result?.text ?? "";
  }

  /** Ask for its end; its own `cancel` event says when it is so. */
  cancel(options: CallOptions = {}): Promise<RunAccepted> {
    return this.#http.call(`${this.#path}/cancel`, { ...options, method: "POST" });
  }

  /** Decide upon a call that waits: `approve` or `deny` what wants an approval, `answer` or `deny` a question. */
  decide(callId: string, decision: Decision, options: CallOptions = {}): Promise<RunAccepted> {
    const path = `${this.#path}/approvals/${encodeURIComponent(callId)}`;
    return this.#http.call(path, { ...options, method: "POST", body: decision });
  }

  /** A ticket to look at this run and at nothing else: for a plain EventSource, or to pass on. */
  ticket({ share, ttlS, ...options }: TicketOptions = {}): Promise<TicketView> {
    const body = { ...(share !== undefined && { share }), ...(ttlS !== undefined && { ttl_s: ttlS }) };
    return this.#http.call(`${this.#path}/ticket`, { ...options, method: "POST", body });
  }

  /** Take a ticket back, by its `id`: streams that it opened end. */
  revokeTicket(ticketId: string, options: CallOptions = {}): Promise<void> {
    return this.#http.call(`${this.#path}/ticket/${encodeURIComponent(ticketId)}`, { ...options, method: "DELETE" });
  }

  get #path(): string {
    return `/runs/${encodeURIComponent(this.id)}`;
  }

  async #ended(from: string, signal: AbortSignal | undefined): Promise<RunView> {
    for await (const _ of this.events({ from, signal })) continue;
    const record = await this.get({ signal });
    if (record.finished_at === null) throw new StagebusError(`the stream of run ${this.id} ended before the run did`);
    return record;
  }
}
