// An immutable list of events: appending returns a longer list without copying.

import type { RunEvent } from "./event_sequencer.js";

/**
 * The received events of a run, as an immutable list; `with` returns a longer one.
 *
 * Lists that grew from one another share one array, and each sees only its own length of it. So ten thousand states of a
 * run take the memory of ten thousand events, not of fifty million.
 */
export class EventLog implements Iterable<RunEvent> {
  static readonly empty = new EventLog([], 0);
  readonly length: number;
  readonly #shared: RunEvent[];

  private constructor(shared: RunEvent[], length: number) {
    this.#shared = shared;
    this.length = length;
  }

  with(event: RunEvent): EventLog {
    // Another list has appended to this array already, so copy it.
    const isShared = this.#shared.length > this.length || this.length === 0;
    const events = isShared ? this.#shared.slice(0, this.length) : this.#shared;
    events.push(event);
    return new EventLog(events, events.length);
  }

  at(index: number): RunEvent | undefined {
    const position = index < 0 ? this.length + index : index;
    return position < this.length ? this.#shared[position] : undefined;
  }

  slice(start = 0, end = this.length): RunEvent[] {
    const positionOf = (index: number) => Math.min(index < 0 ? Math.max(0, this.length + index) : index, this.length);
    return this.#shared.slice(positionOf(start), positionOf(end));
  }

  *[Symbol.iterator](): Iterator<RunEvent> {
    for (let index = 0; index < this.length; index++) yield this.#shared[index] as RunEvent;
  }
}
