// Follows a thread across connections: its turns one after the other, each with the events of its run, each once.
//
// An id is `<run id>.<event id>`. The frames `turn`, `waiting` and `gap` have no id and move no cursor, and `turn_deleted` only
// where it stands in place of a turn. The Python client applies the same rules in thread_sequencer.py.

import { type Connection, ConnectionLost, type Frame, parseObject } from "./connection.js";
import { ConnectionTracker, type ConnectionUpdate } from "./connection_state.js";
import type { GapEvent, RunEvent } from "./event_sequencer.js";
import { type Follower, followWith, type FollowOptions, PATIENCE_MS, startOf } from "./follow.js";
import type { Http } from "./http.js";
import type {
  GapData, StreamStatusData, ThreadGapData, TurnBegunData, TurnDeletedData, TurnSnapshotData, WaitingChangedData,
} from "./schema.js";
import { StreamFollower } from "./stream_follower.js";

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
export function followThread(http: Http, path: string, options: FollowOptions): AsyncGenerator<ThreadUpdate> {
  const follower = new ThreadFollower(startOf(options.from ?? ""), options.patienceMs);
  return followWith(follower, http, { path, isPersonal: true }, options);
}

/** The state that outlives a connection to a thread. */
export class ThreadFollower extends ConnectionTracker implements Follower<ThreadUpdate> {
  readonly isEnded = false;
  cursor: string;
  #runId = "";
  #run = newRun("");
  #isTurnTold = false;
  #waiting = ""; // as it was told last
  #tip = ""; // events up to this id are replayed
  #faults = 0;

  constructor(from: string, patienceMs = PATIENCE_MS) {
    super(patienceMs);
    const start = CURSOR.exec(from);
    if (from !== "" && !start) throw new TypeError(`not an event id of a thread: ${JSON.stringify(from)}`);
    this.cursor = from;
    if (start) {
      this.#runId = start[1] as string;
      this.#run = newRun(start[2] as string);
    }
  }

  open({ lastId, transport }: Omit<Connection, "batches">): ConnectionUpdate {
    this.opened(transport);
    this.#tip = "";
    this.extendReplay(lastId);
    return this.connection(this.#openState());
  }

  extendReplay(id: string): void {
    if (startOf(id) !== this.cursor) this.#tip = startOf(id);
  }

  *accept(frame: Frame): Generator<ThreadUpdate> {
    const { id, name, text } = frame;
    switch (name) {
      case "status":
        this.waitingFor = (parse(text) as unknown as StreamStatusData).waiting_for ?? null;
        yield this.connection(this.#openState());
        return;
      case "turn":
      case "turn_snapshot":
      case "turn_deleted":
      case "waiting":
      case "gap": {
        const isRepeated = name === "waiting" && text === this.#waiting;
        if (name === "waiting") this.#waiting = text;
        const update = isRepeated ? null : this.#acceptFrame(name, id, parse(text));
        if (update) yield update;
        break;
      }
      default:
        if (id === "") return; // not an event of the thread
        yield* this.#acceptEvent(frame);
    }
    this.#faults = 0;
    this.progressed();
    if (this.cursor === this.#tip) this.#tip = "";
    const isChange = this.#openState() !== this.state || this.waitingFor !== null;
    this.waitingFor = null;
    if (isChange) yield this.connection(this.#openState());
  }

  #openState(): "replaying" | "live" {
    return this.#tip ? "replaying" : "live";
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
  const data = parseObject(text);
  if (!data) throw new ConnectionLost("a frame is not a JSON object");
  return data as Json;
}
