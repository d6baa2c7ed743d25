// A run's events across every connection: each once, in order, to the terminal one.

import { connect, type Frame, Lost } from "./connection.js";
import { UnreachableError } from "./errors.js";
import type { Http } from "./http.js";
import { type GapEvent, parseId, Place, type RunEvent } from "./place.js";
import { type GapData, TERMINAL_NAMES } from "./schema.js";
import { backoffMs, linkedController, onWake, sleep } from "./timing.js";

/**
 *   connecting    until the first connection stands
 *   replaying     it stands, and brings what was in the log before
 *   live          all that there is has come; what comes now is new
 *   reconnecting  it was lost, or an event was; `losses` counts since one last stood
 *   gap           the log no longer has what was seen, and is read anew
 *   ended         after the terminal event
 */
export type ConnectionState = "connecting" | "replaying" | "live" | "reconnecting" | "gap" | "ended";

/** No event of the run: how the connection to it is. */
export interface ConnectionUpdate {
  readonly name: "connection";
  readonly state: ConnectionState;
  readonly losses: number;
}

export type RunUpdate = RunEvent | GapEvent | ConnectionUpdate;

export interface FollowOptions {
  /** The id of the last event seen; from the first event on where it is left out. */
  from?: string | undefined;
  signal?: AbortSignal | undefined;
  /** How long no gateway may answer before it is given up. */
  patienceMs?: number;
  /** How long a connection may bring nothing; by itself this goes by the gateway's pings. */
  silenceMs?: number;
}

const RETRY_MS = 1000; // until the gateway says otherwise
const RETRY_MIN_MS = 50; // whatever it says, this client does not spin
const BACKOFF_MAX_MS = 15_000;
const PATIENCE_MS = 300_000;

/**
 * Everything of a run: its events, gaps in its log, and how the connection is.
 *
 * @param isNew  the run was just made, so nothing of it is old
 */
export async function* follow(
  http: Http,
  path: string,
  { from = "", signal, patienceMs = PATIENCE_MS, silenceMs }: FollowOptions,
  isNew = false,
): AsyncGenerator<RunUpdate> {
  const start = from === "0" || from === "-1" ? "" : from;
  const follower = new Follower(start, isNew && start === "", patienceMs);
  const kick = new Kick();
  const stopListening = onWake(() => kick.now());
  try {
    yield follower.connection("connecting");
    while (!follower.isEnded) {
      const { controller, release } = linkedController(signal);
      kick.aim(() => controller.abort(new Lost("the network is back")));
      let failure: unknown;
      try {
        const stream = await connect(http, path, follower.cursor, controller.signal, silenceMs);
        if (!stream) break;
        yield follower.open(stream.lastId);
        for await (const { frames, retryMs } of stream.batches) {
          if (retryMs !== null) follower.retryMs = retryMs;
          for (const frame of frames) for (const update of follower.take(frame)) yield update;
          if (follower.isEnded) break;
        }
      } catch (error) {
        if (signal?.aborted || !(error instanceof Lost || controller.signal.aborted)) throw error;
        failure = error instanceof Lost ? error.cause : error;
      } finally {
        release();
        controller.abort();
      }
      if (follower.isEnded) break;
      const waitMs = follower.lose(failure);
      yield follower.connection("reconnecting");
      if (!kick.isKicked) await sleep(waitMs, signal, new Promise<void>((wake) => kick.aim(wake)));
    }
    yield follower.connection("ended");
  } finally {
    stopListening();
  }
}

/** What is known from one connection to the next. */
export class Follower {
  isEnded = false;
  retryMs = RETRY_MS;
  readonly #place: Place;
  readonly #patienceMs: number;
  #losses = 0; // since a connection last stood
  #failures = 0; // since an event last came
  #awaySince: number | null = performance.now(); // null while a connection stands
  #openedAt = 0;
  #isHole = false; // why the connection was given up
  #replayEnd = 0;
  #state: ConnectionState = "connecting";

  constructor(
    from: string,
    private isNew: boolean,
    patienceMs: number,
  ) {
    this.#place = new Place(from);
    this.#patienceMs = patienceMs;
  }

  get cursor(): string {
    return this.#place.cursor;
  }

  connection(state: ConnectionState): ConnectionUpdate {
    this.#state = state;
    return { name: "connection", state, losses: state === "reconnecting" ? this.#losses : 0 };
  }

  /** A connection stands. */
  open(lastId: string): ConnectionUpdate {
    this.#losses = 0;
    this.#awaySince = null;
    this.#openedAt = performance.now();
    this.#replayEnd = this.isNew ? 0 : (parseId(lastId)?.sequence ?? 0);
    return this.connection(this.#settledState());
  }

  /** What a frame brings. Throws `Lost` if the log has to be asked again. */
  *take({ id, name, text }: Frame): Generator<RunUpdate> {
    if (this.isEnded) return;
    const data = parsed(text);
    if (name === "gap" && data) {
      this.isNew = false;
      const gap = this.#place.gap(data as GapData);
      this.#replayEnd = Math.max(this.#replayEnd, this.#place.gapEnd);
      yield gap;
      yield this.connection("gap");
      return;
    }
    if (id === "") return; // no event of a log
    const verdict = this.#place.judge(data ? id : "");
    if (verdict === "drop") return;
    if (verdict === "ask") {
      const gap = this.#place.accept(data ? id : "");
      this.#isHole = gap === null;
      if (!gap) throw new Lost(`${id} after ${this.#place.cursor || "the start"}`);
      yield gap;
    }
    this.#failures = 0;
    const { sequence } = this.#place;
    this.isEnded = TERMINAL_NAMES.has(name);
    yield { name, id, sequence, data, at: sequence > this.#replayEnd ? performance.now() : null } as RunEvent;
    const state = this.#settledState();
    if (state !== this.#state && !this.isEnded) yield this.connection(state);
  }

  /** The connection is gone, and why, if that is known; how long to wait before the next. */
  lose(cause?: unknown): number {
    this.isNew = false;
    this.#losses += 1;
    const now = performance.now();
    if (this.#awaySince === null && now - this.#openedAt > BACKOFF_MAX_MS) this.#failures = 0;
    this.#awaySince ??= now;
    if (now - this.#awaySince > this.#patienceMs) {
      throw new UnreachableError(`no gateway has answered for ${Math.round(this.#patienceMs / 1000)} s`, { cause });
    }
    const isFirstHole = this.#isHole && this.#place.asked === 1;
    this.#isHole = false;
    if (isFirstHole) return 0;
    this.#failures += 1;
    return backoffMs(this.#failures, Math.max(this.retryMs, RETRY_MIN_MS), BACKOFF_MAX_MS);
  }

  #settledState(): ConnectionState {
    if (this.#place.gapEnd) return "gap";
    return this.#place.sequence < this.#replayEnd ? "replaying" : "live";
  }
}

/** A frame's JSON object; null where it is none. */
function parsed(text: string): object | null {
  try {
    const data: unknown = JSON.parse(text);
    return typeof data === "object" ? data : null;
  } catch {
    return null;
  }
}

/** Makes whatever is under way end at once: a connection that may be dead, or the wait for the next one. */
class Kick {
  isKicked = false;
  #act: () => void = () => undefined;

  aim(act: () => void): void {
    this.isKicked = false;
    this.#act = act;
  }

  now(): void {
    this.isKicked = true;
    this.#act();
  }
}
