// Waits: random backoff, abortable sleep, and wake-up when the machine or the network returns.

/** Returns a random wait up to a limit that doubles (full jitter), so that clients of a lost gateway return spread out. */
export function backoffMs(failures: number, baseMs: number, maxMs: number): number {
  return Math.random() * Math.min(baseMs * 2 ** Math.max(0, failures - 1), maxMs);
}

/** Waits, less if `wake` resolves. Throws the signal's reason if it is aborted. */
export function sleep(ms: number, signal?: AbortSignal, wake?: Promise<unknown>): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const finish = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
      resolve();
    };
    const abort = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(finish, ms);
    signal?.addEventListener("abort", abort, { once: true });
    void wake?.then(finish);
  });
}

/** Returns a controller that aborts with `signal`. Call `release` when done, or the signal keeps the controller alive. */
export function linkedController(signal?: AbortSignal): { controller: AbortController; release: () => void } {
  const controller = new AbortController();
  const abort = () => controller.abort(signal?.reason);
  if (signal?.aborted) abort();
  signal?.addEventListener("abort", abort, { once: true });
  return { controller, release: () => signal?.removeEventListener("abort", abort) };
}

const ASLEEP_MS = 60_000; // a page hidden for longer may have a dead connection

/** Calls `listener` now and when a browser page is hidden or shown; never elsewhere. Returns a stop function. */
export function onVisibility(listener: (isHidden: boolean) => void): () => void {
  if (typeof document === "undefined") return () => undefined;
  const changed = () => listener(document.hidden);
  changed();
  document.addEventListener("visibilitychange", changed);
  return () => document.removeEventListener("visibilitychange", changed);
}

/** Calls `listener` when a browser page is online again or awake again; does nothing elsewhere. Returns a stop function. */
export function onWake(listener: () => void): () => void {
  if (typeof addEventListener !== "function" || typeof document === "undefined") return () => undefined;
  let hiddenAt = Infinity;
  const changed = () => {
    const now = Date.now();
    if (!document.hidden && now - hiddenAt > ASLEEP_MS) listener();
    hiddenAt = document.hidden ? now : Infinity;
  };
  addEventListener("online", listener);
  document.addEventListener("visibilitychange", changed);
  return () => {
    removeEventListener("online", listener);
    document.removeEventListener("visibilitychange", changed);
  };
}
