// How far a client has followed a run: what it must know to miss nothing and to see nothing twice. No I/O.
//
// An id is `<attempt>-<sequence>`. Sequences are consecutive and attempts only grow, so a hole, a copy and a log that
// was written anew all show in the ids alone.

import { StreamBrokenError } from "./errors.js";
import type { EventDataByName, GapData } from "./schema.js";

export type EventName = keyof EventDataByName;

/** One event of a run. `id` is the cursor: what to resume from once this event was seen. */
export type RunEvent = {
  [Name in EventName]: {
    readonly name: Name;
    readonly id: string;
    readonly sequence: number;
    readonly data: EventDataByName[Name];
    /** When it came, by `performance.now()`; null where it was replayed and its time is not known. */
    readonly at: number | null;
  };
}[EventName];

/** The log no longer has what was seen: whatever came from `sequence` on is void, and comes anew as it now is. */
export interface GapEvent {
  readonly name: "gap";
  readonly id: "";
  readonly sequence: number;
  readonly data: GapData;
  readonly at: null;
}

/** `take` this one; `drop` it, since it is there already; or ask again from the cursor, since something is missing. */
export type Verdict = "take" | "drop" | "ask";

// A hole that stays after this many questions is one of the log itself, not of the connection.
const ASKED_MAX = 3;

interface Position {
  attempt: number;
  sequence: number;
}

/** Attempt and sequence of an id; null where it is none. */
export function parseId(id: string): Position | null {
  const match = /^(\d{1,15})-(\d{1,15})$/.exec(id);
  return match && { attempt: Number(match[1]), sequence: Number(match[2]) };
}

export class Place {
  /** The id of the last event seen; empty for the start. */
  cursor: string;
  /** The last sequence that a gap says is read anew; 0 where none is. */
  gapEnd = 0;
  /** How often in a row the log had to be asked again. */
  asked = 0;
  #attempt: number;
  #sequence: number;

  constructor(cursor = "") {
    const start = parseId(cursor);
    if (cursor !== "" && !start) throw new TypeError(`no event id: ${JSON.stringify(cursor)}`);
    this.cursor = cursor;
    this.#attempt = start?.attempt ?? 0;
    this.#sequence = start?.sequence ?? 0;
  }

  get sequence(): number {
    return this.#sequence;
  }

  /** What to do with a frame of that id; if it is taken, this is the new place. */
  judge(id: string): Verdict {
    const next = parseId(id);
    if (!next) return this.#ask();
    if (this.#isOfAnotherLog(id, next)) return this.#ask();
    if (next.sequence <= this.#sequence) return "drop";
    if (next.sequence !== this.#sequence + 1) return this.#ask();
    this.#go(id, next);
    return "take";
  }

  /** Take an event that no asking explains: the log is like that, and what is missing of it is lost. Null: ask first. */
  accept(id: string): GapEvent | null {
    if (this.asked <= ASKED_MAX) return null;
    const next = parseId(id);
    if (!next) throw new StreamBrokenError(this.cursor);
    const requested = this.cursor || "0";
    this.#go(id, next);
    return gapEvent({ requested, earliest: id, latest: id }, next.sequence);
  }

  /** The log does not hold the cursor. */
  gap(data: GapData): GapEvent {
    const earliest = parseId(data.earliest) ?? { attempt: 0, sequence: 1 };
    this.#sequence = earliest.sequence - 1;
    this.#attempt = 0;
    this.cursor = ""; // it did not stand, so until an event brings a new one, what there is is asked for
    this.gapEnd = parseId(data.latest)?.sequence ?? 0;
    return gapEvent(data, earliest.sequence);
  }

  /** An older sequence of a newer attempt, or the other way round, or another event in the place of the last one. */
  #isOfAnotherLog(id: string, { attempt, sequence }: Position): boolean {
    if (sequence > this.#sequence) return attempt < this.#attempt;
    return attempt > this.#attempt || (sequence === this.#sequence && this.cursor !== "" && id !== this.cursor);
  }

  #go(id: string, { attempt, sequence }: Position): void {
    this.cursor = id;
    this.#attempt = attempt;
    this.#sequence = sequence;
    this.asked = 0;
    if (sequence >= this.gapEnd) this.gapEnd = 0;
  }

  #ask(): Verdict {
    this.asked += 1;
    return "ask";
  }
}

function gapEvent(data: GapData, sequence: number): GapEvent {
  return { name: "gap", id: "", sequence, data, at: null };
}
