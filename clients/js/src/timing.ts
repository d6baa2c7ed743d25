// Waiting: with an end, with chance, and cut short when the machine or the network wakes up.

/** Full jitter: anything up to a limit that doubles, so that those who lost the same gateway come back spread out. */
export function backoffMs(failures: number, baseMs: number, maxMs: number): number {
  return Math.random() * Math.min(baseMs * 2 ** Math.max(0, failures - 1), maxMs);
}

/** Wait; sooner if `wake` resolves. Throws the signal's reason if it is aborted. */
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

/** A controller that is aborted with `signal`. `release` before the signal may outlive it: it would be kept alive. */
export function linkedController(signal?: AbortSignal): { controller: AbortController; release: () => void } {
  const controller = new AbortController();
  const abort = () => controller.abort(signal?.reason);
  if (signal?.aborted) abort();
  signal?.addEventListener("abort", abort, { once: true });
  return { controller, release: () => signal?.removeEventListener("abort", abort) };
}

const ASLEEP_MS = 60_000; // a page hidden for longer may hold a dead connection

/** Tells a browser's page that the network is back or that it was asleep; elsewhere nothing. Returns how to stop. */
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
