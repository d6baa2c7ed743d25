// One stream for all tabs of a browser that follow the same log: of a run, of a thread, or the feed.
//
// Browsers open six HTTP/1.1 connections to a host, over all tabs, and each stream occupies one. So one tab leads: it has
// the log's lock, a stream, and passes its frames on. The others read the log by pages up to its end and then take these
// frames, if they follow on what they have; if not, they read the log again. The browser releases the lock of a tab that
// ends, however it ends, and the next one leads from its own cursor. The tabs of all logs share a few places for streams.

import { type Batch, type Connection, ConnectionLost, type Frame } from "./connection.js";
import { getPage, isPastEnd, type PageSource, readToEnd } from "./event_pages.js";

/** What the leader tells: its stream was opened, frames of it after an id, or that the stream is still open. */
type Message = { kind: "opened" } | Passed | { kind: "alive" };
interface Passed {
  kind: "frames";
  after: string;
  frames: Frame[];
}

// Streams of all tabs together; the rest of the six connections is for requests.
const STREAMS_MAX = 4;
const BEAT_MS = 2_000;
// Without a message for this long the log is read, because the leader may hang.
const SILENCE_MS = 5_000;
// A tab that is before or behind the leader reads the log at most this often, until their cursors meet.
const REREAD_MS = 1_000;
// A tab that falls further behind reads the log instead.
const INBOX_MAX = 1_000;

export class TabGroup {
  /** This tab has the lock, so it has to open a stream. */
  isLeader = false;
  readonly #name: string;
  readonly #channel: BroadcastChannel;
  readonly #origin: string;
  #membership: AbortController | null = null;
  #hasPlace = false;
  #beat: ReturnType<typeof setInterval> | undefined;

  private constructor({ origin, href }: URL, credentials: string) {
    this.#name = `stagebus:${href}${credentials && ` ${credentials}`}`;
    this.#origin = `stagebus:${origin}`;
    this.#channel = new BroadcastChannel(this.#name);
  }

  /**
   * Returns the group of the tabs that follow what the URL names, with those credentials if they matter; null where tabs
   * cannot share, as outside of browsers.
   */
  static of(url: string, credentials: string): TabGroup | null {
    const canShare = typeof document !== "undefined" && typeof BroadcastChannel === "function" && !!navigator.locks;
    return canShare ? new TabGroup(new URL(url, location.href), credentials) : null;
  }

