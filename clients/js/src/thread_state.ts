// Builds the state of a thread from its events: pure functions without DOM, clock or network.
//
//   let state = emptyThread();
//   for await (const update of thread.updates()) state = reduceThread(state, update);
//   currentBranch(state).map(turnText)

import { answerStage, emptyRun, isTerminal, reduce, type RunState } from "./run_state.js";
import type { WaitingInThread } from "./schema.js";
import type { ConnectionUpdate } from "./connection_state.js";
import type { ThreadUpdate } from "./thread_follower.js";

/** A chat completion message. */
export type ChatMessage = Readonly<Record<string, unknown>>;

export interface TurnState {
  readonly runId: string;
  /** The turn that it follows; null at the root. */
  readonly parentRunId: string | null;
  /** Its place among all turns of the thread, from 1. */
  readonly seq: number;
  /** The new messages of its request. */
  readonly messages: readonly ChatMessage[];
  /** What its events have shown. */
  readonly run: RunState;
  /** The messages that came of it, if its log has expired; else null. */
  readonly result: readonly ChatMessage[] | null;
  readonly isEnded: boolean;
  /** Its run was deleted; the turns that follow it stay. */
  readonly isDeleted: boolean;
}

export interface ThreadState {
  /** All turns, in the order in which they began. */
  readonly turns: readonly TurnState[];
  /** The runs that wait for their turn, the next one first. */
  readonly waiting: readonly WaitingInThread[];
  readonly connection: Omit<ConnectionUpdate, "name">;
}

/** Returns the state before the first event. */
export function emptyThread(): ThreadState {
  return { turns: [], waiting: [], connection: emptyRun().connection };
}

/** Returns the state after an event or a change of the connection. */
export function reduceThread(state: ThreadState, update: ThreadUpdate): ThreadState {
  switch (update.name) {
    case "connection": {
      const { name: _, ...connection } = update;
      return { ...state, connection };
    }
    case "waiting":
      return { ...state, waiting: update.data.runs };
    case "gap":
      return { ...state, turns: update.runId ? state.turns.filter(({ runId }) => runId !== update.runId) : [] };
    case "event":
      return {
        ...state,
        turns: state.turns.map((turn) => {
          if (turn.runId !== update.runId) return turn;
          const run = reduce(turn.run, update.event);
          return { ...turn, run, isEnded: isTerminal(run) };
        }),
      };
    default:
      return withTurn(state, update);
  }
}

function withTurn(state: ThreadState, update: ThreadUpdate & { name: "turn" | "turn_snapshot" | "turn_deleted" }): ThreadState {
  const { data, runId, name } = update;
  const known = name === "turn" ? state.turns.find((turn) => turn.runId === runId) : undefined;
  const status = name === "turn_snapshot" ? (data.status as RunState["status"]) : null;
  const turn: TurnState = {
    runId,
    parentRunId: data.parent_run_id,
    seq: data.seq,
    messages: name === "turn_deleted" ? [] : (data.messages as ChatMessage[]),
    run: known?.run ?? { ...emptyRun(), id: runId, status },
    result: name === "turn_snapshot" ? (data.result as ChatMessage[]) : null,
    isEnded: name !== "turn" || (known?.isEnded ?? false),
    isDeleted: name === "turn_deleted",
  };
  const others = state.turns.filter((one) => one.runId !== runId);
  return { ...state, turns: [...others, turn].sort((a, b) => a.seq - b.seq) };
}

/** Returns the turns of the newest branch, from the root on, without deleted ones. */
export function currentBranch({ turns }: ThreadState): TurnState[] {
  const byRun = new Map(turns.map((turn) => [turn.runId, turn]));
  const path: TurnState[] = [];
  for (let turn = turns.at(-1); turn; turn = byRun.get(turn.parentRunId ?? "")) if (!turn.isDeleted) path.unshift(turn);
  return path;
}

/** Returns the turn whose run works or waits for somebody; null if there is none. */
export function activeTurn({ turns }: ThreadState): TurnState | null {
  return turns.findLast(({ isEnded }) => !isEnded) ?? null;
}

/** Returns the turn's answer so far. */
export function turnText({ run, result }: TurnState): string {
  if (result === null) return answerStage(run)?.text ?? "";
  const answer = result.findLast(({ role, content }) => role === "assistant" && typeof content === "string");
  return typeof answer?.["content"] === "string" ? answer["content"] : "";
}
