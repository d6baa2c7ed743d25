// Following a run over real sockets: each event once and in order, whatever happens to the connections.

import assert from "node:assert/strict";
import { test } from "node:test";

import { ProblemError, Stagebus, StreamBrokenError, UnreachableError } from "../dist/index.js";
import { StreamFollower } from "../dist/stream_follower.js";
import { answer, chunks, DONE, frame, RESET, RETRY, serve, stream } from "./scripted_server.mjs";

Math.random = () => 0; // removes the backoff

const NOT_FOUND = { code: "run_not_found", title: "Run not found", detail: "there is no run" };

async function follow(server, options = {}, cursor) {
  const updates = [];
  const run = new Stagebus({ baseUrl: server.url }).runs.resume("R 1", cursor);
  for await (const update of run.updates(options)) updates.push(update);
  return updates;
}

const sequences = (updates) => updates.filter(({ name }) => name !== "connection" && name !== "gap").map((e) => e.sequence);
const states = (updates) => updates.filter(({ name }) => name === "connection").map(({ state, losses }) => state + (losses || ""));
const gaps = (updates) => updates.filter(({ name }) => name === "gap").map(({ sequence }) => sequence);

test("a stream goes from connecting to live to ended, with parsed data", async (t) => {
  const server = await serve(t, stream(RETRY + frame("0-1", "run_queued", { stage_id: "run", run_id: "R 1" }) + DONE("7-2")));
  const updates = await follow(server);

  assert.deepEqual(states(updates), ["connecting", "live", "ended"]);
  assert.deepEqual(updates.slice(2, 4).map(({ id, sequence, name }) => [id, sequence, name]), [
    ["0-1", 1, "run_queued"], ["7-2", 2, "done"],
  ]);
  assert.equal(updates[2].data.run_id, "R 1");
  assert.equal(server.asked[0].path, "/runs/R%201/events");
  assert.equal(server.asked[0].headers.accept, "text/event-stream");
});

test("each terminal event ends the stream", async (t) => {
  for (const name of ["done", "cancel", "error"]) {
    const server = await serve(t, stream(frame("7-1", name, { stage_id: "run" }) + chunks("7-2")));
    assert.deepEqual(sequences(await follow(server)), [1], name);
  }
});

test("frames may be cut at any byte, even within a character", async (t) => {
  const body = Buffer.from(`${RETRY}: ping\n\n${frame("7-1", "tool_call", { stage_id: "tools", name: "Zürich 🌦" })}${DONE("7-2")}`);
  const bytes = [...body].map((byte) => Buffer.from([byte]));
  const updates = await follow(await serve(t, stream("", { pieces: bytes })));

  assert.equal(updates.find(({ name }) => name === "tool_call").data.name, "Zürich 🌦");
  assert.deepEqual(sequences(updates), [1, 2]);
});

test("a connection may end at any byte", async (t) => {
  const whole = chunks("7-1", "7-2") + DONE("7-3");
  for (let cut = 0; cut < whole.length; cut += 5) {
    const whatFollows = (cursor) => [chunks("7-1"), chunks("7-2"), DONE("7-3")].slice(cursor).join("");
    const seen = Math.floor(cut / chunks("7-1").length);
    const server = await serve(t, stream(RETRY + whole.slice(0, cut)), stream(whatFollows(seen)));
    assert.deepEqual(sequences(await follow(server)), [1, 2, 3], `cut at ${cut}`);
    assert.deepEqual(server.cursors(), ["", seen ? `7-${seen}` : ""]);
  }
});

test("CRLF line ends from a proxy are accepted", async (t) => {
  const body = (RETRY + chunks("7-1") + DONE("7-2")).replaceAll("\n", "\r\n");
  assert.deepEqual(sequences(await follow(await serve(t, stream("", { pieces: [...body] })))), [1, 2]);
});

test("duplicate events are dropped", async (t) => {
  const server = await serve(t, stream(chunks("7-1", "7-2", "7-1", "7-2", "7-3") + DONE("7-4")));
  assert.deepEqual(sequences(await follow(server)), [1, 2, 3, 4]);
  assert.equal(server.asked.length, 1);
});

