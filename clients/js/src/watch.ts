// A run that is followed in the background, as a state that changes: for pages and other things that show it.

import type { FollowOptions, RunUpdate } from "./follow.js";
import { emptyRun, reduce, type RunState } from "./state.js";

export interface WatchOptions extends Omit<FollowOptions, "from" | "signal"> {
  /** Calls `notify` once, soon; by itself with the next frame of the page, or at once where there are none. */
  schedule?: (notify: () => void) => void;
}

// What takes long to show is shown less often: listeners get no more than about a third of the time.
const REST = 2;
const HIDDEN_MS = 250; // a hidden page has no frames, even those that it asked for before

export class RunWatch {
  /** What stopped it before the run's end: no such run, no gateway. */
  error: Error | null = null;
  #state: RunState = emptyRun();
  readonly #listeners = new Set<() => void>();
  readonly #closing = new AbortController();
  readonly #schedule: (notify: () => void) => void;
  #isScheduled = false;
  #restsUntil = 0;

  constructor(
    private readonly updates: (options: FollowOptions) => AsyncIterable<RunUpdate>,
    { schedule = nextFrame, ...options }: WatchOptions = {},
  ) {
    this.#schedule = schedule;
    void this.#follow({ patienceMs: Infinity, ...options });
  }

  /** The run as far as it is known; another object each time that it changed. */
  get state(): RunState {
    return this.#state;
  }

  /** Hear of changes: of events many at once, the more the longer listeners take; of the connection each. Returns how to stop. */
  subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  /** Stop following; the run goes on. */
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
      this.#state = reduce(this.#state, { name: "connection", state: "ended", losses: 0 });
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
    const restMs = this.#restsUntil - performance.now();
    if (restMs > 0) setTimeout(() => this.#schedule(notify), restMs);
    else this.#schedule(notify);
  }

  #notify(): void {
    const startedAt = performance.now();
    for (const listener of [...this.#listeners]) listener();
    const endedAt = performance.now();
    this.#restsUntil = endedAt + REST * (endedAt - startedAt);
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
