// Orders the events of a run: finds duplicates, missing events and changed logs by their ids. No I/O.
//
// An id is `<attempt>-<sequence>`. Sequences are consecutive and attempts only grow, so a missing event, a duplicate and
// a log that was rewritten all show in the ids. The Python client applies the same rules in event_sequencer.py.

import { StreamBrokenError } from "./client_errors.js";
import type { EventDataByName, GapData } from "./schema.js";

export type EventName = keyof EventDataByName;

/** One event of a run. `id` is the cursor from which to resume after this event. */
export type RunEvent = {
  [Name in EventName]: {
    readonly name: Name;
    readonly id: string;
    readonly sequence: number;
    readonly data: EventDataByName[Name];
    /** When the event arrived, by `performance.now()`; null if it was replayed, so its time is unknown. */
    readonly at: number | null;
  };
}[EventName];

/** The log lost events: discard those from `sequence` on. What the log has instead follows. */
export interface GapEvent {
  readonly name: "gap";
  readonly id: "";
  readonly sequence: number;
  readonly data: GapData;
  readonly at: null;
}

/** `accept` the event, `drop` a duplicate, or `retry` from the cursor because an event is missing. */
export type Verdict = "accept" | "drop" | "retry";

// A gap that stays after this many requests is in the log itself, not in the connection.
const GAP_RETRIES_MAX = 3;

interface Position {
  attempt: number;
  sequence: number;
}

/** Parses an id; returns null for any other text. */
export function parseId(id: string): Position | null {
  const match = /^(\d{1,15})-(\d{1,15})$/.exec(id);
  return match && { attempt: Number(match[1]), sequence: Number(match[2]) };
}

/** Tracks how far a client has followed a run, so that it misses no event and sees none twice. */
export class EventSequencer {
  /** The id of the last event; empty for the start. */
  cursor: string;
  /** The last sequence that is replayed after a gap; 0 without one. */
  gapEnd = 0;
  /** How often in a row the log has been requested again. */
  gapRetries = 0;
  #attempt: number;
  #sequence: number;

  constructor(cursor = "") {
    const start = parseId(cursor);
    if (cursor !== "" && !start) throw new TypeError(`not an event id: ${JSON.stringify(cursor)}`);
    this.cursor = cursor;
    this.#attempt = start?.attempt ?? 0;
    this.#sequence = start?.sequence ?? 0;
  }

  get sequence(): number {
    return this.#sequence;
  }

  /** Decides what to do with an event of that id; `accept` moves the cursor to it. */
  judge(id: string): Verdict {
    const next = parseId(id);
    if (!next) return this.#retry();
    if (this.#contradictsLog(id, next)) return this.#retry();
    if (next.sequence <= this.#sequence) return "drop";
    if (next.sequence !== this.#sequence + 1) return this.#retry();
    this.#advance(id, next);
    return "accept";
  }

  /** Skips a gap that retries do not close and moves the cursor to `id`; returns null while retries remain. */
  skipGap(id: string): GapEvent | null {
    if (this.gapRetries <= GAP_RETRIES_MAX) return null;
    const next = parseId(id);
    if (!next) throw new StreamBrokenError(this.cursor);
    const requested = this.cursor || "0";
    this.#advance(id, next);
    return gapEvent({ requested, earliest: id, latest: id }, next.sequence);
  }

  /** Handles a `gap` event: the log does not have the events after the cursor. */
  acceptGap(data: GapData): GapEvent {
    const earliest = parseId(data.earliest) ?? { attempt: 0, sequence: 1 };
    this.#sequence = earliest.sequence - 1;
    this.#attempt = 0;
    this.cursor = ""; // it is invalid; until the next event the log is requested from its start
    this.gapEnd = parseId(data.latest)?.sequence ?? 0;
    return gapEvent(data, earliest.sequence);
  }

  /** Finds an older attempt's later event, a newer attempt's earlier one, or another last event. */
  #contradictsLog(id: string, { attempt, sequence }: Position): boolean {
    if (sequence > this.#sequence) return attempt < this.#attempt;
    return attempt > this.#attempt || (sequence === this.#sequence && this.cursor !== "" && id !== this.cursor);
  }

  #advance(id: string, { attempt, sequence }: Position): void {
    this.cursor = id;
    this.#attempt = attempt;
    this.#sequence = sequence;
    this.gapRetries = 0;
    if (sequence >= this.gapEnd) this.gapEnd = 0;
  }

  #retry(): Verdict {
    this.gapRetries += 1;
    return "retry";
  }
}

function gapEvent(data: GapData, sequence: number): GapEvent {
  return { name: "gap", id: "", sequence, data, at: null };
}
