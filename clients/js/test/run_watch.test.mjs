// A run that is followed in the background, by itself and in React.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Window } from "happy-dom";

import { Stagebus } from "../dist/index.js";
import { answer, chunks, DONE, frame, RETRY, serve, stream } from "./scripted_server.mjs";

Math.random = () => 0; // no test waits for a backoff

const text = (id, content) =>
  frame(id, "tool_completion_chunk", { stage_id: "synthesis", tool_results: { choices: [{ delta: { content } }] } });
const runOf = (server, cursor) => new Stagebus({ baseUrl: server.url }).runs.resume("R", cursor);

/** Wait until the watch's state is so. */
function until(watch, condition) {
  return new Promise((resolve) => {
    const look = () => condition(watch.state, watch.error) && resolve(watch.state);
    watch.subscribe(look);
    look();
  });
}

const isEnded = ({ connection }) => connection.state === "ended";

test("a watch follows the whole run and batches notifications", async (t) => {
  const many = Array.from({ length: 500 }, (_, index) => text(`7-${index + 1}`, "a"));
  const watch = runOf(await serve(t, stream(RETRY + many.join("") + DONE("7-501"))), "7-100").watch();
  let told = 0;
  watch.subscribe(() => told++);
  const state = await until(watch, isEnded);

  assert.equal(state.status, "succeeded");
  assert.equal(state.stages[0].text, "a".repeat(500));
  assert.ok(told < 50, `${told}`);
});

test("a slow listener is called less often and still sees the end", async (t) => {
  const gates = Array.from({ length: 4 }, () => {
    let open;
    return { opened: new Promise((resolve) => (open = resolve)), open };
  });
  // Each piece comes as soon as the one before it was shown.
  const later = gates.map(({ opened }, index) => opened.then(() => text(`7-${index + 2}`, "a")));
  const pieces = [RETRY + text("7-1", "a"), ...later, DONE("7-6")];
  const watch = runOf(await serve(t, stream("", { pieces }))).watch();
  const rests = [];
  let shown = 0;
  let shownAt = 0;
  let connection;
  watch.subscribe(() => {
    const startedAt = performance.now();
    const { length } = watch.state.events;
    // Changes of the connection are rare and notify immediately.
    const isOfEvents = watch.state.connection === connection;
    connection = watch.state.connection;
    if (length === shown) return;
    if (shown > 0 && isOfEvents) rests.push(startedAt - shownAt);
    shown = length;
    while (performance.now() - startedAt < 20); // draws
    shownAt = performance.now();
    gates[length - 1]?.open();
  });
  const state = await until(watch, isEnded);

  assert.equal(state.events.length, 6);
  assert.ok(rests.length >= 2, `${rests}`);
  assert.ok(Math.min(...rests) > 35, `${rests}`); // a timer may be early by a little
});

test("a watch that stops early has an error", async (t) => {
  const watch = runOf(await serve(t, answer(404, { code: "run_not_found", detail: "no such run" }))).watch();
  await until(watch, isEnded);

  assert.equal(watch.error.code, "run_not_found");
});

test("a closed watch closes its connection and notifies no one", async (t) => {
  const server = await serve(t, stream(chunks("7-1"), { isLeftOpen: true }));
  const signals = [];
  const fetch = (url, init) => (signals.push(init.signal), globalThis.fetch(url, init));
  const watch = new Stagebus({ baseUrl: server.url, fetch }).runs.resume("R").watch();
  await until(watch, ({ events }) => events.length === 1);
  let told = 0;
  watch.subscribe(() => told++);
  watch.close();
  await new Promise(setImmediate);

  assert.deepEqual(signals.map(({ aborted }) => aborted), [true]);
  assert.deepEqual([told, watch.error], [0, null]);
});

test("useRun shows a run, switches runs, and closes on unmount", async (t) => {
  const window = new Window();
  const { document, navigator } = window;
  for (const [name, value] of Object.entries({ window, document, navigator, IS_REACT_ACT_ENVIRONMENT: true })) {
    Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  }
  t.after(() => window.happyDOM.close());
  const { createElement } = await import("react");
  const { cleanup, render, waitFor } = await import("@testing-library/react");
  const { useRun } = await import("../dist/react.js");
  const drawn = []; // texts, each with the run that it was drawn for
  const View = ({ run }) => {
    const { state, error } = useRun(run);
    drawn.push([run, state.stages[0]?.text]);
    return createElement("p", null, `${state.connection.state} ${state.status} ${state.stages[0]?.text} ${error?.code}`);
  };
  const shows = (shown) => waitFor(() => assert.equal(document.querySelector("p").textContent, shown));

  const open = await serve(t, stream(text("7-1", "Mild."), { isLeftOpen: true }));
  // Strict: each effect is run, taken back and run again.
  const view = render(createElement(View, { run: null }), { reactStrictMode: true });
  await shows("connecting null undefined undefined");
  const first = runOf(open);
  view.rerender(createElement(View, { run: first }));
  await shows("live running Mild. undefined");
  view.rerender(createElement(View, { run: runOf(await serve(t, stream(text("7-1", "Warm.") + DONE("7-2")))) }));
  await shows("ended succeeded Warm. undefined");
  view.rerender(createElement(View, { run: runOf(await serve(t, answer(404, { code: "run_not_found" }))) }));
  await shows("ended null undefined run_not_found");
  assert.ok(drawn.every(([run, shown]) => run === first || shown !== "Mild."), "one run's text is never drawn as another's");
  cleanup();
  assert.equal(document.querySelector("p"), null);
});
