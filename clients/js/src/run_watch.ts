// Follows a run in the background and notifies listeners of its state, for pages and other displays.

import type { FollowOptions, RunUpdate } from "./stream_follower.js";
import { partialJson } from "./partial_json.js";
import { emptyRun, reduce, type RunState } from "./run_state.js";

export interface WatchOptions extends Omit<FollowOptions, "from" | "signal"> {
  /** Calls `notify` once, soon; default: with the next animation frame, or immediately where there are none. */
  schedule?: (notify: () => void) => void;
}

// Slow listeners are called less often: they get no more than about a third of the time.
const PAUSE_FACTOR = 2;
const HIDDEN_MS = 250; // a hidden page gets no frames, not even those requested before

export class RunWatch {
  /** Why following stopped before the run's end: there is no such run, or no gateway. */
  error: Error | null = null;
  #state: RunState = emptyRun();
  readonly #listeners = new Set<() => void>();
  readonly #closing = new AbortController();
  readonly #schedule: (notify: () => void) => void;
  #isScheduled = false;
  #pausedUntil = 0;

  constructor(
    private readonly updates: (options: FollowOptions) => AsyncIterable<RunUpdate>,
    { schedule = nextFrame, ...options }: WatchOptions = {},
  ) {
    this.#schedule = schedule;
    void this.#follow({ patienceMs: Infinity, sparesConnections: true, ...options });
  }

  /** The current state; a new object after each change. */
  get state(): RunState {
    return this.#state;
  }

  /** Returns the value of a JSON answer so far; see `partialJson`. */
  partialJson(): unknown {
    return partialJson(this.#state);
  }

  /** Adds a listener for changes. Events are batched, connection changes are not. Returns a function that removes it. */
  subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  /** Stops following; the run continues. */
  close(): void {
    this.#listeners.clear();
    this.#closing.abort();
  }

  async #follow(options: FollowOptions): Promise<void> {
    try {
      for await (const update of this.updates({ ...options, from: "0", signal: this.#closing.signal })) {
        this.#state = reduce(this.#state, update);
        if (update.name === "connection") this.#notify();
        else this.#notifySoon();
      }
    } catch (error) {
      if (this.#closing.signal.aborted) return;
      this.error = error as Error;
      const { transport } = this.#state.connection;
      this.#state = reduce(this.#state, { name: "connection", state: "ended", losses: 0, transport, waitingFor: null });
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
