// Follows a stream across connections: yields each event of a run once, in order, to the terminal one.

import { type Connection, ConnectionLost, type Frame, Switched, type Transport } from "./connection.js";
import { Connector } from "./connector.js";
import { UnreachableError } from "./client_errors.js";
import type { Http } from "./http.js";
import { type GapEvent, parseId, EventSequencer, type RunEvent } from "./event_sequencer.js";
import { type GapData, type StreamStatusData, TERMINAL_NAMES } from "./schema.js";
import { backoffMs, linkedController, onWake, sleep } from "./timing.js";

/**
 *   connecting    before the first connection is open
 *   replaying     open, receiving events that were already in the log
 *   live          open, receiving new events
 *   reconnecting  the connection or an event was lost; `losses` counts attempts since a connection was last open
 *   gap           the log lost events and is replayed
 *   ended         after the terminal event
 */
export type ConnectionState = "connecting" | "replaying" | "live" | "reconnecting" | "gap" | "ended";

/** A change of the connection; not an event of the run. */
export interface ConnectionUpdate {
  readonly name: "connection";
  readonly state: ConnectionState;
  readonly losses: number;
  /** `polling`: a proxy holds streams back, or the page is hidden; `shared`: through the stream of another tab. */
  readonly transport: Transport;
  /** What the run waits for although it has begun, as the gateway says after some seconds of silence. */
  readonly waitingFor: "worker" | "storage" | null;
}

export type RunUpdate = RunEvent | GapEvent | ConnectionUpdate;

export interface FollowOptions {
  /** The id of the last event seen; default: the start. */
  from?: string | undefined;
  signal?: AbortSignal | undefined;
  /** How long to try to reach a gateway before giving up. */
  patienceMs?: number;
  /** How long a connection may be silent; default: 1.6 of the gateway's ping intervals. */
  silenceMs?: number;
  /**
   * In browsers: keep no stream open while the page is hidden, and share one with the other tabs that follow the run.
   * Browsers open only six HTTP/1.1 connections to a host, over all tabs. Default: false, and true for `watch`.
   */
  sparesConnections?: boolean;
}

const RETRY_MS = 1000; // until the gateway sends another value
const RETRY_MIN_MS = 50; // limits how fast any gateway value makes this client retry
const BACKOFF_MAX_MS = 15_000;
const PATIENCE_MS = 300_000;

/**
 * Yields the events of a run, gaps in its log, and changes of the connection.
 *
 * @param isNew  the run was just created, so none of its events are replayed
 */
export async function* follow(
  http: Http,
  path: string,
  { from = "", signal, patienceMs = PATIENCE_MS, silenceMs, sparesConnections = false }: FollowOptions,
  isNew = false,
): AsyncGenerator<RunUpdate> {
  const start = startOf(from);
  const follower = new StreamFollower(start, isNew && start === "", patienceMs);
  yield* followWith(follower, (onSwitch) => new Connector(http, path, silenceMs, sparesConnections, onSwitch), signal);
}

/** Returns the cursor for `EventSequencer`: `0` and `-1` mean the start. */
export function startOf(from: string): string {
  return from === "0" || from === "-1" ? "" : from;
}

/** What outlives the connections of a stream: decides what to yield, when to reconnect and when to give up. */
export interface Follower<Update> {
  readonly isEnded: boolean;
  readonly cursor: string;
  retryMs: number;
  connection(state: ConnectionState): ConnectionUpdate;
  open(connection: Omit<Connection, "batches">): ConnectionUpdate;
  extendReplay(id: string): void;
  accept(frame: Frame): Iterable<Update | ConnectionUpdate>;
  nextWaitMs(cause?: unknown): number;
}

/** Opens the connections of a stream, one after the other. */
export interface Opener {
  open(cursor: () => string, signal: AbortSignal): Promise<Connection | null>;
  pass(frames: Frame[]): void;
  closed(error: unknown): boolean;
  reset(): void;
  close(): void;
}

/** Yields what a follower makes of the frames of one connection after the other, and changes of the connection. */
export async function* followWith<Update>(
  follower: Follower<Update>,
  openerOf: (onSwitch: () => void) => Opener,
  signal: AbortSignal | undefined,
): AsyncGenerator<Update | ConnectionUpdate> {
  const interrupt = new Interrupt();
  const connector = openerOf(() => interrupt.trigger(new Switched()));
  const stopListening = onWake(() => {
    connector.reset();
    interrupt.trigger(new ConnectionLost("the network is back"));
  });
  try {
    yield follower.connection("connecting");
    while (!follower.isEnded) {
      const { controller, release } = linkedController(signal);
      interrupt.onTrigger((reason) => controller.abort(reason));
      let failure: unknown;
      try {
        const connection = await connector.open(() => follower.cursor, controller.signal);
        if (!connection) break;
        yield follower.open(connection);
        for await (const { frames, retryMs, replayedTo } of connection.batches) {
          if (retryMs !== undefined) follower.retryMs = retryMs;
          if (replayedTo !== undefined) follower.extendReplay(replayedTo);
          connector.pass(frames);
          for (const frame of frames) for (const update of follower.accept(frame)) yield update;
          if (follower.isEnded) break;
        }
      } catch (error) {
        const isLoss = error instanceof ConnectionLost || error instanceof Switched || controller.signal.aborted;
        if (signal?.aborted || !isLoss) throw error;
        failure = error;
      } finally {
        release();
        controller.abort();
      }
      if (follower.isEnded) break;
      if (connector.closed(failure)) continue;
      const waitMs = follower.nextWaitMs(failure instanceof ConnectionLost ? failure.cause : failure);
      yield follower.connection("reconnecting");
      if (!interrupt.isTriggered) await sleep(waitMs, signal, new Promise<void>((wake) => interrupt.onTrigger(() => wake())));
    }
    yield follower.connection("ended");
  } finally {
    stopListening();
    connector.close();
  }
}

