// One connection: parses a response into frames until it ends, breaks or falls silent.

import { createParser } from "eventsource-parser";

import { UnreachableError, StagebusError } from "./client_errors.js";
import { type Http, isRetryable, parseRefusal } from "./http.js";
import { linkedController } from "./timing.js";

export interface Frame {
  id: string;
  name: string;
  text: string;
}

/** The connection failed; another one may succeed. */
export class ConnectionLost extends Error {}

// The gateway's default, until a response says otherwise.
const PING_MS = 10_000;
// A connection without any data for this many ping intervals counts as lost. The Python client uses the same number.
const SILENT_PINGS = 2.5;
// Limit of one frame, so that a line without end cannot fill the memory. A gateway's events are far smaller.
const FRAME_MAX_CHARS = 32 * 1024 * 1024;

export interface Stream {
  /** The last id in the log when the stream was opened: events up to it are replayed. Empty if the gateway does not say. */
  lastId: string;
  batches: AsyncGenerator<Batch>;
}

export interface Batch {
  frames: Frame[];
  retryMs: number | null;
}

/**
 * Opens a stream; returns null if there is nothing left to stream.
 *
 * Throws `ConnectionLost` if a retry may help, and the gateway's `ProblemError` if not.
 */
export async function connect(
  http: Http,
  path: string,
  cursor: string,
  signal: AbortSignal,
  silenceMs: number | undefined,
): Promise<Stream | null> {
  const watch = new SilenceWatch(silenceMs ?? silenceLimitMs(PING_MS), signal);
  try {
    const headers: Record<string, string> = { Accept: "text/event-stream" };
    if (cursor) headers["Last-Event-ID"] = cursor;
    const response = await watch.waitFor(http.send(path, { headers, cache: "no-store", signal: watch.signal }));
    if (response.status === 204) return watch.stop(), null;
    if (response.status !== 200 || !response.body) throw await parseRefusal(response);
    if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
      void response.body.cancel().catch(() => undefined);
      throw new UnreachableError("the response is not a Stagebus gateway's event stream");
    }
    const pingS = Number(response.headers.get("x-ping-s"));
    if (silenceMs === undefined && pingS > 0) watch.setLimit(silenceLimitMs(pingS * 1000));
    return { lastId: response.headers.get("x-last-event-id") ?? "", batches: readBatches(response.body, watch) };
  } catch (error) {
    watch.stop();
    throw translateError(error, signal);
  }
}

async function* readBatches(body: ReadableStream<Uint8Array>, watch: SilenceWatch): AsyncGenerator<Batch> {
  let batch: Batch = { frames: [], retryMs: null };
  const parser = createParser({
    onEvent: ({ id = "", event = "message", data }) => batch.frames.push({ id, name: event, text: data }),
    onRetry: (ms) => (batch.retryMs = ms),
    maxBufferSize: FRAME_MAX_CHARS,
  });
  const reader = body.getReader();
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const { done, value } = await watch.waitFor(reader.read());
      if (done) return;
      parser.feed(decoder.decode(value, { stream: true }));
      yield batch;
      batch = { frames: [], retryMs: null };
    }
  } catch (error) {
    throw translateError(error, watch.outer);
  } finally {
    watch.stop();
    reader.cancel().catch(() => undefined); // releases the connection, however the loop ended
  }
}

function translateError(error: unknown, signal: AbortSignal): unknown {
  if (signal.aborted) return signal.reason;
  if (error instanceof StagebusError && !isRetryable(error)) return error;
  return new ConnectionLost("the connection was lost", { cause: error });
}

function silenceLimitMs(pingMs: number): number {
  return pingMs * SILENT_PINGS;
}

/** Aborts a connection that stays silent, without even a ping, for too long while its reader waits. */
class SilenceWatch {
  readonly #controller: AbortController;
  readonly #release: () => void;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #waitingSince: number | null = null;

  #silenceMs: number;

  constructor(
    silenceMs: number,
    readonly outer: AbortSignal,
  ) {
    this.#silenceMs = silenceMs;
    const { controller, release } = linkedController(outer);
    this.#controller = controller;
    this.#release = release;
    this.signal.addEventListener("abort", () => this.stop(), { once: true });
    this.#check();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  setLimit(silenceMs: number): void {
    this.#silenceMs = silenceMs;
    clearTimeout(this.#timer);
    this.#check();
  }

  /** Waits for data of the connection. Only this time counts as silence, so a slow reader does not. */
  async waitFor<T>(promise: Promise<T>): Promise<T> {
    this.#waitingSince = performance.now();
    try {
      return await promise;
    } finally {
      this.#waitingSince = null;
    }
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#release();
    this.#controller.abort();
  }

  // One timer checks from time to time: a timer per read would cost more than the read.
  #check(): void {
    const silentMs = this.#waitingSince === null ? 0 : performance.now() - this.#waitingSince;
    if (silentMs >= this.#silenceMs) this.#controller.abort(new UnreachableError("the connection fell silent"));
    else this.#timer = setTimeout(() => this.#check(), this.#silenceMs - silentMs);
  }
}
