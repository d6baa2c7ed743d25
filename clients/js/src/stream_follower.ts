// Follows a run across connections: yields each of its events once, in order, to the terminal one.

import { type Connection, ConnectionLost, type Frame, parseObject } from "./connection.js";
import { type ConnectionState, ConnectionTracker, type ConnectionUpdate } from "./connection_state.js";
import { type GapEvent, parseId, EventSequencer, type RunEvent } from "./event_sequencer.js";
import { type Follower, followWith, type FollowOptions, PATIENCE_MS, startOf } from "./follow.js";
import type { Http } from "./http.js";
import { type GapData, type StreamStatusData, TERMINAL_NAMES } from "./schema.js";

export type RunUpdate = RunEvent | GapEvent | ConnectionUpdate;

/**
 * Yields the events of a run, gaps in its log, and changes of the connection.
 *
 * @param isNew  the run was just created, so none of its events are replayed
 */
export async function* follow(http: Http, path: string, options: FollowOptions, isNew = false): AsyncGenerator<RunUpdate> {
  const start = startOf(options.from ?? "");
  const follower = new StreamFollower(start, isNew && start === "", options.patienceMs ?? PATIENCE_MS);
  yield* followWith(follower, http, { path, isPersonal: false }, options);
}

/** The state of a run's stream that outlives a connection. */
export class StreamFollower extends ConnectionTracker implements Follower<RunUpdate> {
  isEnded = false;
  readonly #sequencer: EventSequencer;
  #isSequenceGap = false; // why the connection was given up
  #replayEnd = 0;

  constructor(
    from: string,
    private isNew: boolean,
    patienceMs: number,
  ) {
    super(patienceMs);
    this.#sequencer = new EventSequencer(from);
  }

  get cursor(): string {
    return this.#sequencer.cursor;
  }

  open({ lastId, transport }: Omit<Connection, "batches">): ConnectionUpdate {
    this.opened(transport);
    this.#replayEnd = this.isNew ? 0 : (parseId(lastId)?.sequence ?? 0);
    return this.connection(this.#openState());
  }

  extendReplay(id: string): void {
    if (!this.isNew) this.#replayEnd = Math.max(this.#replayEnd, parseId(id)?.sequence ?? 0);
  }

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
      this.waitingFor = (data as StreamStatusData).waiting_for ?? null;
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
    this.progressed();
    const { sequence } = this.#sequencer;
    this.isEnded = TERMINAL_NAMES.has(name);
    yield { name, id, sequence, data, at: sequence > this.#replayEnd ? performance.now() : null } as RunEvent;
    const state = this.#openState();
    const isChange = state !== this.state || this.waitingFor !== null;
    this.waitingFor = null;
    if (isChange && !this.isEnded) yield this.connection(state);
  }

  override nextWaitMs(cause?: unknown): number {
    this.isNew = false;
    const waitMs = super.nextWaitMs(cause);
    this.#isSequenceGap = false;
    return waitMs;
  }

  protected override retriesAtOnce(): boolean {
    return this.#isSequenceGap && this.#sequencer.gapRetries === 1;
  }

  #openState(): ConnectionState {
    if (this.#sequencer.gapEnd) return "gap";
    return this.#sequencer.sequence < this.#replayEnd ? "replaying" : "live";
  }
}