/** The state that outlives a connection: decides what to yield, when to reconnect and when to give up. */
export class StreamFollower implements Follower<RunUpdate> {
  isEnded = false;
  retryMs = RETRY_MS;
  readonly #sequencer: EventSequencer;
  readonly #patienceMs: number;
  #losses = 0; // since a connection was last open
  #failures = 0; // since an event last arrived
  #disconnectedSince: number | null = performance.now(); // null while a connection is open
  #openedAt = 0;
  #isSequenceGap = false; // why the connection was given up
  #replayEnd = 0;
  #state: ConnectionState = "connecting";
  #transport: Transport = "stream";
  #waitingFor: ConnectionUpdate["waitingFor"] = null;

  constructor(
    from: string,
    private isNew: boolean,
    patienceMs: number,
  ) {
    this.#sequencer = new EventSequencer(from);
    this.#patienceMs = patienceMs;
  }

  get cursor(): string {
    return this.#sequencer.cursor;
  }

  connection(state: ConnectionState): ConnectionUpdate {
    this.#state = state;
    const losses = state === "reconnecting" ? this.#losses : 0;
    return { name: "connection", state, losses, transport: this.#transport, waitingFor: this.#waitingFor };
  }

  /** Records that a connection is open. */
  open({ lastId, transport }: Omit<Connection, "batches">): ConnectionUpdate {
    this.#transport = transport;
    this.#losses = 0;
    this.#disconnectedSince = null;
    this.#openedAt = performance.now();
    this.#replayEnd = this.isNew ? 0 : (parseId(lastId)?.sequence ?? 0);
    return this.connection(this.#openState());
  }

  /** Events up to this id are replayed. */
  extendReplay(id: string): void {
    if (!this.isNew) this.#replayEnd = Math.max(this.#replayEnd, parseId(id)?.sequence ?? 0);
  }

  /** Yields the updates of a frame. Throws `ConnectionLost` if the log must be requested again. */
  *accept({ id, name, text }: Frame): Generator<RunUpdate> {
    if (this.isEnded) return;
    const data = parseObject(text);
    if (name === "gap" && data) {
      this.isNew = false;
      const gap = this.#sequencer.acceptGap(data as GapData);
      this.#replayEnd = Math.max(this.#replayEnd, this.#sequencer.gapEnd);
      yield gap;
      yield this.connection("gap");
      return;
    }
    if (name === "status" && data) {
      this.#waitingFor = (data as StreamStatusData).waiting_for ?? null;
      yield this.connection(this.#openState());
      return;
    }
    if (id === "") return; // not an event of the run
    const verdict = this.#sequencer.judge(data ? id : "");
    if (verdict === "drop") return;
    if (verdict === "retry") {
      const gap = this.#sequencer.skipGap(data ? id : "");
      this.#isSequenceGap = gap === null;
      if (!gap) throw new ConnectionLost(`${id} after ${this.#sequencer.cursor || "the start"}`);
      yield gap;
    }
    this.#failures = 0;
    const { sequence } = this.#sequencer;
    this.isEnded = TERMINAL_NAMES.has(name);
    yield { name, id, sequence, data, at: sequence > this.#replayEnd ? performance.now() : null } as RunEvent;
    const state = this.#openState();
    const isChange = state !== this.#state || this.#waitingFor !== null;
    this.#waitingFor = null;
    if (isChange && !this.isEnded) yield this.connection(state);
  }

  /** Records that something new has arrived, so that the next loss is followed by a short wait. */
  progressed(): void {
    this.#failures = 0;
  }

  /** Records the loss of the connection; returns the wait before the next one. Throws once patience ends. */
  nextWaitMs(cause?: unknown): number {
    this.isNew = false;
    this.#waitingFor = null;
    this.#losses += 1;
    const now = performance.now();
    if (this.#disconnectedSince === null && now - this.#openedAt > BACKOFF_MAX_MS) this.#failures = 0;
    this.#disconnectedSince ??= now;
    if (now - this.#disconnectedSince > this.#patienceMs) {
      throw new UnreachableError(`no gateway has answered for ${Math.round(this.#patienceMs / 1000)} s`, { cause });
    }
    const isFirstRetry = this.#isSequenceGap && this.#sequencer.gapRetries === 1;
    this.#isSequenceGap = false;
    if (isFirstRetry) return 0;
    this.#failures += 1;
    return backoffMs(this.#failures, Math.max(this.retryMs, RETRY_MIN_MS), BACKOFF_MAX_MS);
  }

  #openState(): ConnectionState {
    if (this.#sequencer.gapEnd) return "gap";
    return this.#sequencer.sequence < this.#replayEnd ? "replaying" : "live";
  }
}

/** Parses a frame's JSON object; returns null for any other text. */
function parseObject(text: string): object | null {
  try {
    const data: unknown = JSON.parse(text);
    return typeof data === "object" ? data : null;
  } catch {
    return null;
  }
}

/** Interrupts the current step immediately: a connection that may be dead, or the wait for the next one. */
class Interrupt {
  isTriggered = false;
  #act: (reason: Error) => void = () => undefined;

  onTrigger(act: (reason: Error) => void): void {
    this.isTriggered = false;
    this.#act = act;
  }

  trigger(reason: Error): void {
    this.isTriggered = true;
    this.#act(reason);
  }
}
