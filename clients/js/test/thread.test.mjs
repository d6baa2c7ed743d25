// Following a thread over real sockets: each event of each turn once, wherever connections break.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Window } from "happy-dom";

import { activeTurn, currentBranch, emptyThread, ProblemError, reduceThread, Stagebus, turnText } from "../dist/index.js";
import { answer, RETRY, serve, stream } from "./scripted_server.mjs";
import { encode, framesAfter, log, page, RUNS, textOf, turn, USER, WHOLE } from "./thread_frames.mjs";

Math.random = () => 0; // removes the backoff

async function follow(server, options = {}) {
  const updates = [];
  const thread = new Stagebus({ baseUrl: server.url }).threads.open("chat 7/ü");
  for await (const update of thread.updates({ untilIdle: true, ...options })) updates.push(update);
  return { updates, state: updates.reduce(reduceThread, emptyThread()) };
}

const ids = (updates) => updates.filter(({ id }) => id).map(({ id }) => id);

test("each event comes once, wherever the first two connections break", async (t) => {
  for (let first = 0; first < framesAfter().length; first += 1) {
    const before = framesAfter().slice(0, first);
    const cursor = before.findLast(({ id }) => id)?.id;
    const again = framesAfter(cursor).slice(0, 3);
    const later = again.findLast(({ id }) => id)?.id ?? cursor;
    const server = await serve(t, ...[before, again, framesAfter(later)].map((frames) => stream(RETRY + textOf(frames))), answer(204));
    const { updates, state } = await follow(server);

    assert.deepEqual(ids(updates), WHOLE, `cut after ${first} frames`);
    assert.deepEqual(server.cursors(), ["", cursor ?? "", later ?? "", WHOLE.at(-1)]);
    assert.deepEqual(updates.filter(({ name }) => name === "turn").map(({ runId }) => runId), RUNS);
    assert.deepEqual(currentBranch(state).map(turnText), RUNS);
    assert.equal(activeTurn(state), null);
    assert.equal(server.asked[0].path, "/threads/chat%207%2F%C3%BC/events?until=idle");
  }
});

test("a snapshot replaces what was seen of a turn whose log expired", async (t) => {
  const cut = stream(RETRY + turn(0) + textOf(log(0).slice(0, 4)));
  const gap = encode("gap", { run_id: RUNS[0], requested: `${RUNS[0]}.0-4`, earliest: null, latest: null });
  const result = [{ role: "assistant", content: "short", partial: true }];
  const data = { run_id: RUNS[0], parent_run_id: null, seq: 1, status: "cancelled", messages: USER, result };
  const snapshot = encode("turn_snapshot", data, `${RUNS[0]}.0-9`);
  const server = await serve(t, cut, stream(RETRY + gap + snapshot + turn(1) + textOf(log(1))), answer(204));
  const { state } = await follow(server);

  assert.deepEqual(currentBranch(state).map((one) => [turnText(one), one.run.status]), [["short", "cancelled"], [RUNS[1], "succeeded"]]);
  assert.equal(server.cursors().at(-1), `${RUNS[1]}.0-6`);
});

test("a gap in the log of a turn discards what the log lost", async (t) => {
  const again = log(0).slice(3).map(({ text }) => text.replace(".0-", ".7-")).join("");
  const gap = encode("gap", { run_id: RUNS[0], requested: `${RUNS[0]}.0-5`, earliest: "7-4", latest: "7-6" });
  const server = await serve(t, stream(RETRY + turn(0) + textOf(log(0).slice(0, 5)) + gap + again), answer(204));
  const { state } = await follow(server);

  assert.deepEqual(currentBranch(state).map(turnText), [RUNS[0]]);
});

test("a deleted turn leaves the branch, its children stay", async (t) => {
  const deleted = encode("turn_deleted", { run_id: RUNS[0], parent_run_id: null, seq: 1 });
  const server = await serve(t, stream(RETRY + turn(0) + textOf(log(0)) + turn(1) + textOf(log(1)) + deleted), answer(204));
  const { state } = await follow(server);

  assert.deepEqual(currentBranch(state).map(({ runId }) => runId), [RUNS[1]]);
});

test("a deletion in place of the last turn is the end of the thread", async (t) => {
  const end = `${RUNS[1]}.7-9`;
  const deleted = encode("turn_deleted", { run_id: RUNS[1], parent_run_id: RUNS[0], seq: 2 }, end);
  const server = await serve(t, stream(RETRY + turn(0) + textOf(log(0)) + deleted), answer(204));
  await follow(server);

  assert.deepEqual(server.cursors(), ["", end]);
});

test("an event that is missing is asked for again", async (t) => {
  const lossy = turn(0) + textOf(log(0).filter((_, at) => at !== 2));
  const server = await serve(t, stream(RETRY + lossy), stream(RETRY + textOf(framesAfter(`${RUNS[0]}.0-2`))), answer(204));
  const { updates } = await follow(server);

  assert.deepEqual(ids(updates), WHOLE);
  assert.equal(server.cursors()[1], `${RUNS[0]}.0-2`);
});

