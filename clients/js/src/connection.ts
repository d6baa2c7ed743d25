// One connection: a response's bytes in, frames out, until it ends, is cut, or falls silent.

import { createParser } from "eventsource-parser";

import { UnreachableError, StagebusError } from "./errors.js";
import { type Http, isPassing, refusal } from "./http.js";
import { linkedController } from "./timing.js";

export interface Frame {
  id: string;
  name: string;
  text: string;
}

/** What is wrong with a connection that another one may not have. */
export class Lost extends Error {}

// Without a word of the gateway's, the pings of its default setting.
const PING_MS = 10_000;
const SILENT_PINGS = 2.5;
// Of one frame; a gateway's events are far smaller, and what never ends a line must not fill the memory.
const FRAME_MAX_CHARS = 32 * 1024 * 1024;

export interface Stream {
  /** The log's end when it was asked: what comes up to there is replayed. Empty where the gateway does not say. */
  lastId: string;
  batches: AsyncGenerator<Batch>;
}

export interface Batch {
  frames: Frame[];
  retryMs: number | null;
}

/**
 * Ask for a stream; null once there is nothing left to stream.
 *
 * Throws `Lost` where another try may do, and the gateway's `ProblemError` where none will.
 */
export async function connect(
  http: Http,
  path: string,
  cursor: string,
  signal: AbortSignal,
  silenceMs: number | undefined,
): Promise<Stream | null> {
  const watch = new SilenceWatch(silenceMs ?? silenceOf(PING_MS), signal);
  try {
    const headers: Record<string, string> = { Accept: "text/event-stream" };
    if (cursor) headers["Last-Event-ID"] = cursor;
    const response = await watch.during(http.send(path, { headers, cache: "no-store", signal: watch.signal }));
    if (response.status === 204) return watch.stop(), null;
    if (response.status !== 200 || !response.body) throw await refusal(response);
    if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
      void response.body.cancel().catch(() => undefined);
      throw new UnreachableError("a page, and not a Stagebus gateway's stream");
    }
    const pingS = Number(response.headers.get("x-ping-s"));
    if (silenceMs === undefined && pingS > 0) watch.expect(silenceOf(pingS * 1000));
    return { lastId: response.headers.get("x-last-event-id") ?? "", batches: readBatches(response.body, watch) };
  } catch (error) {
    watch.stop();
    throw translated(error, signal);
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
      const { done, value } = await watch.during(reader.read());
      if (done) return;
      parser.feed(decoder.decode(value, { stream: true }));
      yield batch;
      batch = { frames: [], retryMs: null };
    }
  } catch (error) {
    throw translated(error, watch.outer);
  } finally {
    watch.stop();
    reader.cancel().catch(() => undefined); // it is over, however it ended
  }
}

function translated(error: unknown, signal: AbortSignal): unknown {
  if (signal.aborted) return signal.reason;
  if (error instanceof StagebusError && !isPassing(error)) return error;
  return new Lost("the connection is lost", { cause: error });
}

function silenceOf(pingMs: number): number {
  return pingMs * SILENT_PINGS;
}

/** Gives a connection up that brings nothing, not even a ping, for too long while it is waited for. */
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
    this.#look();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  expect(silenceMs: number): void {
    this.#silenceMs = silenceMs;
    clearTimeout(this.#timer);
    this.#look();
  }

  /** Wait for something of the connection; a reader that takes its time does not make it silent. */
  async during<T>(promise: Promise<T>): Promise<T> {
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

  // One timer that looks now and then: setting one for each read would cost more than the read.
  #look(): void {
    const silentMs = this.#waitingSince === null ? 0 : performance.now() - this.#waitingSince;
    if (silentMs >= this.#silenceMs) this.#controller.abort(new UnreachableError("the connection fell silent"));
    else this.#timer = setTimeout(() => this.#look(), this.#silenceMs - silentMs);
  }
}
