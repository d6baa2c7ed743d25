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

/** Nothing of the stream arrived, or events of the log did not: perhaps, or certainly, a proxy collects its bytes. */
export class HeldBack extends ConnectionLost {
  constructor(
    message: string,
    readonly isCertain = false,
  ) {
    super(message);
  }
}

/** The connection was given up for one of another kind; nothing is wrong. */
export class Switched extends Error {}

// The gateway's default, until a response says otherwise.
const PING_MS = 4_000;
// A connection without any data for this many ping intervals counts as lost. The Python client uses the same number.
const SILENT_PINGS = 1.6;
// A gateway begins every stream immediately. If nothing has arrived by then, the stream is held back.
const FIRST_BYTES_MS = 2_500;
// A stream that falls silent for as long is compared with the log, a few times per connection. If the log has events that
// do not arrive in a moment, the stream is held back.
const QUIET_CHECKS_MAX = 3;
const MOMENT_MS = 500;
// Limit of one frame, so that a line without end cannot fill the memory. A gateway's events are far smaller.
const FRAME_MAX_CHARS = 32 * 1024 * 1024;

/** How events arrive: as a stream of this client's own, as pages of the log, or through another tab of the browser. */
export type Transport = "stream" | "polling" | "shared";

export interface Connection {
  transport: Transport;
  /** The last id in the log when the connection was opened: events up to it are replayed. Empty if that is not known. */
  lastId: string;
  batches: AsyncGenerator<Batch>;
}

export interface Batch {
  frames: Frame[];
  retryMs?: number;
  /** The frames up to this id are replayed. */
  replayedTo?: string;
  /** The log was read up to this id, at the end of these frames. */
  readTo?: string;
}

/** Parses a frame's JSON object; returns null for any other text. */
export function parseObject(text: string): object | null {
  try {
    const data: unknown = JSON.parse(text);
    return typeof data === "object" ? data : null;
  } catch {
    return null;
  }
}

export interface StreamLimits {
  /** How long the connection may be silent; undefined: `SILENT_PINGS` of the gateway's ping intervals. */
  silenceMs?: number | undefined;
  /** Wait as long for the first bytes as for later ones. */
  isPatient?: boolean;
  /** Returns true if the log has events that the stream has not brought. */
  isBehind?: () => Promise<boolean>;
}

/**
 * Opens a stream; returns null if there is nothing left to stream.
 *
 * Throws `ConnectionLost` if a retry may help, and the gateway's `ProblemError` if not.
 */
export async function openStream(
  http: Http,
  path: string,
  cursor: string,
  signal: AbortSignal,
  { silenceMs, isPatient = false, isBehind }: StreamLimits,
): Promise<Connection | null> {
  const limitMs = silenceMs ?? silenceLimitMs(PING_MS);
  const watch = new SilenceWatch(isPatient ? limitMs : Math.min(limitMs, FIRST_BYTES_MS), signal);
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
    const laterLimitMs = silenceMs === undefined && pingS > 0 ? silenceLimitMs(pingS * 1000) : limitMs;
    const lastId = response.headers.get("x-last-event-id") ?? "";
    if (isBehind) watch.onQuiet = () => void giveUpIfBehind(watch, isBehind);
    return { transport: "stream", lastId, batches: readBatches(response.body, watch, laterLimitMs) };
  } catch (error) {
    watch.stop();
    throw watch.isSilent ? new HeldBack("the stream does not begin") : translateError(error, signal);
  }
}

async function giveUpIfBehind(watch: SilenceWatch, isBehind: () => Promise<boolean>): Promise<void> {
  const { waits } = watch;
  if (!(await isBehind())) return;
  await new Promise((resolve) => setTimeout(resolve, MOMENT_MS));
  if (watch.waits === waits) watch.giveUp(new HeldBack("events of the log do not arrive", true));
}

async function* readBatches(body: ReadableStream<Uint8Array>, watch: SilenceWatch, limitMs: number): AsyncGenerator<Batch> {
  let batch: Batch = { frames: [] };
  let hasBegun = false;
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
      if (!hasBegun) watch.setLimit(limitMs);
      hasBegun = true;
      parser.feed(decoder.decode(value, { stream: true }));
      yield batch;
      batch = { frames: [] };
    }
  } catch (error) {
    if (watch.isSilent && !hasBegun) throw new HeldBack("nothing of the stream arrives");
    if (watch.signal.reason instanceof HeldBack) throw watch.signal.reason;
    throw translateError(error, watch.outer);
  } finally {
    watch.stop();
    reader.cancel().catch(() => undefined); // releases the connection, however the loop ended
  }
}

/** Returns what to throw for an error of a request: `ConnectionLost` if a retry may help. */
export function translateError(error: unknown, signal: AbortSignal): unknown {
  if (signal.aborted) return signal.reason;
  if (error instanceof StagebusError && !isRetryable(error)) return error;
  return new ConnectionLost("the connection was lost", { cause: error });
}

function silenceLimitMs(pingMs: number): number {
  return pingMs * SILENT_PINGS;
}

/** Aborts a connection that stays silent, without even a ping, for too long while its reader waits. */
class SilenceWatch {
  /** The connection was aborted for its silence. */
  isSilent = false;
  /** How often data was waited for. */
  waits = 0;
  /** Called when the connection has been silent for `FIRST_BYTES_MS`, at most `QUIET_CHECKS_MAX` times. */
  onQuiet: () => void = () => undefined;
  #quietChecks = 0;
  #checkedWait = 0; // the last one for which `onQuiet` was called
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
    this.waits += 1;
    try {
      return await promise;
    } finally {
      this.#waitingSince = null;
    }
  }

  /** Aborts the connection for another reason. */
  giveUp(reason: Error): void {
    this.#controller.abort(reason);
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#release();
    this.#controller.abort();
  }

  // One timer checks from time to time: a timer per read would cost more than the read.
  #check(): void {
    const silentMs = this.#waitingSince === null ? 0 : performance.now() - this.#waitingSince;
    if (silentMs >= this.#silenceMs) {
      this.isSilent = true;
      this.#controller.abort(new UnreachableError("the connection fell silent"));
      return;
    }
    const isQuiet = silentMs >= FIRST_BYTES_MS;
    if (isQuiet && this.#checkedWait < this.waits && this.#quietChecks < QUIET_CHECKS_MAX) {
      this.#checkedWait = this.waits;
      this.#quietChecks += 1;
      this.onQuiet();
    }
    const limitMs = isQuiet ? this.#silenceMs : Math.min(this.#silenceMs, FIRST_BYTES_MS);
    this.#timer = setTimeout(() => this.#check(), limitMs - silentMs);
  }
}
