// A log as JSON pages, for when no stream of this client's own can or should be open: of a run, a thread, or the feed.

import { type Batch, type Connection, type Frame, Switched, translateError } from "./connection.js";
import { ProblemError } from "./client_errors.js";
import type { Http } from "./http.js";
import type { EventPage, FeedPage, ThreadEventPage } from "./schema.js";
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
  /** The path of the log, perhaps with a query. */
  path: string;
  /** Returns the id of the last event seen. */
  cursor: () => string;
  signal: AbortSignal;
}

/** A part of a log, as the frames that a stream would bring. */
export interface LogPage {
  frames: Frame[];
  lastId: string;
  hasMore: boolean;
  isEnded: boolean;
  waitingFor: string | null;
}

/** Gets the page after the cursor; if that is empty and `waitS` is not 0, waits so long for an event. */
export async function getPage({ http, path, cursor, signal }: PageSource, waitS = 0): Promise<LogPage> {
  const headers: Record<string, string> = {};
  if (cursor()) headers["Last-Event-ID"] = cursor();
  const query = `${path.includes("?") ? "&" : "?"}limit=${PAGE_EVENTS}${waitS ? `&wait=${waitS}` : ""}`;
  try {
    const answerMaxMs = 1000 * waitS + ANSWER_MAX_MS;
    return decodePage(await http.call(path + query, { headers, signal, triesMax: 1, answerMaxMs }));
  } catch (error) {
    throw translateError(error, signal);
  }
}

function decodePage(page: EventPage | FeedPage | ThreadEventPage): LogPage {
  const entries = "frames" in page ? page.frames : page.events;
  const frames = entries.map(({ id, event, data }) => ({ id: id ?? "", name: event, text: JSON.stringify(data) }));
  if ("gap" in page && page.gap) frames.unshift({ id: "", name: "gap", text: JSON.stringify(page.gap) });
  return {
    frames,
    lastId: page.last_event_id,
    hasMore: page.has_more,
    isEnded: "is_ended" in page && page.is_ended,
    waitingFor: ("waiting_for" in page && page.waiting_for) || null,
  };
}

/** Returns true if the page has an event; frames without an id may come with every page. */
export function hasEvents({ frames }: LogPage): boolean {
  return frames.some(({ id }) => id !== "");
}

/** Returns true if the log has ended and the page has nothing of it. */
export function isPastEnd(page: LogPage): boolean {
  return page.isEnded && !hasEvents(page) && !page.frames.some(({ name }) => name === "gap");
}

/** Yields the log from a page on, up to its present end, as replayed batches. */
export async function* readToEnd(source: PageSource, page: LogPage): AsyncGenerator<Batch> {
  for (;; page = await getPage(source)) {
    yield { frames: page.frames, replayedTo: page.lastId, readTo: page.lastId };
    if (!page.hasMore) return;
  }
}

export interface Pace {
  /** Ask for a page this often; undefined: keep one request waiting for the next event. */
  everyMs?: number;
  /** Throw `Switched` then, by `performance.now()`. */
  endsAt?: number;
}

/** Follows the log by pages, from the given one on. */
export function openPages(source: PageSource, page: LogPage, pace: Pace): Connection {
  return { transport: "polling", lastId: page.lastId, batches: poll(source, page, pace) };
}

async function* poll(source: PageSource, first: LogPage, { everyMs, endsAt = Infinity }: Pace): AsyncGenerator<Batch> {
  yield* readToEnd(source, first);
  let waitingFor: string | null = null;
  for (let pauseMs = everyMs ?? 0; ; ) {
    if (performance.now() > endsAt) throw new Switched();
    await sleep(pauseMs, source.signal);
    const askedAt = performance.now();
    const page = await getPageOrStatus(source, everyMs === undefined ? WAIT_S : 0);
    if (isPastEnd(page)) return;
    const isQuick = !hasEvents(page) && performance.now() - askedAt < EMPTY_PAUSE_MS;
    if (hasEvents(page)) waitingFor = null;
    else if (page.waitingFor !== waitingFor) {
      waitingFor = page.waitingFor;
      page.frames.push({ id: "", name: "status", text: JSON.stringify({ waiting_for: waitingFor }) });
    }
    yield { frames: page.frames, readTo: page.lastId };
    pauseMs = everyMs ?? (isQuick ? EMPTY_PAUSE_MS : PAUSE_MS);
    if (page.hasMore) pauseMs = 0;
  }
}

/** Returns an empty page if Redis does not answer to the gateway: that is no loss of the connection. */
async function getPageOrStatus(source: PageSource, waitS: number): Promise<LogPage> {
  try {
    return await getPage(source, waitS);
  } catch (error) {
    const isAway = error instanceof Error && error.cause instanceof ProblemError && error.cause.code === "storage_unavailable";
    if (!isAway) throw error;
    return { frames: [], lastId: source.cursor(), hasMore: false, isEnded: false, waitingFor: "storage" };
  }
}
