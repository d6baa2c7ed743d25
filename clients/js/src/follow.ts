// Follows a stream across connections: opens one after the other, and yields what a follower makes of their frames.

import { type Connection, ConnectionLost, type Frame, Switched } from "./connection.js";
import type { ConnectionState, ConnectionUpdate } from "./connection_state.js";
import { Connector, type LogAddress } from "./connector.js";
import type { Http } from "./http.js";
import { linkedController, onWake, sleep } from "./timing.js";

export interface FollowOptions {
  /** The id of the last event seen; default: the start. */
  from?: string | undefined;
  signal?: AbortSignal | undefined;
  /** How long to try to reach a gateway before giving up. */
  patienceMs?: number;
  /** How long a connection may be silent; default: 1.6 of the gateway's ping intervals. */
  silenceMs?: number;
  /**
   * In browsers: keep no stream open while the page is hidden, and share one with the other tabs that follow the same.
   * Browsers open only six HTTP/1.1 connections to a host, over all tabs. Default: false, and true for `watch`.
   */
  sparesConnections?: boolean;
}

export const PATIENCE_MS = 300_000;

/** Returns the cursor of a follower: `0` and `-1` mean the start. */
export function startOf(from: string): string {
  return from === "0" || from === "-1" ? "" : from;
}

/** What outlives the connections of a stream: decides what to yield, when to reconnect and when to give up. */
export interface Follower<Update> {
  readonly isEnded: boolean;
  readonly cursor: string;
  retryMs: number;
  connection(state: ConnectionState): ConnectionUpdate;
  /** Records that a connection is open. */
  open(connection: Omit<Connection, "batches">): ConnectionUpdate;
  /** Events up to this id are replayed. */
  extendReplay(id: string): void;
  /** Yields the updates of a frame. Throws `ConnectionLost` if the log must be requested again. */
  accept(frame: Frame): Iterable<Update | ConnectionUpdate>;
  /** The log was read up to this id, the last entries of which may not be for this client. */
  readTo?(id: string): void;
  nextWaitMs(cause?: unknown): number;
}

/** Yields what a follower makes of the frames of one connection after the other, and changes of the connection. */
export async function* followWith<Update>(
  follower: Follower<Update>,
  http: Http,
  log: LogAddress,
  { signal, silenceMs, sparesConnections = false }: FollowOptions,
): AsyncGenerator<Update | ConnectionUpdate> {
  const interrupt = new Interrupt();
  const connector = new Connector(http, log, silenceMs, sparesConnections, () => interrupt.trigger(new Switched()));
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
        for await (const { frames, retryMs, replayedTo, readTo } of connection.batches) {
          if (retryMs !== undefined) follower.retryMs = retryMs;
          if (replayedTo !== undefined) follower.extendReplay(replayedTo);
          connector.pass(frames, follower.cursor);
          for (const frame of frames) for (const update of follower.accept(frame)) yield update;
          if (readTo !== undefined) follower.readTo?.(readTo);
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
