// Follows a thread across connections: its turns one after the other, each with the events of its run, each once.
//
// An id is `<run id>.<event id>`. The frames `turn`, `waiting` and `gap` have no id and move no cursor, and `turn_deleted` only
// where it stands in place of a turn. The Python client applies the same rules in thread_sequencer.py.

import { type Connection, ConnectionLost, type Frame, HeldBack, openStream } from "./connection.js";
import type { GapEvent, RunEvent } from "./event_sequencer.js";
import type { Http } from "./http.js";
import type { GapData, ThreadGapData, TurnBegunData, TurnDeletedData, TurnSnapshotData, WaitingChangedData } from "./schema.js";
import {
  type ConnectionState, type ConnectionUpdate, type Follower, followWith, type FollowOptions, type Opener, startOf, StreamFollower,
} from "./stream_follower.js";

/** What a thread's stream brings. `id` is the cursor from which to resume after it; empty for frames about the thread itself. */
export type ThreadEvent =
  /** A turn begins. */
  | { readonly name: "turn"; readonly id: ""; readonly runId: string; readonly data: TurnBegunData }
  /** An event of the turn's run, or a gap in its log. */
  | { readonly name: "event"; readonly id: string; readonly runId: string; readonly event: RunEvent | GapEvent }
  /** A turn whose log has expired. */
  | { readonly name: "turn_snapshot"; readonly id: string; readonly runId: string; readonly data: TurnSnapshotData }
  /** A turn whose run was deleted. */
  | { readonly name: "turn_deleted"; readonly id: ""; readonly runId: string; readonly data: TurnDeletedData }
  /** The runs that wait have changed. */
  | { readonly name: "waiting"; readonly id: ""; readonly runId: ""; readonly data: WaitingChangedData }
  /** The cursor is not in the thread: discard the run, or the whole thread if `runId` is empty. */
  | { readonly name: "gap"; readonly id: ""; readonly runId: string; readonly data: ThreadGapData };

export type ThreadUpdate = ThreadEvent | ConnectionUpdate;

const CURSOR = /^([0-9A-HJKMNP-TV-Z]{26})\.(\d{1,15}-\d{1,15})$/;
const FAULTS_MAX = 3;
// Events up to this one are replayed, as long as it is not known where the log of the turn ends.
const ALL_REPLAYED = "0-999999999999999";

/** Yields the events of a thread, and changes of the connection. */
export function followThread(
  http: Http,
  path: string,
  { from = "", signal, patienceMs, silenceMs }: FollowOptions,
): AsyncGenerator<ThreadUpdate> {
  return followWith(new ThreadFollower(startOf(from), patienceMs), () => new StreamOpener(http, path, silenceMs), signal);
}

/** The state that outlives a connection to a thread. */
export class ThreadFollower implements Follower<ThreadUpdate> {
  isEnded = false;
  cursor: string;
  readonly #connection: StreamFollower; // counts losses and waits; it gets no frames
  #runId = "";
  #run = newRun("");
  #isTurnTold = false;
  #tip = ""; // events up to this id are replayed
  #faults = 0;

  constructor(from: string, patienceMs = 300_000) {
    const start = CURSOR.exec(from);
    if (from !== "" && !start) throw new TypeError(`not an event id of a thread: ${JSON.stringify(from)}`);
    this.cursor = from;
    this.#connection = new StreamFollower("", false, patienceMs);
    if (start) {
      this.#runId = start[1] as string;
      this.#run = newRun(start[2] as string);
    }
  }

  get retryMs(): number {
    return this.#connection.retryMs;
  }

  set retryMs(value: number) {
    this.#connection.retryMs = value;
  }

  connection(state: ConnectionState): ConnectionUpdate {
    return this.#connection.connection(state);
  }

  open({ lastId, transport }: Omit<Connection, "batches">): ConnectionUpdate {
    this.#tip = lastId === this.cursor ? "" : lastId;
    const opened = this.#connection.open({ lastId: "", transport });
    return this.#tip ? this.connection("replaying") : opened;
  }

  extendReplay(): void {
    // A thread is followed by a stream alone, which has no pages.
  }

  nextWaitMs(cause?: unknown): number {
    return this.#connection.nextWaitMs(cause);
  }

