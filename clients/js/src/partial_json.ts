// Reads the JSON of an answer that is still being written.

import { Allow, parse } from "partial-json";

import { isTerminal, type RunState } from "./run_state.js";

// The last text or number may still grow; half of a word such as `true` has no value.
const UNFINISHED = Allow.OBJ | Allow.ARR | Allow.STR | Allow.NUM;
const FENCE = /^```\w*\s/;
const FENCE_END = /`{1,3}$/;

/**
 * Returns the value of the answer so far, of a run with a `response_format`; undefined if there is none yet.
 *
 * Objects, arrays and the last string are closed where the text ends. The whole value is validated only when the run ends.
 */
export function partialJson(state: RunState): unknown {
  const stage = state.stages.findLast(({ kind }) => kind !== "tools");
  let text = (stage?.text ?? "").trim(); // also of a byte order mark
  if (FENCE.test(text)) text = text.replace(FENCE, "").replace(FENCE_END, "").trim();
  if (text === "") return undefined;
  try {
    return isTerminal(state) ? (JSON.parse(text) as unknown) : (parse(text, UNFINISHED) as unknown);
  } catch {
    return undefined; // not JSON, or not even a bracket yet
  }
}
