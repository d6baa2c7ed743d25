// Chooses how a log is followed now: by a stream, by pages, or through another tab's stream.

import { type Connection, type Frame, HeldBack, openStream, Switched } from "./connection.js";
import { getPage, hasEvents, isPastEnd, openPages, type Pace, type PageSource } from "./event_pages.js";
import type { Http } from "./http.js";
import { TabGroup } from "./tab_group.js";
import { onVisibility } from "./timing.js";

// A hidden page has no stream. It asks for pages, so that its title and its state stay nearly up to date.
const HIDDEN_POLL_MS = 10_000;
// A page without a place for its stream asks for pages, and for a place from time to time.
const NO_PLACE_POLL_MS = 1_000;
const NO_PLACE_MAX_MS = 15_000;
// After this long a client that polls tries a stream again.
const POLLING_MAX_MS = 300_000;
// If a page takes longer, the network is slow, and the stream is perhaps not held back.
const PAGE_QUICK_MS = 1_000;

/** What is followed: the log of a run or of a thread, or the feed. */
export interface LogAddress {
  path: string;
  /** Who asks decides what the log is, so only tabs with the same credentials can share it. */
  isPersonal: boolean;
}

export class Connector {
  #isSuspect = false; // nothing of the last stream arrived
  #isPatient = false;
  #pollsUntil = 0;
  #isHidden = false;
  #tabs: TabGroup | null | undefined; // undefined until the first connection
  readonly #stopListening: () => void = () => undefined;

  /**
   * @param sparesConnections  no stream while the page is hidden, and one for all tabs that follow the log
   * @param onSwitch           called when another kind of connection suits better
   */
  constructor(
    private readonly http: Http,
    private readonly log: LogAddress,
    private readonly silenceMs: number | undefined,
    private readonly sparesConnections: boolean,
    private readonly onSwitch: () => void,
  ) {
    if (!sparesConnections) return;
    this.#stopListening = onVisibility((isHidden) => {
      const isChange = isHidden !== this.#isHidden;
      this.#isHidden = isHidden;
      if (isChange) this.onSwitch();
    });
  }

  /** Opens the connection that suits now; returns null if there is nothing left of the log. */
  async open(cursor: () => string, signal: AbortSignal): Promise<Connection | null> {
    const source = { http: this.http, path: this.log.path, cursor, signal };
    if (this.#tabs === undefined) this.#tabs = this.sparesConnections ? await this.#joinable() : null;
    if (this.#isHidden) {
      this.#tabs?.leave();
      return this.#openPages(source, { everyMs: HIDDEN_POLL_MS });
    }
    await this.#tabs?.join(this.onSwitch);
    signal.throwIfAborted();
    if (this.#tabs && !this.#tabs.isLeader) return this.#tabs.openShared(source);
    const hasPlace = !this.#tabs || (await this.#tabs.takePlace());
    const connection = await (hasPlace ? this.#openOwn(source) : this.#openPages(source, withoutPlace()));
    if (connection) this.#tabs?.beginBeat();
    return connection;
  }

  /** Passes the frames of an own connection, which follow the event of the id `after`, on to the other tabs. */
  pass(frames: Frame[], after: string): void {
    this.#tabs?.pass(frames, after);
  }

  /** The connection is closed. Returns true if another one should be opened immediately. */
  closed(error: unknown): boolean {
    this.#tabs?.endBeat();
    if (error instanceof HeldBack && (error.isCertain || !this.#isPatient)) return (this.#isSuspect = true);
    return error instanceof Switched;
  }

  /** The network has changed. */
  reset(): void {
    this.#isSuspect = this.#isPatient = false;
    this.#pollsUntil = 0;
  }

  close(): void {
    this.#stopListening();
    this.#tabs?.close();
  }

  async #joinable(): Promise<TabGroup | null> {
    return TabGroup.of(this.http.baseUrl + this.log.path, this.log.isPersonal ? await this.http.fingerprint() : "");
  }

  async #openOwn(source: PageSource): Promise<Connection | null> {
    if (performance.now() < this.#pollsUntil) return this.#openPages(source, { endsAt: this.#pollsUntil });
    if (!this.#isSuspect) {
      const isBehind = () => getPage(source).then(hasEvents, () => false);
      const limits = { silenceMs: this.silenceMs, isPatient: this.#isPatient, isBehind };
      return openStream(this.http, source.path, source.cursor(), source.signal, limits);
    }
    this.#isSuspect = false;
    this.#isPatient = true; // unless the page shows that the gateway is near
    const askedAt = performance.now();
    const page = await getPage(source);
    if (performance.now() - askedAt > PAGE_QUICK_MS) return this.#openOwn(source);
    this.#isPatient = false;
    this.#pollsUntil = performance.now() + POLLING_MAX_MS;
    return isPastEnd(page) ? null : openPages(source, page, { endsAt: this.#pollsUntil });
  }

  async #openPages(source: PageSource, pace: Pace): Promise<Connection | null> {
    const page = await getPage(source);
    return isPastEnd(page) ? null : openPages(source, page, pace);
  }
}

function withoutPlace(): Pace {
  return { everyMs: NO_PLACE_POLL_MS, endsAt: performance.now() + NO_PLACE_MAX_MS };
}
