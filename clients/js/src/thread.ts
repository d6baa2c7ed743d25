// Conversations: threads of runs, and the requests about them.

import type { CreateOptions } from "./client.js";
import { newKey } from "./keys.js";
import type { CallOptions, Http } from "./http.js";
import { answeringThread } from "./client_tools.js";
import { type AnsweringOptions, Run } from "./run.js";
import type { CreateRun, RunAccepted, ThreadList, ThreadView } from "./schema.js";
import { followThread, type ThreadEvent, type ThreadUpdate } from "./thread_follower.js";
import { emptyThread, reduceThread, type ThreadState } from "./thread_state.js";
import { Watch, type WatchOptions } from "./run_watch.js";

/** The first message of a branch follows no run. */
const ROOT = "root";

/** The request of a run, without its thread: a text, or the fields of `POST /runs` with the new messages only. */
export type ThreadMessage = string | Omit<CreateRun, "thread_id">;

export interface ThreadListOptions extends CallOptions {
  limit?: number;
  /** The `next` of the previous page. */
  before?: string;
  /** Part of the id, the title or a metadata value, in any case. */
  q?: string;
  metadata?: Record<string, string>;
}

export interface ThreadPageOptions extends CallOptions {
  /** The last run of the branch whose messages are wanted; default: the current branch. */
  branch?: string;
  /** `branch.before` of the page of messages that follows the wanted one. */
  before?: string;
}

export class Threads {
  readonly #http: Http;

  constructor(http: Http) {
    this.#http = http;
  }

  /** Returns a thread, to be followed from after `cursor`. Sends no request; the first message creates a thread. */
  open(id: string, cursor = ""): Thread {
    return new Thread(this.#http, id, cursor);
  }

  /** Sends a message to a thread and returns the run that answers it; see `Thread.send`. */
  send(id: string, message: ThreadMessage, options: CreateOptions = {}): Promise<Run> {
    return this.open(id).send(message, options);
  }

  /** Gets a thread; see `Thread.get`. */
  get(id: string, options: ThreadPageOptions = {}): Promise<ThreadView> {
    return this.open(id).get(options);
  }

  /** Lists the threads that match every given filter, the last active one first. */
  list({ limit, before, q, metadata = {}, ...options }: ThreadListOptions = {}): Promise<ThreadList> {
    const query = queryOf({ limit, before, q });
    for (const [key, value] of Object.entries(metadata)) query.set(`metadata.${key}`, value);
    return this.#http.call(query.size > 0 ? `/threads?${query}` : "/threads", options);
  }
}

export class Thread {
  readonly id: string;
  readonly #http: Http;
  readonly #cursor: string;

  constructor(http: Http, id: string, cursor = "") {
    this.id = id;
    this.#http = http;
    this.#cursor = cursor;
  }

  /** Yields the events of all turns, each once and in order, and then waits for further turns. */
  async *events(options: AnsweringOptions & { untilIdle?: boolean } = {}): AsyncGenerator<ThreadEvent> {
    for await (const update of this.updates(options)) if (update.name !== "connection") yield update;
  }

  [Symbol.asyncIterator](): AsyncGenerator<ThreadEvent> {
    return this.events();
  }

  /**
   * Yields the events and changes of the connection, as `reduceThread` takes them.
   *
   * @param untilIdle  end when no run is active and none waits
   */
  updates({ untilIdle = false, tools, ...options }: AnsweringOptions & { untilIdle?: boolean } = {}): AsyncGenerator<ThreadUpdate> {
    const path = `${this.#path}/events${untilIdle ? "?until=idle" : ""}`;
    const updates = followThread(this.#http, path, { from: this.#cursor, ...options });
    return tools ? answeringThread(updates, this.#http, tools) : updates;
  }

  /** Follows the thread in the background and keeps its state. */
  watch(options: WatchOptions = {}): ThreadWatch {
    return new ThreadWatch((following) => this.updates(following), emptyThread(), reduceThread, options);
  }

  /**
   * Sends a message and returns the run that answers it. Retries of the request do not send it again.
   *
   * `on_active` says what happens while another run of the thread is active. By default the request is refused.
   */
  async send(message: ThreadMessage, { idempotencyKey = newKey(), ...options }: CreateOptions = {}): Promise<Run> {
    const fields = typeof message === "string" ? { user_prompt: message } : message;
    const body = { ...fields, thread_id: this.id };
    const headers = { "Idempotency-Key": idempotencyKey };
    const { id } = await this.#http.call<RunAccepted>("/runs", { ...options, method: "POST", body, headers });
    return new Run(this.#http, id, { isNew: true });
  }

  /** Sends another message in place of that of a turn. The turn and what followed it stay, on another branch. */
  async edit(runId: string, message: ThreadMessage, options: CreateOptions = {}): Promise<Run> {
    const { parent_run_id: parentRunId } = await this.#turn(runId, options);
    const fields = typeof message === "string" ? { user_prompt: message } : message;
    return this.send({ ...fields, parent_run_id: parentRunId ?? ROOT }, options);
  }

  /** Answers the message of a turn once more; `fields` are those of the new run. The first answer stays, on another branch. */
  async regenerate(runId: string, fields: Omit<CreateRun, "thread_id"> = {}, options: CreateOptions = {}): Promise<Run> {
    const turn = await this.#turn(runId, options);
    const messages = turn.messages as unknown as NonNullable<CreateRun["messages"]>;
    return this.send({ ...fields, messages, parent_run_id: turn.parent_run_id ?? ROOT }, options);
  }

  /** Cancels the active run, if there is one; what it has written stays, as a partial answer. */
  async stop({ reason, ...options }: CallOptions & { reason?: string } = {}): Promise<void> {
    const { active_run_id: runId } = await this.get(options);
    if (runId !== null) await new Run(this.#http, runId).cancel(reason === undefined ? options : { ...options, reason });
  }

  /** Gets the thread: its turns and branches, the runs that wait, and a page of the messages of one branch. */
  get({ branch, before, ...options }: ThreadPageOptions = {}): Promise<ThreadView> {
    const query = queryOf({ branch, before });
    return this.#http.call(query.size > 0 ? `${this.#path}?${query}` : this.#path, options);
  }

  /** Sets the title, the metadata, or both. */
  update(change: { title?: string; metadata?: Record<string, string> }, options: CallOptions = {}): Promise<ThreadView> {
    return this.#http.call(this.#path, { ...options, method: "PATCH", body: change });
  }

  /** Deletes the thread with all its runs; an active one is cancelled first. */
  delete(options: CallOptions = {}): Promise<void> {
    return this.#http.call(this.#path, { ...options, method: "DELETE" });
  }

  get #path(): string {
    return `/threads/${encodeURIComponent(this.id)}`;
  }

  async #turn(runId: string, { signal }: CallOptions): Promise<ThreadView["branch"]["turns"][number]> {
    const turn = (await this.get({ branch: runId, signal })).branch.turns.at(-1);
    if (!turn) throw new TypeError(`the thread has no turn of the run ${runId}`);
    return turn;
  }
}

/** Follows one thread. */
export class ThreadWatch extends Watch<ThreadState, ThreadUpdate> {}

function queryOf(given: Record<string, string | number | undefined>): URLSearchParams {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(given)) if (value !== undefined) query.set(name, String(value));
  return query;
}
