// The feed: each entry once over broken connections, and pages where a network holds streams back.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Stagebus } from "../dist/index.js";
import { answer, frame, RESET, RETRY, serve, stream } from "./scripted_server.mjs";

Math.random = () => 0; // no test waits for a backoff

const entry = (id, name = "run_created", run = `R${id}`) => frame(id, name, { run_id: run, status: "queued", at: 1 });
const page = (body) => answer(200, { events: [], has_more: false, last_event_id: "5-1", ...body }, "content-type: application/json\r\n");

async function take(server, count, options) {
  const events = [];
  for await (const event of new Stagebus({ baseUrl: server.url }).runs.events(options)) {
    events.push(event);
    if (events.length === count) break;
  }
  return events;
}

test("without a cursor the feed begins with what happens next", async (t) => {
  const server = await serve(t, page({}), stream(RETRY + entry("5-2")));
  const [event] = await take(server, 1);

  assert.deepEqual(event, { id: "5-2", event: "run_created", data: { run_id: "R5-2", status: "queued", at: 1 } });
  assert.equal(server.asked[0].headers.accept, "application/json");
  assert.equal(server.asked[1].headers["last-event-id"], "5-1");
});

test("a lost connection continues at the last entry, each once", async (t) => {
  const broken = stream(RETRY + entry("5-2") + entry("6-1"));
  const server = await serve(t, broken, RESET, answer(503, "", ""), stream(RETRY + entry("6-1") + entry("6-2", "run_ended")));
  const events = await take(server, 3, { cursor: "5-1" });

  assert.deepEqual(events.map(({ id }) => id), ["5-2", "6-1", "6-2"]);
  assert.deepEqual(server.asked.map(({ headers }) => headers["last-event-id"]), ["5-1", "6-1", "6-1", "6-1"]);
});

test("a gap is passed on, and older entries after it", async (t) => {
  const gap = `event: gap\ndata: {"requested":"9-1","earliest":"2-1","latest":"3-1"}\n\n`;
  const server = await serve(t, stream(RETRY + gap + entry("2-1")));
  const events = await take(server, 2, { cursor: "9-1" });

  assert.deepEqual(events.map(({ event }) => event), ["gap", "run_created"]);
});

test("a feed that a proxy holds back is read by pages, past entries that are not for this client", async (t) => {
  const entries = ["7-1", "7-2"].map((id) => ({ id, event: "run_ended", data: { run_id: `R${id}`, status: "succeeded", at: 1 } }));
  const server = await serve(
    t, stream("", { isLeftOpen: true }), page({ last_event_id: "6-9", has_more: true }), page({ last_event_id: "7-0" }),
    page({ events: entries.slice(0, 1), last_event_id: "7-1" }), page({ events: entries, last_event_id: "7-2" }),
  );
  const events = await take(server, 2, { cursor: "5-1", silenceMs: 30 });

  assert.deepEqual(events.map(({ id }) => id), ["7-1", "7-2"]);
  assert.deepEqual(server.cursors(), ["5-1", "5-1", "6-9", "7-0", "7-1"]);
});

test("a refusal ends the feed", async (t) => {
  const server = await serve(t, answer(403, { code: "forbidden", detail: "no", type: "/problems/forbidden" }));

  await assert.rejects(take(server, 1, { cursor: "0" }), { code: "forbidden" });
});

test("an aborted signal ends the feed", async (t) => {
  const server = await serve(t, stream(RETRY, { isLeftOpen: true }));
  const controller = new AbortController();
  const reading = take(server, 1, { cursor: "0", signal: controller.signal });
  controller.abort(new Error("enough"));

  await assert.rejects(reading, /enough/);
});
