// A run's log as JSON pages, for when no stream of this client's own can or should be open.

import { type Batch, type Connection, type Frame, Switched, translateError } from "./connection.js";
import { ProblemError } from "./client_errors.js";
import type { Http } from "./http.js";
import type { EventPage } from "./schema.js";
import { sleep } from "./timing.js";

const PAGE_EVENTS = 500;
// How long the gateway waits for an event: shorter than the 30 s after which some proxies give up a request.
const WAIT_S = 15;
// Between two pages, so that a chatty run does not cause a request for each event.
const PAUSE_MS = 250;
const EMPTY_PAUSE_MS = 2_000;
const ANSWER_MAX_MS = 5_000;

/** What a reader of pages needs to know. */
export interface PageSource {
  http: Http;
  /** The path of the run's events. */
  path: string;
  /** Returns the id of the last event seen. */
  cursor: () => string;
  signal: AbortSignal;
}

/** Gets the page after the cursor; if that is empty and `waitS` is not 0, waits so long for an event. */
export async function getPage({ http, path, cursor, signal }: PageSource, waitS = 0): Promise<EventPage> {
  const headers: Record<string, string> = {};
  if (cursor()) headers["Last-Event-ID"] = cursor();
  const query = `limit=${PAGE_EVENTS}${waitS ? `&wait=${waitS}` : ""}`;
  try {
    const answerMaxMs = 1000 * waitS + ANSWER_MAX_MS;
    return await http.call<EventPage>(`${path}?${query}`, { headers, signal, triesMax: 1, answerMaxMs });
  } catch (error) {
    throw translateError(error, signal);
  }
}

/** Returns true if the run has ended and the page has nothing of it. */
export function isPastEnd({ events, is_ended: isEnded, gap }: EventPage): boolean {
  return isEnded && events.length === 0 && !gap;
}

/** Yields the log from a page on, up to its present end, as replayed batches. */
export async function* readToEnd(source: PageSource, page: EventPage): AsyncGenerator<Batch> {
  for (;; page = await getPage(source)) {
    yield { frames: framesOf(page), replayedTo: page.last_event_id };
    if (!page.has_more) return;
  }
}

export interface Pace {
  /** Ask for a page this often; undefined: keep one request waiting for the next event. */
  everyMs?: number;
  /** Throw `Switched` then, by `performance.now()`. */
  endsAt?: number;
}

/** Follows the log by pages, from the given one on. */
export function openPages(source: PageSource, page: EventPage, pace: Pace): Connection {
  return { transport: "polling", lastId: page.last_event_id, batches: poll(source, page, pace) };
}

async function* poll(source: PageSource, first: EventPage, { everyMs, endsAt = Infinity }: Pace): AsyncGenerator<Batch> {
  yield* readToEnd(source, first);
  let waitingFor: string | null = null;
  for (let pauseMs = everyMs ?? 0; ; ) {
    if (performance.now() > endsAt) throw new Switched();
    await sleep(pauseMs, source.signal);
    const askedAt = performance.now();
    const page = await getPageOrStatus(source, everyMs === undefined ? WAIT_S : 0);
    if (isPastEnd(page)) return;
    const frames = framesOf(page);
    const isQuick = frames.length === 0 && performance.now() - askedAt < EMPTY_PAUSE_MS;
    if (frames.length > 0) waitingFor = null;
    else if ((page.waiting_for ?? null) !== waitingFor) {
      waitingFor = page.waiting_for ?? null;
      frames.push({ id: "", name: "status", text: JSON.stringify({ waiting_for: waitingFor }) });
    }
    yield { frames };
    pauseMs = everyMs ?? (isQuick ? EMPTY_PAUSE_MS : PAUSE_MS);
  }
}

/** Returns an empty page if Redis does not answer to the gateway: that is no loss of the connection. */
async function getPageOrStatus(source: PageSource, waitS: number): Promise<EventPage> {
  try {
    return await getPage(source, waitS);
  } catch (error) {
    const isAway = error instanceof Error && error.cause instanceof ProblemError && error.cause.code === "storage_unavailable";
    if (!isAway) throw error;
    return { events: [], last_event_id: source.cursor(), has_more: false, is_ended: false, waiting_for: "storage" };
  }
}

function framesOf({ events, gap }: EventPage): Frame[] {
  const frames = events.map(({ id, event, data }) => ({ id, name: event, text: JSON.stringify(data) }));
  return gap ? [{ id: "", name: "gap", text: JSON.stringify(gap) }, ...frames] : frames;
}
