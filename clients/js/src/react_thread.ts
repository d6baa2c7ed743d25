// A React hook for a conversation.

import { useCallback, useEffect, useMemo, useState, useSyncExternalStore } from "react";

import type { Stagebus } from "./client.js";
import { ProblemError } from "./client_errors.js";
import type { Run } from "./run.js";
import type { CreateRun } from "./schema.js";
import { useLatestTools, type UseRunOptions } from "./react_tools.js";
import type { Thread, ThreadMessage, ThreadWatch } from "./thread.js";
import { activeTurn, currentBranch, emptyThread, type ThreadState, type TurnState } from "./thread_state.js";

/** The fields of every run that the hook creates, such as `model`, `tools` or `on_active`. */
export type ThreadOptions = Omit<CreateRun, "thread_id" | "user_prompt" | "messages" | "parent_run_id">;

export interface UsedThread {
  state: ThreadState;
  /** The turns of the current branch. */
  turns: TurnState[];
  /** The turn whose run works or waits for somebody. */
  active: TurnState | null;
  /** Why following or the last request failed. */
  error: Error | null;
  send: (message: ThreadMessage) => Promise<Run>;
  /** Cancels the active run; its text so far stays. */
  stop: () => Promise<void>;
  /** Answers a turn's message once more; default: the last turn's. */
  regenerate: (runId?: string) => Promise<Run>;
  /** Sends another message in place of that of a turn. */
  edit: (runId: string, message: ThreadMessage) => Promise<Run>;
}

/**
 * Follows a thread while the component is mounted, through reloads and reconnects, and sends messages to it.
 *
 * A thread that does not exist yet is empty; its first message creates it.
 */
export function useThread(
  bus: Stagebus, threadId: string, options: ThreadOptions = {}, { tools }: UseRunOptions = {},
): UsedThread {
  const latestTools = useLatestTools(tools);
  const thread = useMemo(() => bus.threads.open(threadId), [bus, threadId]);
  const [opened, setOpened] = useState<{ thread: Thread; watch: ThreadWatch } | null>(null);
  const [failure, setFailure] = useState<Error | null>(null);
  const [opening, setOpening] = useState(0);
  useEffect(() => {
    const watch = thread.watch({ tools: latestTools });
    setOpened({ thread, watch });
    return () => {
      watch.close();
      setOpened(null);
    };
  }, [thread, opening, latestTools]);
  const watch = opened?.thread === thread ? opened.watch : undefined;
  const state = useSyncExternalStore(watch?.subscribe ?? subscribeToNothing, () => watch?.state ?? EMPTY, () => EMPTY);
  const isMissing = isNotFound(watch?.error);

  const attempt = useCallback(
    async <T>(request: () => Promise<T>): Promise<T> => {
      try {
        const answer = await request();
        setFailure(null);
        // The stream of a thread that did not exist has ended; now it exists.
        if (isMissing) setOpening((count) => count + 1);
        return answer;
      } catch (error) {
        setFailure(error as Error);
        throw error;
      }
    },
    [isMissing],
  );
  const withOptions = (message: ThreadMessage) => ({ ...options, ...(typeof message === "string" ? { user_prompt: message } : message) });
  const turns = currentBranch(state);
  return {
    state,
    turns,
    active: activeTurn(state),
    error: failure ?? (isMissing ? null : (watch?.error ?? null)),
    send: (message) => attempt(() => thread.send(withOptions(message))),
    stop: () => attempt(() => thread.stop()),
    regenerate: (runId = turns.at(-1)?.runId ?? "") => attempt(() => thread.regenerate(runId, options)),
    edit: (runId, message) => attempt(() => thread.edit(runId, withOptions(message))),
  };
}

function isNotFound(error: Error | null | undefined): boolean {
  return error instanceof ProblemError && error.status === 404;
}

const EMPTY = emptyThread();
const subscribeToNothing = () => () => undefined;