  /** Joins, and returns once it is known whether this tab leads. `onLead` is called if it leads from later on. */
  async join(onLead: () => void): Promise<void> {
    if (this.#membership) return;
    const { signal } = (this.#membership = new AbortController());
    this.isLeader = await holdIfFree(this.#name, signal);
    if (this.isLeader || signal.aborted) return;
    const request = navigator.locks.request(this.#name, { signal }, () => {
      if (signal.aborted) return undefined;
      this.isLeader = true;
      onLead();
      return aborted(signal);
    });
    request.catch(() => undefined); // left before
  }

  /** Returns true if this tab, the leader, may open a stream until it leaves: all tabs together have only a few. */
  async takePlace(): Promise<boolean> {
    const signal = this.#membership?.signal;
    for (let place = 0; signal && !this.#hasPlace && place < STREAMS_MAX; place++) {
      this.#hasPlace = await holdIfFree(`${this.#origin}:stream:${place}`, signal);
    }
    return this.#hasPlace;
  }

  /** Leaves; the next tab leads. */
  leave(): void {
    this.endBeat();
    this.isLeader = this.#hasPlace = false;
    this.#membership?.abort();
    this.#membership = null;
  }

  /** Leaves for good. */
  close(): void {
    this.leave();
    this.#channel.close();
  }

  /** Tells the others that this tab's stream is open, now and from time to time. */
  beginBeat(): void {
    this.#post({ kind: "opened" });
    this.#beat = setInterval(() => this.#post({ kind: "alive" }), BEAT_MS);
  }

  /** The stream is no longer open. */
  endBeat(): void {
    clearInterval(this.#beat);
  }

  /** Passes frames on to the other tabs; they follow the event of the id `after`. */
  pass(frames: Frame[], after: string): void {
    if (this.isLeader && frames.length > 0) this.#post({ kind: "frames", after, frames });
  }

  /** Follows the leader. Returns null if the log has ended and there is nothing left of it. */
  async openShared(source: PageSource): Promise<Connection | null> {
    // Listen first, read the log second. What the leader tells in between arrives twice, and its ids show that.
    const inbox = new Inbox(this.#channel, source.signal);
    try {
      const page = await getPage(source);
      if (!isPastEnd(page)) {
        return { transport: "shared", lastId: page.lastId, batches: followLeader(source, inbox, readToEnd(source, page)) };
      }
    } catch (error) {
      inbox.close();
      throw error;
    }
    inbox.close();
    return null;
  }

  #post(message: Message): void {
    this.#channel.postMessage(message);
  }
}

/** Holds a lock until the signal is aborted, if no other tab holds it; returns whether. */
function holdIfFree(name: string, signal: AbortSignal): Promise<boolean> {
  return new Promise((resolve) => {
    const request = navigator.locks.request(name, { ifAvailable: true }, (lock) => {
      resolve(lock !== null && !signal.aborted);
      return lock === null ? undefined : aborted(signal);
    });
    request.catch(() => resolve(true)); // there are no locks here, as in a sandbox
  });
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

async function* followLeader(source: PageSource, inbox: Inbox, history: AsyncGenerator<Batch>): AsyncGenerator<Batch> {
  try {
    yield* history;
    for (let readAt = performance.now(), isOutdated = false; ; ) {
      const rereadMs = readAt + REREAD_MS - performance.now();
      const message = await inbox.next(isOutdated ? rereadMs : SILENCE_MS);
      if (message?.kind === "alive") continue;
      if (message?.kind === "frames") {
        const frames = framesAfter(message, source.cursor());
        if (frames) yield { frames };
        isOutdated = !frames;
        if (frames || rereadMs > 0) continue;
      }
      readAt = performance.now();
      isOutdated = false;
      yield* readToEnd(source, await getPage(source));
    }
  } finally {
    inbox.close();
  }
}

/** Returns those of the frames that follow on the cursor; null if it is neither before nor among them. */
function framesAfter({ after, frames }: Passed, cursor: string): Frame[] | null {
  if (after === cursor) return frames;
  const at = frames.findLastIndex(({ id }) => id !== "" && id === cursor);
  return at < 0 ? null : frames.slice(at + 1);
}

/** The leader's messages that this tab has not yet taken. */
class Inbox {
  #messages: Message[] = [];
  #wake: (() => void) | null = null;
  readonly #listen = ({ data }: MessageEvent<Message>) => {
    if (this.#messages.length >= INBOX_MAX) this.#messages = [{ kind: "opened" }];
    this.#messages.push(data);
    this.#wake?.();
  };
  readonly #abort = () => this.#wake?.();

  constructor(
    private readonly channel: BroadcastChannel,
    private readonly signal: AbortSignal,
  ) {
    channel.addEventListener("message", this.#listen);
    signal.addEventListener("abort", this.#abort);
  }

  close(): void {
    this.channel.removeEventListener("message", this.#listen);
    this.signal.removeEventListener("abort", this.#abort);
  }

  /** Returns the next message; null if none comes in that time. Throws the signal's reason if it is aborted. */
  async next(waitMs: number): Promise<Message | null> {
    if (this.#messages.length === 0 && !this.signal.aborted) {
      let timer: ReturnType<typeof setTimeout> | undefined;
      await new Promise<void>((wake) => {
        this.#wake = wake;
        timer = setTimeout(wake, waitMs);
      });
      clearTimeout(timer);
      this.#wake = null;
    }
    if (this.signal.aborted) throw this.signal.reason ?? new ConnectionLost("aborted");
    return this.#messages.shift() ?? null;
  }
}
