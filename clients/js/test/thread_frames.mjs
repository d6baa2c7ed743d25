// The frames of a scripted thread with three turns.

import { answer } from "./scripted_server.mjs";

export const RUNS = [0, 1, 2].map((n) => `01J9ZK3V7Q8E5W2R4T6Y8V0P${n}A`);
export const USER = [{ role: "user", content: "Hello" }];

export const encode = (event, data, id = "") => `${id && `id: ${id}\n`}event: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
export const turn = (n) => encode("turn", { run_id: RUNS[n], parent_run_id: RUNS[n - 1] ?? null, seq: n + 1, messages: USER });

/** The frames of a run that says its own id, each with its cursor. */
export function log(n) {
  const chunk = { stage_id: "extraction", tool_results: { choices: [{ index: 0, delta: { content: RUNS[n] } }] } };
  const result = { text: RUNS[n], tool_calls: [] };
  return [
    ["run_queued", { stage_id: "run", run_id: RUNS[n], model: "m" }], ["run_started", { stage_id: "run" }],
    ["stage_started", { stage_id: "extraction" }], ["tool_completion_chunk", chunk],
    ["stage_completed", { stage_id: "extraction", result }], ["done", { stage_id: "run", usage: {} }],
  ].map(([name, data], at) => ({ id: `${RUNS[n]}.0-${at + 1}`, text: encode(name, data, `${RUNS[n]}.0-${at + 1}`) }));
}

/** The frames that a gateway sends after a cursor. */
export function framesAfter(cursor = "") {
  const frames = [];
  for (const n of [0, 1, 2]) {
    const events = log(n);
    const at = events.findIndex(({ id }) => id === cursor);
    if (at >= 0) frames.length = 0;
    if (at < events.length - 1) frames.push({ id: "", text: turn(n) }, ...events.slice(at + 1));
  }
  return [...frames, { id: "", text: encode("waiting", { runs: [] }) }];
}

export const textOf = (frames) => frames.map(({ text }) => text).join("");

/** The ids of all events. */
export const WHOLE = [0, 1, 2].flatMap((n) => log(n).map(({ id }) => id));

/** A JSON page with these frames. */
export function page(frames, more = {}) {
  const entries = frames.map(({ id, text }) => {
    const [, event, data] = /event: (.*)\ndata: (.*)/.exec(text);
    return { id: id || null, event, data: JSON.parse(data) };
  });
  const body = { frames: entries, last_event_id: entries.findLast(({ id }) => id)?.id ?? "0", has_more: false, ...more };
  return answer(200, body, "content-type: application/json\r\n");
}
