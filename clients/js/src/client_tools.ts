// Answers the calls of a run's client tools with functions: claims each call, runs its function, gives the result.

import { PAGE_HOLDER, tabHolder } from "./call_holder.js";
import { ProblemError, StagebusError } from "./client_errors.js";
import type { RunEvent } from "./event_sequencer.js";
import type { Http } from "./http.js";
import { type CallDeferredData, TERMINAL_NAMES } from "./schema.js";
import type { RunUpdate } from "./stream_follower.js";
import type { ThreadUpdate } from "./thread_follower.js";
import { sleep } from "./timing.js";

export interface ClientCall {
  readonly runId: string;
  readonly callId: string;
  /** Aborted when the call has a result, or nobody follows the run here. */
  readonly signal: AbortSignal;
}

/**
 * A function that answers the calls of a client tool. It returns the result, text or a JSON value; what it throws is told
 * to the model.
 */
export type ClientFunction = (args: Record<string, any>, call: ClientCall) => unknown;

/** Functions by the name of the tool. */
export type ClientTools = Readonly<Record<string, ClientFunction>>;

interface Outcome {
  readonly content: string;
  readonly is_error: boolean;
}

const RENEW_MS = 10_000; // a claim lasts 30 s
const RETRY_MS = 1000;

// The calls that run once and that this page has begun to run: another follower of the run must not begin again.
const begunOnce = new Set<string>();

/** Answers the calls of one run, as its updates announce them. */
export class CallAnswerer {
  readonly #http: Http;
  readonly #runId: string;
  readonly #tools: () => ClientTools;
  readonly #open = new Map<string, AbortController>();
  // Kept in case the gateway loses a result: then the call is open again, and its function must not run again.
  readonly #outcomes = new Map<string, Outcome>();

  /** `tools` is called for each call, so that the functions may change. */
  constructor(http: Http, runId: string, tools: () => ClientTools) {
    this.#http = http;
    this.#runId = runId;
    this.#tools = tools;
  }

  /** Takes an update of the run. */
  take(update: RunUpdate): void {
    if (update.name === "gap") this.close(); // what is open still comes again
    else if (update.name === "tool_result") this.#end(update.data.call_id);
    else if (update.name === "call_deferred") this.#begin(update.data);
    else if (isTerminal(update)) this.close();
  }

  /** Stops answering. Calls without a result are left to other clients. */
  close(): void {
    for (const callId of [...this.#open.keys()]) this.#end(callId);
  }

  #begin(call: CallDeferredData): void {
    if (call.kind !== "client" || !Object.hasOwn(this.#tools(), call.name) || this.#open.has(call.call_id)) return;
    const ending = new AbortController();
    this.#open.set(call.call_id, ending);
    void this.#answer(call, ending.signal);
  }

  #end(callId: string): void {
    this.#open.get(callId)?.abort();
    this.#open.delete(callId);
  }

  /** Answers a call while it is open. What the gateway refuses for good is another client's, or has its result. */
  async #answer(call: CallDeferredData, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        await this.#tryToAnswer(call, signal);
        return;
      } catch (error) {
        if (signal.aborted) return;
        const isClaimed = error instanceof ProblemError && error.code === "call_claimed" && !call.once;
        if (error instanceof ProblemError && !isClaimed && error.status < 500) return;
        if (!(error instanceof StagebusError)) throw error;
        const waitMs = error instanceof ProblemError ? error.retryAfterMs : null;
        await sleep(waitMs ?? RETRY_MS, signal).catch(() => undefined);
      }
    }
  }

  async #tryToAnswer(call: CallDeferredData, signal: AbortSignal): Promise<void> {
    const key = `${this.#runId} ${call.ref} ${call.call_id}`;
    let outcome = this.#outcomes.get(key);
    if (!outcome) {
      await this.#claim(call, signal);
      if (call.once && begunOnce.has(key)) return;
      if (call.once) begunOnce.add(key);
      outcome = await this.#run(call, signal);
      if (signal.aborted) return;
      this.#outcomes.set(key, outcome);
    }
    try {
      await this.#give(call, outcome, signal);
    } catch (error) {
      if (!(error instanceof ProblemError && error.code === "result_too_large")) throw error;
      await this.#give(call, { content: error.message, is_error: true }, signal);
    }
  }

  /** Runs the function, and renews the claim meanwhile. If that fails, it runs on: the first result counts. */
  async #run(call: CallDeferredData, signal: AbortSignal): Promise<Outcome> {
    const renewing = setInterval(() => void this.#claim(call, signal).catch(() => undefined), RENEW_MS);
    try {
      const context = { runId: this.#runId, callId: call.call_id, signal };
      const value = await this.#tools()[call.name]?.(JSON.parse(call.arguments || "{}"), context);
      return { content: typeof value === "string" ? value : (JSON.stringify(value) ?? "null"), is_error: false };
    } catch (error) {
      return { content: String(error), is_error: true };
    } finally {
      clearInterval(renewing);
    }
  }

  #claim({ call_id: callId, ref, once }: CallDeferredData, signal: AbortSignal): Promise<unknown> {
    return this.#post(callId, "claim", { holder: once ? PAGE_HOLDER : tabHolder(), ref }, signal);
  }

  #give({ call_id: callId, ref }: CallDeferredData, outcome: Outcome, signal: AbortSignal): Promise<unknown> {
    return this.#post(callId, "result", { ...outcome, ref }, signal);
  }

  #post(callId: string, what: string, body: object, signal: AbortSignal): Promise<unknown> {
    const path = `/runs/${encodeURIComponent(this.#runId)}/calls/${encodeURIComponent(callId)}/${what}`;
    return this.#http.call(path, { method: "POST", body, signal });
  }
}

/** Yields the updates, and answers the calls among them meanwhile. */
export async function* answering(
  updates: AsyncGenerator<RunUpdate>, http: Http, runId: string, tools: ClientTools | (() => ClientTools),
): AsyncGenerator<RunUpdate> {
  const answerer = new CallAnswerer(http, runId, typeof tools === "function" ? tools : () => tools);
  try {
    for await (const update of updates) {
      answerer.take(update);
      yield update;
    }
  } finally {
    answerer.close();
  }
}

/** The same for the updates of a thread: each of its runs has calls of its own. */
export async function* answeringThread(
  updates: AsyncGenerator<ThreadUpdate>, http: Http, tools: ClientTools | (() => ClientTools),
): AsyncGenerator<ThreadUpdate> {
  const answerers = new Map<string, CallAnswerer>();
  try {
    for await (const update of updates) {
      if (update.name === "event") answererOf(update.runId).take(update.event);
      yield update;
    }
  } finally {
    for (const answerer of answerers.values()) answerer.close();
  }

  function answererOf(runId: string): CallAnswerer {
    const answerer = answerers.get(runId) ?? new CallAnswerer(http, runId, typeof tools === "function" ? tools : () => tools);
    answerers.set(runId, answerer);
    return answerer;
  }
}

function isTerminal(update: RunUpdate): update is RunEvent {
  return TERMINAL_NAMES.has(update.name as RunEvent["name"]);
}
