// The gateway: makes runs, finds runs, says what a run may name.

import { type CallOptions, Http, type Options } from "./http.js";
import { Run } from "./run.js";
import type { CreateRun, ModelList, RunAccepted, RunList, RunStatus, RunView, Stats, ToolList } from "./schema.js";

export interface CreateOptions extends CallOptions {
  /** The same key and body give the same run; one is made where it is left out. */
  idempotencyKey?: string;
}

export interface ListOptions extends CallOptions {
  limit?: number;
  /** The `next` of the page before; there is one even where that page was short or empty. */
  before?: string;
  status?: RunStatus | RunStatus[];
  /** The model, of any of a run's stages. */
  model?: string;
  /** How the id begins, or a part of the prompt or of a value of the metadata, in any case. */
  q?: string;
  metadata?: Record<string, string>;
}

export class Stagebus {
  readonly runs: Runs;
  readonly #http: Http;

  constructor(options: Options = {}) {
    this.#http = new Http(options);
    this.runs = new Runs(this.#http);
  }

  /** The tools that a run may name. */
  tools(options: CallOptions = {}): Promise<ToolList> {
    return this.#http.call("/tools", options);
  }

  /** The models that a run may name. */
  models(options: CallOptions = {}): Promise<ModelList> {
    return this.#http.call("/models", options);
  }

  /** The whole system: the queue, the workers, what all runs came to. Takes the scope `admin`. */
  stats(options: CallOptions = {}): Promise<Stats> {
    return this.#http.call("/stats", options);
  }
}

export class Runs {
  readonly #http: Http;

  constructor(http: Http) {
    this.#http = http;
  }

  /** Make a run. One call makes one run, however often it has to be sent. */
  async create(body: CreateRun, { idempotencyKey = newKey(), ...options }: CreateOptions = {}): Promise<Run> {
    const headers = { "Idempotency-Key": idempotencyKey };
    const { id } = await this.#http.call<RunAccepted>("/runs", { ...options, method: "POST", body, headers });
    return new Run(this.#http, id, { isNew: true });
  }

  /** A run that was made before: its events follow `cursor`, the id of the last one seen. Asks nothing yet. */
  resume(id: string, cursor?: string): Run {
    return new Run(this.#http, id, cursor === undefined ? {} : { cursor });
  }

  /** A run's record. */
  get(id: string, options: CallOptions = {}): Promise<RunView> {
    return this.resume(id).get(options);
  }

  /** Runs, newest first; all, or those that everything given wants. */
  list({ limit, before, status, model, q, metadata = {}, ...options }: ListOptions = {}): Promise<RunList> {
    const query = new URLSearchParams();
    const given = { limit, before, status, model, q };
    for (const [name, value] of Object.entries(given)) if (value !== undefined) query.set(name, String(value));
    for (const [key, value] of Object.entries(metadata)) query.set(`metadata.${key}`, value);
    return this.#http.call(query.size > 0 ? `/runs?${query}` : "/runs", options);
  }
}

/** randomUUID is there in secure contexts only, and a gateway may well be asked by plain HTTP in a local network. */
function newKey(): string {
  return crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint32Array(4))).join("-");
}
