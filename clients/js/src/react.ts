// React hooks for the state of a run and of a conversation.

import { useEffect, useState, useSyncExternalStore } from "react";

import { useLatestTools, type UseRunOptions } from "./react_tools.js";
import type { Run } from "./run.js";
import { emptyRun, type RunState } from "./run_state.js";
import type { RunWatch } from "./run_watch.js";

/** Follows a run while the component is mounted and returns its state; `run` may be null. */
export function useRun(run: Run | null, { tools }: UseRunOptions = {}): { state: RunState; error: Error | null } {
  const latestTools = useLatestTools(tools);
  const [opened, setOpened] = useState<{ run: Run; watch: RunWatch } | null>(null);
  useEffect(() => {
    if (!run) return;
    const watch = run.watch({ tools: latestTools });
    setOpened({ run, watch });
    return () => {
      watch.close();
      setOpened(null);
    };
  }, [run, latestTools]);
  // Effects run after rendering: until then the watch belongs to the previous run.
  const watch = opened?.run === run ? opened?.watch : undefined;
  const state = useSyncExternalStore(watch?.subscribe ?? subscribeToNothing, () => watch?.state ?? EMPTY, () => EMPTY);
  return { state, error: watch?.error ?? null };
}

export type { UseRunOptions } from "./react_tools.js";
export { useThread } from "./react_thread.js";
export type { ThreadOptions, UsedThread } from "./react_thread.js";

const EMPTY = emptyRun();
const subscribeToNothing = () => () => undefined;
