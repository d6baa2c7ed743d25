// A list that only grows, for states that are never changed: adding to it copies nothing.

import type { RunEvent } from "./place.js";

/**
 * The events of a run that were seen, as a list that never changes; `with` gives a longer one.
 *
 * All lists that grew out of one another share one array, and each sees only its own length of it. So ten thousand
 * states of a run cost ten thousand events, not fifty million.
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
    // Somebody else has grown this array already: from here on they differ.
    const isShared = this.#shared.length > this.length || this.length === 0;
    const events = isShared ? this.#shared.slice(0, this.length) : this.#shared;
    events.push(event);
    return new EventLog(events, events.length);
  }

  at(index: number): RunEvent | undefined {
    const place = index < 0 ? this.length + index : index;
    return place < this.length ? this.#shared[place] : undefined;
  }

  slice(start = 0, end = this.length): RunEvent[] {
    const placeOf = (index: number) => Math.min(index < 0 ? Math.max(0, this.length + index) : index, this.length);
    return this.#shared.slice(placeOf(start), placeOf(end));
  }

  *[Symbol.iterator](): Iterator<RunEvent> {
    for (let index = 0; index < this.length; index++) yield this.#shared[index] as RunEvent;
  }
}
