// The client of a gateway: creates, finds and lists runs, opens threads, and lists tools and models.

import { type CallOptions, Http, type Options, type WaitOptions } from "./http.js";
import { type FeedEvent, followFeed, type FeedOptions } from "./feed.js";
import { newKey } from "./keys.js";
import { Run } from "./run.js";
import type { CreateRun, DeliveryList, DeliveryState, DeliveryView, ModelList, RunAccepted, RunList, RunStatus, RunView, Stats, ToolList } from "./schema.js";
import { Threads } from "./thread.js";

const WAIT_MAX_S = 30;

export interface CreateOptions extends CallOptions {
  /** The same key and body return the same run; default: a new key. */
  idempotencyKey?: string;
}

export interface ListOptions extends CallOptions {
  limit?: number;
  /** The `next` of the previous page, which may exist even after a short or empty page. */
  before?: string;
  status?: RunStatus | RunStatus[];
  /** The model of any stage of a run. */
  model?: string;
  /** The beginning of the id, or part of the prompt or of a metadata value, in any case. */
  q?: string;
  metadata?: Record<string, string>;
  /** The person within the tenant whose runs they are. */
  user?: string;
}

export class Stagebus {
  readonly runs: Runs;
  readonly threads: Threads;
  readonly webhooks: Webhooks;
  readonly #http: Http;

  constructor(options: Options = {}) {
    this.#http = new Http(options);
    this.runs = new Runs(this.#http);
    this.threads = new Threads(this.#http);
    this.webhooks = new Webhooks(this.#http);
  }

  /** Lists the tools that a run may name. */
  tools(options: CallOptions = {}): Promise<ToolList> {
    return this.#http.call("/tools", options);
  }

  /** Lists the models that a run may name. */
  models(options: CallOptions = {}): Promise<ModelList> {
    return this.#http.call("/models", options);
  }

  /** Returns figures of the whole system: queue, workers and outcomes. Needs the scope `admin`. */
  stats(options: CallOptions = {}): Promise<Stats> {
    return this.#http.call("/stats", options);
  }
}

export class Runs {
  readonly #http: Http;

  constructor(http: Http) {
    this.#http = http;
  }

  /** Creates a run. Retries of the request do not create another one. */
  async create(body: CreateRun, { idempotencyKey = newKey(), ...options }: CreateOptions = {}): Promise<Run> {
    const headers = { "Idempotency-Key": idempotencyKey };
    const { id } = await this.#http.call<RunAccepted>("/runs", { ...options, method: "POST", body, headers });
    return new Run(this.#http, id, { isNew: true });
  }

  /** Creates a run and returns its record once it has ended or waits for a person, or as it is after `waitS`. */
  createAndWait(body: CreateRun, options: CreateOptions & WaitOptions = {}): Promise<RunView> {
    const { idempotencyKey = newKey(), waitS = WAIT_MAX_S, ...others } = options;
    const headers = { "Idempotency-Key": idempotencyKey, Prefer: `wait=${waitS}` };
    return this.#http.call("/runs", { ...others, method: "POST", body, headers, waitS });
  }

  /** Returns an existing run, to be followed from after `cursor`, the id of the last event seen. Sends no request. */
  resume(id: string, cursor?: string): Run {
    return new Run(this.#http, id, cursor === undefined ? {} : { cursor });
  }

  /** Gets a run's record, with `waitS` when the run has ended or waits for a person. */
  get(id: string, options: WaitOptions = {}): Promise<RunView> {
    return this.resume(id).get(options);
  }

  /** Lists the runs that match every given filter, newest first. */
  list({ limit, before, status, model, q, user, metadata = {}, ...options }: ListOptions = {}): Promise<RunList> {
    const query = new URLSearchParams();
    const filters = { limit, before, status, model, q, user };
    for (const [name, value] of Object.entries(filters)) if (value !== undefined) query.set(name, String(value));
    for (const [key, value] of Object.entries(metadata)) query.set(`metadata.${key}`, value);
    return this.#http.call(query.size > 0 ? `/runs?${query}` : "/runs", options);
  }

  /** Yields what happens to the tenant's runs, as it happens, without end. Reconnects. */
  events(options: FeedOptions = {}): AsyncGenerator<FeedEvent, void> {
    return followFeed(this.#http, options);
  }
}

export interface DeliveryOptions extends CallOptions {
  limit?: number;
  /** The `next` of the previous page. */
  before?: string;
  state?: DeliveryState;
  endpoint?: string;
}

/** The deliveries of webhooks; for operators, with the scope `admin`. */
export class Webhooks {
  readonly #http: Http;

  constructor(http: Http) {
    this.#http = http;
  }

  /** Lists deliveries, newest first. */
  deliveries({ limit, before, state, endpoint, ...options }: DeliveryOptions = {}): Promise<DeliveryList> {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries({ limit, before, state, endpoint })) if (value !== undefined) query.set(name, String(value));
    return this.#http.call(query.size > 0 ? `/webhooks/deliveries?${query}` : "/webhooks/deliveries", options);
  }

  /** Sends a delivery again, now, with all its tries before it. */
  resend(id: string, options: CallOptions = {}): Promise<DeliveryView> {
    return this.#http.call(`/webhooks/deliveries/${encodeURIComponent(id)}/resend`, { ...options, method: "POST" });
  }
}