test("a thread whose stream a proxy holds back is followed by pages, each event once", async (t) => {
  const [cut, end] = [`${RUNS[0]}.0-3`, WHOLE.at(-1)];
  const server = await serve(
    t, stream("", { isLeftOpen: true }), page(framesAfter().slice(0, 4), { has_more: true }), page(framesAfter(cut).slice(0, 4)),
    page(framesAfter(log(0)[5].id)), page([], { last_event_id: end, is_ended: true }),
  );
  const { updates, state } = await follow(server, { silenceMs: 30 });

  assert.deepEqual(ids(updates), WHOLE);
  assert.deepEqual(currentBranch(state).map(turnText), RUNS);
  assert.deepEqual(server.cursors(), ["", "", cut, log(0)[5].id, end, end]);
  assert.equal(server.asked[3].path.split("?")[1], "until=idle&limit=500&wait=15");
  assert.deepEqual([...new Set(updates.filter(({ name }) => name === "connection").map((one) => `${one.state} ${one.transport}`))], [
    "connecting stream", "live stream", "replaying polling", "live polling", "reconnecting polling", "ended polling",
  ]);
});

test("what a silent turn waits for is told until its next event", async (t) => {
  const status = encode("status", { waiting_for: "worker" });
  const [first, ...rest] = log(0);
  const server = await serve(t, stream(RETRY + turn(0) + first.text + status + textOf(rest)), answer(204));
  const { updates } = await follow(server);

  assert.deepEqual(updates.map(({ name, waitingFor }) => (name === "connection" ? (waitingFor ?? "") : name)).slice(2, 7), [
    "turn", "event", "worker", "event", "",
  ]);
});

test("a thread that does not exist ends the stream with the gateway's error", async (t) => {
  const server = await serve(t, answer(404, { code: "thread_not_found", title: "Thread not found", detail: "there is no thread" }));

  await assert.rejects(follow(server), (error) => error instanceof ProblemError && error.code === "thread_not_found");
  assert.throws(() => new Stagebus({ baseUrl: server.url }).threads.open("x").updates({ from: "7-1" }), TypeError);
});

test("a message is sent with its thread, a text or the fields of a run", async (t) => {
  const server = await serve(t, answer(202, { id: RUNS[0] }));
  const { threads } = new Stagebus({ baseUrl: server.url });
  const run = await threads.send("chat-7", "Hello", { idempotencyKey: "k" });
  await threads.open("chat-7").send({ messages: USER, on_active: "steer" });
  const [first, second] = server.asked.map(({ body }) => JSON.parse(body));

  assert.equal(run.id, RUNS[0]);
  assert.deepEqual(first, { user_prompt: "Hello", thread_id: "chat-7" });
  assert.deepEqual(second, { messages: USER, on_active: "steer", thread_id: "chat-7" });
  assert.equal(server.asked[0].headers["idempotency-key"], "k");
});

test("useThread is empty before the first message, then shows the turns and stops an answer", async (t) => {
  const window = new Window();
  const { document, navigator } = window;
  for (const [name, value] of Object.entries({ window, document, navigator, IS_REACT_ACT_ENVIRONMENT: true })) {
    Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  }
  t.after(() => window.happyDOM.close());
  const { createElement } = await import("react");
  const { act, cleanup, render, waitFor } = await import("@testing-library/react");
  const { useThread } = await import("../dist/react.js");
  const missing = answer(404, { code: "thread_not_found", title: "Thread not found", detail: "there is no thread" });
  const begun = stream(RETRY + turn(0) + textOf(log(0).slice(0, 4)), { isLeftOpen: true });
  const server = await serve(t, missing, answer(202, { id: RUNS[0] }), begun, answer(200, { active_run_id: RUNS[0] }), answer(202, {}));
  const client = new Stagebus({ baseUrl: server.url });
  let used;
  const View = () => {
    used = useThread(client, "chat-7", { model: "demo" });
    const said = used.turns.map((one) => `${one.messages[0].content}: ${turnText(one)}`).join();
    return createElement("p", null, `${said} ${used.active?.runId ?? "idle"} ${used.error?.message ?? "fine"}`);
  };
  const shows = (shown) => waitFor(() => assert.equal(document.querySelector("p").textContent, shown));

  render(createElement(View));
  await waitFor(() => assert.equal(used.state.connection.state, "ended"));
  await shows(" idle fine");
  await act(() => used.send("Hello"));
  await shows(`Hello: ${RUNS[0]} ${RUNS[0]} fine`);
  await act(() => used.stop());
  cleanup();

  assert.deepEqual(server.asked.map(({ method, path }) => `${method} ${path}`), [
    "GET /threads/chat-7/events", "POST /runs", "GET /threads/chat-7/events", "GET /threads/chat-7",
    `POST /runs/${RUNS[0]}/cancel`,
  ]);
  assert.deepEqual(JSON.parse(server.asked[1].body), { model: "demo", user_prompt: "Hello", thread_id: "chat-7" });
});
