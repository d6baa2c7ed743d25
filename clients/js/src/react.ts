// React hooks for the state of a run and of a conversation.

import { useEffect, useRef, useState, useSyncExternalStore } from "react";

import type { ClientTools } from "./client_tools.js";
import type { Run } from "./run.js";
import { emptyRun, type RunState } from "./run_state.js";
import type { RunWatch } from "./run_watch.js";

export interface UseRunOptions {
  /** Functions that answer the calls of the run's client tools while the component is mounted; those of the last render. */
  tools?: ClientTools;
}

/** Follows a run while the component is mounted and returns its state; `run` may be null. */
export function useRun(run: Run | null, { tools }: UseRunOptions = {}): { state: RunState; error: Error | null } {
  const latest = useRef<ClientTools>({});
  useEffect(() => {
    latest.current = tools ?? {};
  });
  const [opened, setOpened] = useState<{ run: Run; watch: RunWatch } | null>(null);
  useEffect(() => {
    if (!run) return;
    const watch = run.watch({ tools: () => latest.current });
    setOpened({ run, watch });
    return () => {
      watch.close();
      setOpened(null);
    };
  }, [run]);
  // Effects run after rendering: until then the watch belongs to the previous run.
  const watch = opened?.run === run ? opened?.watch : undefined;
  const state = useSyncExternalStore(watch?.subscribe ?? subscribeToNothing, () => watch?.state ?? EMPTY, () => EMPTY);
  return { state, error: watch?.error ?? null };
}

export { useThread } from "./react_thread.js";
export type { ThreadOptions, UsedThread } from "./react_thread.js";

const EMPTY = emptyRun();
const subscribeToNothing = () => () => undefined;