test("a sequence gap requests the log again from the cursor", async (t) => {
  const server = await serve(t, stream(RETRY + chunks("7-1", "7-2", "7-4"), { isLeftOpen: true }), stream(chunks("7-3", "7-4") + DONE("7-5")));
  const updates = await follow(server);

  assert.deepEqual(sequences(updates), [1, 2, 3, 4, 5]);
  assert.deepEqual(server.cursors(), ["", "7-2"]);
  assert.deepEqual(gaps(updates), []);
});

test("an event that contradicts the log requests it again", async (t) => {
  for (const odd of ["9-2", "6-4", "9-3", "nonsense"]) {
    const server = await serve(t, stream(chunks("7-1", "7-2", "7-3", odd), { isLeftOpen: true }), stream(DONE("7-4")));
    assert.deepEqual(sequences(await follow(server)), [1, 2, 3, 4], odd);
    assert.deepEqual(server.cursors(), ["", "7-3"]);
  }
});

test("a persistent sequence gap becomes a gap event", async (t) => {
  const server = await serve(t, stream(RETRY + chunks("7-1", "7-3") + DONE("7-4")));
  const updates = await follow(server);

  assert.deepEqual(sequences(updates), [1, 3, 4]);
  assert.deepEqual(gaps(updates), [3]);
  assert.equal(server.asked.length, 4);
});

test("persistent malformed events throw StreamBrokenError", async (t) => {
  for (const bad of [chunks("x"), "id: 7-2\nevent: done\ndata: {\n\n", "id: 7-2\nevent: done\ndata: 1\n\n"]) {
    const server = await serve(t, stream(RETRY + chunks("7-1") + bad));
    await assert.rejects(follow(server), StreamBrokenError);
  }
});

test("frames without an id are ignored", async (t) => {
  const server = await serve(t, stream("data: x\n\nevent: news\ndata: {}\n\n" + DONE("7-1")));
  assert.deepEqual(sequences(await follow(server)), [1]);
});

test("a gap event restarts the sequence at its earliest event", async (t) => {
  const gap = `event: gap\ndata: ${JSON.stringify({ requested: "7-3", earliest: "0-1", latest: "9-2" })}\n\n`;
  const server = await serve(
    t, stream(RETRY + chunks("7-1", "7-2", "7-3")), stream(gap + chunks("0-1")), stream(chunks("0-1", "9-2", "9-3") + DONE("9-4")),
  );
  const updates = await follow(server);

  assert.deepEqual(gaps(updates), [1]);
  assert.deepEqual(sequences(updates), [1, 2, 3, 1, 2, 3, 4]);
  assert.deepEqual(states(updates).slice(2), ["reconnecting1", "live", "gap", "reconnecting1", "gap", "live", "ended"]);
  assert.deepEqual(server.cursors(), ["", "7-3", "0-1"]);
});

test("a gap event after a trimmed log continues at its earliest event", async (t) => {
  const gap = `event: gap\ndata: ${JSON.stringify({ requested: "7-2", earliest: "7-9", latest: "7-10" })}\n\n`;
  const updates = await follow(await serve(t, stream(gap + chunks("7-9", "7-10") + DONE("7-11"))), {}, "7-2");

  assert.deepEqual(gaps(updates), [9]);
  assert.deepEqual(sequences(updates), [9, 10, 11]);
});

test("a cursor resumes the stream, and 204 ends it", async (t) => {
  const server = await serve(t, answer(204));
  const updates = await follow(server, {}, "7-9");

  assert.deepEqual(states(updates), ["connecting", "ended"]);
  assert.deepEqual(server.cursors(), ["7-9"]);
  await assert.rejects(follow(server, { from: "nonsense" }), TypeError);
});

