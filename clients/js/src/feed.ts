// Follows the feed of a tenant's runs: each entry once, over any number of connections, without end.

import { type Connection, ConnectionLost, type Frame, parseObject } from "./connection.js";
import { ConnectionTracker, type ConnectionUpdate } from "./connection_state.js";
import { type Follower, followWith, type FollowOptions } from "./follow.js";
import type { CallOptions, Http } from "./http.js";
import type { FeedData, FeedPage, GapData } from "./schema.js";

export interface FeedOptions extends CallOptions, Pick<FollowOptions, "silenceMs" | "sparesConnections"> {
  /** The id of the last entry seen; "0" for the oldest that is kept; left out for what happens from now on. */
  cursor?: string;
}

export type FeedEvent =
  | { id: string; event: "run_created" | "run_started" | "run_waiting" | "run_ended" | "run_deleted"; data: FeedData }
  /** The feed no longer has the cursor: list the runs again. */
  | { id: ""; event: "gap"; data: GapData };

const PATH = "/runs/events";

/** Yields the entries after the cursor, in order. */
export async function* followFeed(http: Http, { cursor, ...options }: FeedOptions = {}): AsyncGenerator<FeedEvent, void> {
  const { signal, triesMax } = options;
  const now = () => http.call<FeedPage>(PATH, { signal, ...(triesMax !== undefined && { triesMax }) });
  const follower = new FeedFollower(cursor ?? (await now()).last_event_id);
  const updates = followWith(follower, http, { path: PATH, isPersonal: true }, { sparesConnections: true, ...options });
  for await (const update of updates) if ("event" in update) yield update;
}

class FeedFollower extends ConnectionTracker implements Follower<FeedEvent> {
  readonly isEnded = false;

  constructor(public cursor: string) {
    super(Infinity);
  }

  open({ transport }: Omit<Connection, "batches">): ConnectionUpdate {
    this.opened(transport);
    return this.connection("live");
  }

  extendReplay(): void {
    // Old entries are like new ones.
  }

  *accept({ id, name, text }: Frame): Generator<FeedEvent> {
    const isEntry = id !== "" && name.startsWith("run_") && isAfter(id, this.cursor);
    if (name !== "gap" && !isEntry) return;
    const data = parseObject(text);
    if (!data) throw new ConnectionLost("an entry is not a JSON object");
    this.progressed();
    // After a gap the entries that follow may be older than the cursor.
    this.cursor = isEntry ? id : "0";
    yield (isEntry ? { id, event: name, data } : { id: "", event: "gap", data }) as FeedEvent;
  }

  readTo(id: string): void {
    if (isAfter(id, this.cursor)) this.cursor = id;
  }
}

function isAfter(id: string, cursor: string): boolean {
  const [[ms, number], [otherMs, otherNumber]] = [id, cursor].map((one) => [...one.split("-").map(Number), 0]) as [number[], number[]];
  return ms! > otherMs! || (ms === otherMs && number! > otherNumber!);
}
