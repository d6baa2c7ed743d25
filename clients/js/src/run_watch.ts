// Follows a run or a thread in the background and notifies listeners of its state, for pages and other displays.

import type { AnsweringOptions } from "./run.js";
import type { ConnectionUpdate } from "./connection_state.js";
import type { RunUpdate } from "./stream_follower.js";
import { partialJson } from "./partial_json.js";
import { emptyRun, reduce, type RunState } from "./run_state.js";

export interface WatchOptions extends Omit<AnsweringOptions, "from" | "signal"> {
  /** Calls `notify` once, soon; default: with the next animation frame, or immediately where there are none. */
  schedule?: (notify: () => void) => void;
}

// Slow listeners are called less often: they get no more than about a third of the time.
const PAUSE_FACTOR = 2;
const HIDDEN_MS = 250; // a hidden page gets no frames, not even those requested before

/** Keeps the state that a stream's updates make, and tells its listeners. */
export class Watch<State extends { readonly connection: Omit<ConnectionUpdate, "name"> }, Update extends { readonly name: string }> {
  /** Why following stopped before the end: there is no such run or thread, or no gateway. */
  error: Error | null = null;
  #state: State;
  readonly #listeners = new Set<() => void>();
  readonly #closing = new AbortController();
  readonly #schedule: (notify: () => void) => void;
  #isScheduled = false;
  #pausedUntil = 0;

  constructor(
    private readonly updates: (options: AnsweringOptions) => AsyncIterable<Update | ConnectionUpdate>,
    empty: State,
    private readonly reduce: (state: State, update: Update | ConnectionUpdate) => State,
    { schedule = nextFrame, ...options }: WatchOptions = {},
  ) {
    this.#state = empty;
    this.#schedule = schedule;
    void this.#follow({ patienceMs: Infinity, sparesConnections: true, ...options });
  }

  /** The current state; a new object after each change. */
  get state(): State {
    return this.#state;
  }

  /** Adds a listener for changes. Events are batched, connection changes are not. Returns a function that removes it. */
  subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  /** Stops following; the runs continue. */
  close(): void {
    this.#listeners.clear();
    this.#closing.abort();
  }

  async #follow(options: AnsweringOptions): Promise<void> {
    try {
      for await (const update of this.updates({ ...options, from: "0", signal: this.#closing.signal })) {
        this.#state = this.reduce(this.#state, update);
        if (update.name === "connection") this.#notify();
        else this.#notifySoon();
      }
    } catch (error) {
      if (this.#closing.signal.aborted) return;
      this.error = error as Error;
      const { transport } = this.#state.connection;
      this.#state = this.reduce(this.#state, { name: "connection", state: "ended", losses: 0, transport, waitingFor: null });
      this.#notify();
    }
  }

  #notifySoon(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    const notify = () => {
      this.#isScheduled = false;
      this.#notify();
    };
    const pauseMs = this.#pausedUntil - performance.now();
    if (pauseMs > 0) setTimeout(() => this.#schedule(notify), pauseMs);
    else this.#schedule(notify);
  }

  #notify(): void {
    const startedAt = performance.now();
    for (const listener of [...this.#listeners]) listener();
    const endedAt = performance.now();
    this.#pausedUntil = endedAt + PAUSE_FACTOR * (endedAt - startedAt);
  }
}

/** Follows one run. */
export class RunWatch extends Watch<RunState, RunUpdate> {
  constructor(updates: (options: AnsweringOptions) => AsyncIterable<RunUpdate>, options: WatchOptions = {}) {
    super(updates, emptyRun(), reduce, options);
  }

  /** Returns the value of a JSON answer so far; see `partialJson`. */
  partialJson(): unknown {
    return partialJson(this.state);
  }
}

function nextFrame(notify: () => void): void {
  if (typeof requestAnimationFrame !== "function") {
    setTimeout(notify, 0);
    return;
  }
  const once = () => {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    notify();
  };
  const frame = requestAnimationFrame(once);
  const timer = setTimeout(once, HIDDEN_MS);
}