test("temporary errors are retried: 503, 429, a proxy's 502 and 404, a reset connection", async (t) => {
  const server = await serve(
    t, stream(RETRY + chunks("7-1")), answer(503, { code: "draining" }, "content-type: application/problem+json\r\nretry-after: 0\r\n"),
    answer(429, { code: "too_many_streams" }), answer(502, "bad gateway", "content-type: text/html\r\n"),
    answer(404, "not here", "content-type: text/html\r\n"), RESET, stream(DONE("7-2")),
  );
  const updates = await follow(server);

  assert.deepEqual(sequences(updates), [1, 2]);
  const lost = ["reconnecting1", "reconnecting2", "reconnecting3", "reconnecting4", "reconnecting5", "reconnecting6"];
  assert.deepEqual(states(updates), ["connecting", "live", ...lost, "live", "ended"]);
  assert.deepEqual(server.cursors().slice(1), Array(6).fill("7-1"));
});

test("a problem of the gateway ends the stream with its code", async (t) => {
  const server = await serve(t, answer(404, NOT_FOUND));

  await assert.rejects(follow(server), (error) => {
    assert.ok(error instanceof ProblemError);
    assert.deepEqual([error.code, error.status, error.message], ["run_not_found", 404, "there is no run"]);
    return true;
  });
  assert.equal(server.asked.length, 1);
});

test("a page instead of a stream is retried", async (t) => {
  const page = answer(200, "<html>", "content-type: text/html\r\n");
  const updates = await follow(await serve(t, page, stream(DONE("7-1"))));

  assert.deepEqual(states(updates), ["connecting", "reconnecting1", "live", "ended"]);
  await assert.rejects(follow(await serve(t, page), { patienceMs: 1 }), UnreachableError);
});

test("a missing gateway throws UnreachableError when patience ends", async () => {
  await assert.rejects(follow({ url: "http://127.0.0.1:9" }, { patienceMs: 1 }), UnreachableError);
  const signedOut = () => Promise.reject(new Error("sign in first"));
  const events = new Stagebus({ baseUrl: "http://127.0.0.1:9", apiKey: signedOut }).runs.resume("R").events({ patienceMs: 1 });
  await assert.rejects(events.next(), ({ cause }) => cause.message === "sign in first");
});

test("a silent connection is replaced", async (t) => {
  const server = await serve(t, stream(RETRY + chunks("7-1"), { isLeftOpen: true }), stream(DONE("7-2")));
  const updates = await follow(server, { silenceMs: 30 });

  assert.deepEqual(sequences(updates), [1, 2]);
  assert.deepEqual(states(updates), ["connecting", "live", "reconnecting1", "live", "ended"]);
});

test("the silence limit follows the gateway's ping interval", async (t) => {
  const headers = "x-ping-s: 0.02\r\n";
  const server = await serve(t, stream(RETRY + chunks("7-1"), { isLeftOpen: true, headers }), stream(DONE("7-2")));

  assert.deepEqual(sequences(await follow(server)), [1, 2]);
});

test("a slow reader does not make the connection silent", async (t) => {
  const server = await serve(t, stream(RETRY + chunks("7-1", "7-2") + DONE("7-3")));
  const run = new Stagebus({ baseUrl: server.url }).runs.resume("R");
  for await (const _ of run.events({ silenceMs: 20 })) await new Promise((resolve) => setTimeout(resolve, 40));

  assert.equal(server.asked.length, 1);
});

const eventOf = (id, name = "tool_completion_chunk") => ({ id, event: name, data: { stage_id: "extraction" } });
const page = (events, more = {}) => {
  const body = { events, last_event_id: events.at(-1)?.id ?? "7-1", has_more: false, is_ended: false, ...more };
  return answer(200, body, "content-type: application/json\r\n");
};
const HELD_BACK = stream("", { isLeftOpen: true });
const transports = (updates) => updates.filter(({ name }) => name === "connection").map(({ state, transport }) => `${state} ${transport}`);