  *accept(frame: Frame): Generator<ThreadUpdate> {
    const { id, name, text } = frame;
    switch (name) {
      case "status":
        yield* this.#statusOf(frame);
        return;
      case "turn":
      case "turn_snapshot":
      case "turn_deleted":
      case "waiting":
      case "gap": {
        const update = this.#acceptFrame(name, id, parse(text));
        if (update) yield update;
        break;
      }
      default:
        if (id === "") return; // not an event of the thread
        yield* this.#acceptEvent(frame);
    }
    this.#faults = 0;
    this.#connection.progressed();
    if (this.#tip && this.cursor === this.#tip) {
      this.#tip = "";
      yield this.connection("live");
    }
  }

  *#statusOf(frame: Frame): Generator<ThreadUpdate> {
    for (const update of this.#connection.accept(frame)) if (update.name === "connection") yield update;
  }

  *#acceptEvent({ id, name, text }: Frame): Generator<ThreadUpdate> {
    const at = id.indexOf(".");
    const runId = id.slice(0, at);
    if (at < 0 || runId !== this.#runId) throw this.#fault(`${id} in the turn of ${this.#runId || "no run"}`);
    if (this.#tip) this.#run.extendReplay(ALL_REPLAYED);
    for (const event of this.#run.accept({ id: id.slice(at + 1), name, text })) {
      if (event.name === "connection") continue;
      if (event.id) this.cursor = `${runId}.${event.id}`;
      yield { name: "event", id: event.id ? this.cursor : "", runId, event };
    }
  }

  #acceptFrame(name: ThreadEvent["name"], id: string, data: Json): ThreadEvent | null {
    const runId = typeof data["run_id"] === "string" ? data["run_id"] : "";
    if (name === "turn") {
      if (runId === this.#runId && this.#isTurnTold) return null;
      if (runId !== this.#runId) this.#begin(runId);
      this.#isTurnTold = true;
    } else if (name === "turn_snapshot") {
      if (id === this.cursor) return null;
      this.#begin(runId);
      this.cursor = id;
      return { name, id, runId, data: data as unknown as TurnSnapshotData };
    } else if (name === "turn_deleted") {
      if (runId === this.#runId) this.#begin("");
      if (id.startsWith(`${runId}.`)) this.cursor = id; // in place of the turn
    } else if (name === "gap") {
      return this.#acceptGap(runId, data as unknown as ThreadGapData);
    }
    return { name, id: "", runId, data } as unknown as ThreadEvent;
  }

  #acceptGap(runId: string, data: ThreadGapData): ThreadEvent {
    if (runId && runId === this.#runId && data.earliest) {
      const gap = { requested: data.requested, earliest: data.earliest, latest: data.latest ?? data.earliest } satisfies GapData;
      const [event] = this.#run.accept({ id: "", name: "gap", text: JSON.stringify(gap) });
      return { name: "event", id: "", runId, event: event as GapEvent };
    }
    this.#begin("");
    return { name: "gap", id: "", runId, data };
  }

  #begin(runId: string): void {
    this.#runId = runId;
    this.#run = newRun("");
    this.#isTurnTold = false;
  }

  #fault(message: string): Error {
    this.#faults += 1;
    return this.#faults <= FAULTS_MAX ? new ConnectionLost(message) : new TypeError(`the stream of the thread is broken: ${message}`);
  }
}

type Json = Record<string, unknown>;

function newRun(cursor: string): StreamFollower {
  return new StreamFollower(cursor, false, Infinity);
}

function parse(text: string): Json {
  try {
    const data: unknown = JSON.parse(text);
    if (typeof data === "object" && data !== null) return data as Json;
  } catch {
    // handled below
  }
  throw new ConnectionLost("a frame is not a JSON object");
}

/** Opens streams and nothing else. */
class StreamOpener implements Opener {
  #isPatient = false;

  constructor(
    private readonly http: Http,
    private readonly path: string,
    private readonly silenceMs: number | undefined,
  ) {}

  open(cursor: () => string, signal: AbortSignal): Promise<Connection | null> {
    return openStream(this.http, this.path, cursor(), signal, { silenceMs: this.silenceMs, isPatient: this.#isPatient });
  }

  pass(): void {
    // No other tab takes part.
  }

  /** After a stream that did not begin in a moment, the next one may take longer. */
  closed(error: unknown): boolean {
    const isFirst = error instanceof HeldBack && !this.#isPatient;
    if (isFirst) this.#isPatient = true;
    return isFirst;
  }

  reset(): void {
    this.#isPatient = false;
  }

  close(): void {
    // Nothing stays open.
  }
}
