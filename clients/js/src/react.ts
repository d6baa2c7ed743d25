// A React hook: the state of a run, as it changes.

import { useEffect, useState, useSyncExternalStore } from "react";

import type { Run } from "./run.js";
import { emptyRun, type RunState } from "./state.js";
import type { RunWatch } from "./watch.js";

/** The state of a run, followed while the component is mounted; of none while `run` is null. */
export function useRun(run: Run | null): { state: RunState; error: Error | null } {
  const [opened, setOpened] = useState<{ run: Run; watch: RunWatch } | null>(null);
  useEffect(() => {
    if (!run) return;
    const watch = run.watch();
    setOpened({ run, watch });
    return () => {
      watch.close();
      setOpened(null);
    };
  }, [run]);
  // Effects come after what is drawn: until then the watch is of the run before.
  const watch = opened?.run === run ? opened?.watch : undefined;
  const state = useSyncExternalStore(watch?.subscribe ?? nothing, () => watch?.state ?? EMPTY, () => EMPTY);
  return { state, error: watch?.error ?? null };
}

const EMPTY = emptyRun();
const nothing = () => () => undefined;