test("a stream that a proxy holds back is followed by pages, each event once", async (t) => {
  for (const heldBack of [HELD_BACK, { head: "", pieces: [], isLeftOpen: true }]) {
    const server = await serve(
      t, heldBack, page([eventOf("0-1"), eventOf("7-2")], { has_more: true }), page([eventOf("7-3")]),
      page([eventOf("7-3"), eventOf("7-4"), eventOf("7-5", "done")], { is_ended: true }),
    );
    const updates = await follow(server, { silenceMs: 30 });

    assert.deepEqual(sequences(updates), [1, 2, 3, 4, 5]);
    assert.deepEqual([...new Set(transports(updates))].filter((shown) => !shown.endsWith("stream")), ["replaying polling", "live polling", "ended polling"]);
    assert.deepEqual(server.cursors().slice(1), ["", "7-2", "7-3"]);
    assert.deepEqual(server.asked.slice(1).map(({ path, headers }) => [path.split("?")[1], headers.accept]), [
      ["limit=500", "application/json"], ["limit=500", "application/json"], ["limit=500&wait=15", "application/json"],
    ]);
  }
});

test("a stream held back in its middle is resumed, and then followed by pages", async (t) => {
  const first = stream(RETRY + chunks("7-1", "7-2"), { isLeftOpen: true });
  const server = await serve(t, first, HELD_BACK, page([eventOf("7-3"), eventOf("7-4", "done")], { is_ended: true }));
  const updates = await follow(server, { silenceMs: 30 });

  assert.deepEqual(sequences(updates), [1, 2, 3, 4]);
  assert.deepEqual(server.cursors(), ["", "7-2", "7-2"]);
  assert.equal(transports(updates).at(-1), "ended polling");
});

test("a stream whose rest is held back is followed by pages; a quiet one is not", async (t) => {
  const begun = stream(RETRY + chunks("7-1"), { isLeftOpen: true });
  const rest = [eventOf("7-2"), eventOf("7-3", "done")];
  const heldBack = await serve(t, begun, page(rest, { is_ended: true }), page(rest, { is_ended: true }));
  const later = new Promise((resolve) => setTimeout(resolve, 4000, DONE("7-2")));
  const quiet = await serve(t, stream("", { pieces: [RETRY + chunks("7-1"), later] }), page([]));
  const [held, waited] = await Promise.all([follow(heldBack, { silenceMs: 10_000 }), follow(quiet, { silenceMs: 10_000 })]);

  assert.deepEqual(sequences(held), [1, 2, 3]);
  assert.equal(transports(held).at(-1), "ended polling");
  assert.deepEqual([sequences(waited), transports(waited).at(-1), quiet.asked.length], [[1, 2], "ended stream", 2]);
});

test("a gateway that is only slow keeps its stream", async (t) => {
  const unavailable = answer(503, { code: "storage_unavailable" });
  const slow = stream("", { pieces: [new Promise((resolve) => setTimeout(resolve, 300, DONE("7-1")))] });
  const updates = await follow(await serve(t, HELD_BACK, unavailable, slow), { silenceMs: 600 });

  assert.deepEqual(transports(updates), ["connecting stream", "live stream", "reconnecting stream", "live stream", "ended stream"]);
});

test("a gap in a page restarts the sequence, and a lost page is asked for again", async (t) => {
  const gap = { requested: "7-9", earliest: "7-1", latest: "7-2" };
  const server = await serve(t, HELD_BACK, page([eventOf("7-1"), eventOf("7-2")], { gap }), RESET, page([eventOf("7-3", "done")], { is_ended: true }));
  const updates = await follow(server, { silenceMs: 30 }, "7-9");

  assert.deepEqual(gaps(updates), [1]);
  assert.deepEqual(sequences(updates), [1, 2, 3]);
});

test("what a silent run waits for is told until the next event, by streams and by pages", async (t) => {
  const status = (waitingFor) => `event: status\ndata: ${JSON.stringify({ waiting_for: waitingFor })}\n\n`;
  const told = (updates) => updates.map(({ name, waitingFor, sequence }) => (name === "connection" ? (waitingFor ?? "") : sequence));
  const body = RETRY + chunks("7-1") + status("worker") + status("storage") + status(null) + status("worker") + chunks("7-2") + DONE("7-3");
  const streamed = await follow(await serve(t, stream(body)));
  const polled = await follow(
    await serve(t, HELD_BACK, page([eventOf("7-1")]), page([], { waiting_for: "worker" }), answer(503, { code: "storage_unavailable" }), page([eventOf("7-2", "done")], { is_ended: true })),
    { silenceMs: 30 },
  );

  assert.deepEqual(told(streamed), ["", "", 1, "worker", "storage", "", "worker", 2, "", 3, ""]);
  assert.deepEqual(told(polled), ["", "", "", 1, "", "worker", "storage", 2, ""]);
});

