// Tabs of one browser: clients in one process, with a fake `navigator.locks` and Node's own BroadcastChannel.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { Stagebus } from "../dist/index.js";
import { answer, frame, RETRY, serve, stream } from "./scripted_server.mjs";
import { framesAfter, page, textOf, WHOLE } from "./thread_frames.mjs";

Math.random = () => 0; // removes the backoff

beforeEach(() => {
  const document = Object.assign(new EventTarget(), { hidden: false });
  const fakes = { document, location: { href: "http://127.0.0.1/" }, navigator: { locks: new FakeLocks() } };
  for (const [name, value] of Object.entries(fakes)) Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
});

function deferred() {
  const parts = {};
  parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }));
  return parts;
}

class FakeLocks {
  #queues = new Map(); // by name: the holder, and those who wait

  async request(name, { ifAvailable, signal }, callback) {
    const queue = this.#queues.get(name) ?? [];
    if (ifAvailable && queue.length > 0) return callback(null);
    this.#queues.set(name, queue);
    const granted = deferred();
    queue.push(granted);
    queue[0].resolve();
    signal?.addEventListener("abort", () => granted.reject(signal.reason));
    try {
      await granted.promise;
      return await callback({ name });
    } finally {
      queue.splice(queue.indexOf(granted), 1);
      queue[0]?.resolve();
    }
  }
}

/** Follows a thread or the feed in the background. */
function collect(updates) {
  const seen = [];
  const waiting = [];
  const ended = (async () => {
    for await (const update of updates) {
      seen.push(update);
      for (const check of waiting) check();
    }
  })();
  const until = (isSo) => new Promise((resolve) => {
    const check = () => isSo(seen) && resolve();
    waiting.push(check);
    check();
  });
  return { seen, ended, until, ids: () => seen.map(({ id }) => id).filter(Boolean) };
}

const streamsOf = ({ asked }) => asked.filter(({ headers }) => headers.accept === "text/event-stream").length;

test("tabs of a thread share a stream, each at its own place in it", async (t) => {
  const frames = framesAfter();
  const gates = [deferred(), deferred()];
  const pieces = [RETRY + textOf(frames.slice(0, 4)), gates[0].promise, gates[1].promise];
  // The second tab reads further than the first one has got, to the next turn: the log is ahead of the stream.
  const server = await serve(t, stream("", { pieces }), page(frames.slice(0, 9)), answer(204));
  const follow = () => collect(new Stagebus({ baseUrl: server.url }).threads.open("chat").updates({ untilIdle: true, sparesConnections: true }));
  const leader = follow();
  await leader.until(() => leader.ids().length === 3);
  const other = follow();
  await other.until(() => other.ids().length === 7);
  gates[0].resolve(textOf(frames.slice(4, 11)));
  await other.until(() => other.ids().length === 9);
  gates[1].resolve(textOf(frames.slice(11)));
  await Promise.all([leader.ended, other.ended]);

  for (const { seen, ids } of [leader, other]) {
    assert.deepEqual(ids(), WHOLE);
    assert.equal(seen.filter(({ name }) => name === "turn").length, 3);
    assert.equal(seen.filter(({ name }) => name === "waiting").length, 1);
  }
  assert.equal(other.seen.find(({ state }) => state === "live").transport, "shared");
  assert.equal(streamsOf(server), 3, "the shared one, and for each tab one that says that the thread is idle");
});

const entry = (id) => frame(id, "run_created", { run_id: `R${id}`, status: "queued", at: 1 });
const feedPage = (id, ...ids) => {
  const events = ids.map((one) => ({ id: one, event: "run_created", data: { run_id: `R${one}`, status: "queued", at: 1 } }));
  return answer(200, { events, has_more: false, last_event_id: id }, "content-type: application/json\r\n");
};

test("a tab to which the leader's frames do not follow reads the feed again", async (t) => {
  const [first, second] = [deferred(), deferred()];
  const shared = stream("", { pieces: [RETRY + entry("5-2"), first.promise, second.promise], isLeftOpen: true });
  const server = await serve(t, shared, feedPage("5-1"), feedPage("7-1", "5-2", "7-1"));
  const ending = new AbortController();
  const follow = () => collect(new Stagebus({ baseUrl: server.url }).runs.events({ cursor: "5-1", signal: ending.signal }));
  const leader = follow();
  await leader.until(() => leader.ids().length === 1);
  const other = follow(); // its page is older than what the leader has
  while (server.asked.length < 2) await new Promise(setImmediate);
  first.resolve(entry("7-1"));
  await other.until(() => other.ids().length === 2);
  second.resolve(entry("7-2"));
  await Promise.all([leader, other].map((one) => one.until(() => one.ids().length === 3)));
  ending.abort(new Error("enough"));
  await Promise.allSettled([leader.ended, other.ended]);

  assert.deepEqual([leader.ids(), other.ids()], Array(2).fill(["5-2", "7-1", "7-2"]));
  assert.equal(streamsOf(server), 1);
});

test("tabs with different keys share no feed", async (t) => {
  const server = await serve(t, stream(RETRY + entry("5-2"), { isLeftOpen: true }));
  const ending = new AbortController();
  const keys = ["sbk_a", "sbk_b"];
  const tabs = keys.map((apiKey) => collect(new Stagebus({ baseUrl: server.url, apiKey }).runs.events({ cursor: "5-1", signal: ending.signal })));
  await Promise.all(tabs.map((tab) => tab.until(() => tab.ids().length === 1)));
  ending.abort(new Error("enough"));
  await Promise.allSettled(tabs.map(({ ended }) => ended));

  assert.equal(streamsOf(server), 2);
});
