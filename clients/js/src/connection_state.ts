// What outlives the connections of a stream: their state, how often they were lost, and how long to wait for the next one.

import { UnreachableError } from "./client_errors.js";
import type { Transport } from "./connection.js";
import { backoffMs } from "./timing.js";

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

const RETRY_MS = 1000; // until the gateway sends another value
const RETRY_MIN_MS = 50; // limits how fast any gateway value makes this client retry
const BACKOFF_MAX_MS = 15_000;

/** Counts the losses of a stream's connections, and decides when to reconnect and when to give up. */
export class ConnectionTracker {
  retryMs = RETRY_MS;
  protected state: ConnectionState = "connecting";
  protected waitingFor: ConnectionUpdate["waitingFor"] = null;
  readonly #patienceMs: number;
  #transport: Transport = "stream";
  #losses = 0; // since a connection was last open
  #failures = 0; // since something new last arrived
  #disconnectedSince: number | null = performance.now(); // null while a connection is open
  #openedAt = 0;

  constructor(patienceMs: number) {
    this.#patienceMs = patienceMs;
  }

  connection(state: ConnectionState): ConnectionUpdate {
    this.state = state;
    const losses = state === "reconnecting" ? this.#losses : 0;
    return { name: "connection", state, losses, transport: this.#transport, waitingFor: this.waitingFor };
  }

  /** Records the loss of the connection; returns the wait before the next one. Throws once patience ends. */
  nextWaitMs(cause?: unknown): number {
    this.waitingFor = null;
    this.#losses += 1;
    const now = performance.now();
    if (this.#disconnectedSince === null && now - this.#openedAt > BACKOFF_MAX_MS) this.#failures = 0;
    this.#disconnectedSince ??= now;
    if (now - this.#disconnectedSince > this.#patienceMs) {
      throw new UnreachableError(`no gateway has answered for ${Math.round(this.#patienceMs / 1000)} s`, { cause });
    }
    if (this.retriesAtOnce()) return 0;
    this.#failures += 1;
    return backoffMs(this.#failures, Math.max(this.retryMs, RETRY_MIN_MS), BACKOFF_MAX_MS);
  }

  /** Records that a connection is open. */
  protected opened(transport: Transport): void {
    this.#transport = transport;
    this.#losses = 0;
    this.#disconnectedSince = null;
    this.#openedAt = performance.now();
  }

  /** Records that something new has arrived, so that the next loss is followed by a short wait. */
  protected progressed(): void {
    this.#failures = 0;
  }

  /** Returns true if the connection was given up for a reason that needs no wait. */
  protected retriesAtOnce(): boolean {
    return false;
  }
}