test("only new events have times", async (t) => {
  const headers = "x-last-event-id: 7-2\r\n";
  const updates = await follow(await serve(t, stream(chunks("7-1", "7-2", "7-3") + DONE("7-4"), { headers })));

  const events = updates.filter(({ at }) => at !== undefined);
  assert.deepEqual(events.map(({ at }) => typeof at), ["object", "object", "number", "number"]);
  assert.deepEqual(states(updates), ["connecting", "replaying", "live", "ended"]);
});

test("an aborted signal ends the stream immediately", async (t) => {
  const server = await serve(t, stream(chunks("7-1"), { isLeftOpen: true }));
  for (const url of [server.url, "http://127.0.0.1:9"]) {
    const controller = new AbortController();
    setTimeout(() => controller.abort(new Error("enough")), 30);
    await assert.rejects(follow({ url }, { signal: controller.signal }), /enough/);
  }
  await assert.rejects(follow(server, { signal: AbortSignal.abort(new Error("before")) }), /before/);
});

test("a page that is online or awake again reconnects immediately", async (t) => {
  const page = new EventTarget();
  const fakes = {
    addEventListener: page.addEventListener.bind(page), removeEventListener: page.removeEventListener.bind(page),
    document: Object.assign(new EventTarget(), { hidden: false }),
  };
  Object.assign(globalThis, fakes);
  t.after(() => Object.keys(fakes).forEach((name) => delete globalThis[name]));
  const { document } = fakes;
  const sleepFor = (ms) => {
    t.mock.method(Date, "now", () => 0);
    document.hidden = true;
    document.dispatchEvent(new Event("visibilitychange"));
    t.mock.method(Date, "now", () => ms);
    document.hidden = false;
    document.dispatchEvent(new Event("visibilitychange"));
  };
  const open = (id) => stream(`retry: 600000\n\n${chunks(id)}`, { isLeftOpen: true });
  const server = await serve(t, open("7-1"), open("7-2"), RESET, stream(DONE("7-3")));
  const seen = [];
  for await (const { name, id, losses } of new Stagebus({ baseUrl: server.url }).runs.resume("R").updates()) {
    seen.push(id ?? losses);
    if (id === "7-1") sleepFor(30_000), setImmediate(sleepFor, 120_000);
    if (id === "7-2") Math.random = () => 1, setImmediate(() => page.dispatchEvent(new Event("online")));
    if (losses === 2) setImmediate(() => page.dispatchEvent(new Event("online"))); // during its backoff
    if (name === "done") Math.random = () => 0;
  }

  assert.deepEqual(seen, [0, 0, "7-1", 1, 0, "7-2", 1, 2, 0, "7-3", 0]);
});

test("leaving the loop closes the connection", async (t) => {
  const server = await serve(t, stream(chunks("7-1", "7-2"), { isLeftOpen: true }));
  const signals = [];
  const fetch = (url, init) => (signals.push(init.signal), globalThis.fetch(url, init));
  for await (const _ of new Stagebus({ baseUrl: server.url, fetch }).runs.resume("R")) break;

  assert.deepEqual(signals.map(({ aborted }) => aborted), [true]);
});

test("the backoff doubles from the gateway's retry and resets after an event", (t) => {
  t.mock.method(Math, "random", () => 1);
  const follower = new StreamFollower("", false, Infinity);
  follower.retryMs = 2000;
  const waits = Array.from({ length: 5 }, () => follower.nextWaitMs());
  follower.open({ lastId: "", transport: "stream" });
  assert.equal(follower.nextWaitMs(), 15_000, "a connection without events does not reset the backoff");
  follower.open({ lastId: "", transport: "stream" });
  [...follower.accept({ id: "7-1", name: "tool_call", text: "{}" })];

  assert.deepEqual(waits, [2000, 4000, 8000, 15_000, 15_000]);
  assert.equal(follower.nextWaitMs(), 2000);
});
