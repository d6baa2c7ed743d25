// Follows the feed of a tenant's runs: each entry once, over any number of connections, without end.

import { ConnectionLost, type Frame, HeldBack, openStream } from "./connection.js";
import { StagebusError } from "./client_errors.js";
import { type CallOptions, type Http, isRetryable } from "./http.js";
import type { FeedData, FeedPage, GapData } from "./schema.js";
import { backoffMs, linkedController, sleep } from "./timing.js";

export interface FeedOptions extends CallOptions {
  /** The id of the last entry seen; "0" for the oldest that is kept; left out for what happens from now on. */
  cursor?: string;
}

export type FeedEvent =
  | { id: string; event: "run_created" | "run_started" | "run_waiting" | "run_ended" | "run_deleted"; data: FeedData }
  /** The feed no longer has the cursor: list the runs again. */
  | { id: ""; event: "gap"; data: GapData };

const PATH = "/runs/events";
const BACKOFF_MS = 500;
const BACKOFF_MAX_MS = 15_000;
// Of pages, where a network holds streams back.
const PAGE_WAIT_S = 15;
const POLLING_MAX_MS = 300_000;

/** Yields the entries after the cursor, in order. */
export async function* followFeed(http: Http, { cursor, signal, triesMax }: FeedOptions = {}): AsyncGenerator<FeedEvent, void> {
  const { controller, release } = linkedController(signal ?? new AbortController().signal);
  const call = { signal: controller.signal, ...(triesMax !== undefined && { triesMax }) };
  try {
    const reader = new FeedReader(cursor ?? (await getPage(http, "", 0, call)).last_event_id);
    for (let failures = 0, pollsUntil = 0; ; ) {
      try {
        const polls = performance.now() < pollsUntil;
        const source = polls ? readPage(http, reader, call) : readStream(http, reader, controller.signal);
        for await (const event of source) {
          failures = 0;
          yield event;
        }
        if (polls) continue;
      } catch (error) {
        if (controller.signal.aborted) throw controller.signal.reason;
        if (error instanceof HeldBack) pollsUntil = performance.now() + POLLING_MAX_MS;
        else if (!(error instanceof ConnectionLost || (error instanceof StagebusError && isRetryable(error)))) throw error;
      }
      failures += 1;
      await sleep(backoffMs(failures, BACKOFF_MS, BACKOFF_MAX_MS), controller.signal);
    }
  } finally {
    release();
    controller.abort();
  }
}

async function* readStream(http: Http, reader: FeedReader, signal: AbortSignal): AsyncGenerator<FeedEvent> {
  const connection = await openStream(http, PATH, reader.cursor, signal, {});
  if (!connection) return;
  for await (const { frames } of connection.batches) for (const frame of frames) yield* reader.accept(frame);
}

async function* readPage(http: Http, reader: FeedReader, call: CallOptions): AsyncGenerator<FeedEvent> {
  const page = await getPage(http, reader.cursor, PAGE_WAIT_S, call);
  if (page.gap) yield* reader.accept({ id: "", name: "gap", text: JSON.stringify(page.gap) });
  for (const { id, event, data } of page.events) yield* reader.accept({ id, name: event, text: JSON.stringify(data) });
}

function getPage(http: Http, cursor: string, waitS: number, call: CallOptions): Promise<FeedPage> {
  const headers: Record<string, string> = { Accept: "application/json", ...(cursor && { "Last-Event-ID": cursor }) };
  return http.call(waitS ? `${PATH}?wait=${waitS}` : PATH, { ...call, headers, waitS });
}

class FeedReader {
  constructor(public cursor: string) {}

  *accept({ id, name, text }: Frame): Generator<FeedEvent> {
    if (name === "gap") {
      this.cursor = "0"; // the entries that follow may be older than the cursor
      yield { id: "", event: "gap", data: JSON.parse(text) };
    } else if (id && name.startsWith("run_") && isAfter(id, this.cursor)) {
      this.cursor = id;
      yield { id, event: name, data: JSON.parse(text) } as FeedEvent;
    }
  }
}

function isAfter(id: string, cursor: string): boolean {
  const [[ms, number], [otherMs, otherNumber]] = [id, cursor].map((one) => [...one.split("-").map(Number), 0]) as [number[], number[]];
  return ms! > otherMs! || (ms === otherMs && number! > otherNumber!);
}
