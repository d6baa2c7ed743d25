// Tests of gateway/static/stream.js: each event once and in order, whatever happens to the connection.

import assert from "node:assert/strict";
import { test } from "node:test";

import { BACKOFF_MAX_MS, BACKOFF_MS, EVENT_NAMES, HOLE_TRIES_MAX, QUIET_MS, RunStream, sequenceOf } from "../../gateway/static/stream.js";

const CONNECTING = 0, OPEN = 1, CLOSED = 2;

/** The browser's EventSource, of which a test plays the server. */
class FakeEventSource extends EventTarget {
  readyState = CONNECTING;

  constructor(url) {
    super();
    this.url = url;
  }

  close() {
    this.readyState = CLOSED;
  }

  stand() {
    this.readyState = OPEN;
    this.dispatchEvent(new Event("open"));
  }

  send(name, id, data = {}) {
    const frame = new MessageEvent(name, { data: JSON.stringify(data), lastEventId: id });
    this.dispatchEvent(frame);
  }

  /** The connection is lost; the browser asks again by itself. */
  lose() {
    this.readyState = CONNECTING;
    this.dispatchEvent(new Event("error"));
  }

  /** An answer other than 200; the browser gives up. */
  refuse() {
    this.readyState = CLOSED;
    this.dispatchEvent(new Event("error"));
  }
}

/** A stream in a world of its own: clock, timers, chance and connections in the test's hand. */
class World {
  sources = [];
  timers = [];
  events = [];
  drops = [];
  states = [];
  now = 0;
  probed = "away";

  constructor(options = {}) {
    const { sources, timers } = this;
    const env = {
      EventSource: class extends FakeEventSource {
        constructor(url) {
          super(url);
          sources.push(this);
        }
      },
      setTimeout: (run, ms) => timers[timers.push({ run, ms }) - 1],
      clearTimeout: (timer) => timers.includes(timer) && timers.splice(timers.indexOf(timer), 1),
      performance: { now: () => this.now },
      Math: { random: () => 1 },
    };
    const listener = {
      onEvent: (event) => this.events.push(event),
      onDrop: (sequence) => this.drops.push(sequence),
      onConnection: (state, losses) => this.states.push(losses ? `${state} ${losses}` : state),
      probe: async () => this.probed,
    };
    this.stream = new RunStream("R 1", listener, { env, ...options });
    this.stream.open();
  }

  get source() {
    return this.sources.at(-1);
  }

  get sequences() {
    return this.events.map((event) => event.sequence);
  }

  /** Let the latest timer run out; returns how long it was set for. */
  elapse() {
    const timer = this.timers.pop();
    timer.run();
    return timer.ms;
  }
}

function live(options) {
  const world = new World(options);
  world.source.stand();
  return world;
}

const settled = () => new Promise((resolve) => setImmediate(resolve));
const chunk = (source, ...ids) => ids.forEach((id) => source.send("tool_completion_chunk", id, { stage_id: "s" }));

test("the sequence of an id, and of what is none", () => {
  assert.equal(sequenceOf("5204-118"), 118);
  for (const id of ["", "118", "5204-", "-1", "a-1", "1-2-3"]) assert.ok(Number.isNaN(sequenceOf(id)), id);
});

test("from connecting to live to ended, each event once with its parsed data", () => {
  const world = live();
  world.source.send("run_queued", "0-1", { run_id: "R 1" });
  world.source.send("done", "7-2", { usage: null });

  assert.equal(world.sources[0].url, "/runs/R%201/events");
  assert.deepEqual(world.states, ["connecting", "live", "ended"]);
  assert.deepEqual(world.events.map(({ id, sequence, name }) => [id, sequence, name]), [
    ["0-1", 1, "run_queued"], ["7-2", 2, "done"],
  ]);
  assert.equal(world.events[0].data.run_id, "R 1");
  assert.equal(world.source.readyState, CLOSED);
});

test("each terminal event ends the stream, and nothing after it is taken", () => {
  for (const name of ["done", "cancel", "error"]) {
    const world = live();
    world.source.send(name, "7-1");
    chunk(world.source, "7-2");

    assert.deepEqual(world.sequences, [1], name);
    assert.equal(world.states.at(-1), "ended", name);
  }
});

test("the connection's own error event is no error of the run", () => {
  const world = live();
  world.source.lose();

  assert.deepEqual(world.events, []);
  assert.equal(world.states.at(-1), "reconnecting 1");
});

test("the browser's own reconnects are counted until one stands", () => {
  const world = live();
  world.source.lose();
  world.source.lose();
  world.source.stand();
  world.source.lose();

  assert.deepEqual(world.states, ["connecting", "live", "reconnecting 1", "reconnecting 2", "live", "reconnecting 1"]);
  assert.equal(world.sources.length, 1);
});

test("copies are dropped", () => {
  const world = live();
  chunk(world.source, "7-1", "7-2", "7-1", "7-2", "7-3");

  assert.deepEqual(world.sequences, [1, 2, 3]);
});

test("an EventSource that gave up is replaced by one that goes on after the last id", async () => {
  const world = live();
  chunk(world.source, "7-1", "7-2");
  world.source.refuse();
  await settled();
  const backoffMs = world.elapse();
  world.source.stand();
  chunk(world.source, "7-3");

  assert.equal(backoffMs, BACKOFF_MS);
  assert.equal(world.source.url, "/runs/R%201/events?last_event_id=7-2");
  assert.deepEqual(world.sequences, [1, 2, 3]);
  assert.deepEqual(world.states.slice(2), ["reconnecting 1", "live"]);
});

test("the backoff doubles up to its limit and starts small again once a connection stood", async () => {
  const world = live();
  const backoffs = [];
  for (let tries = 0; tries < 8; tries++) {
    world.source.refuse();
    await settled();
    backoffs.push(world.elapse());
  }
  assert.deepEqual(backoffs, [500, 1000, 2000, 4000, 8000, BACKOFF_MAX_MS, BACKOFF_MAX_MS, BACKOFF_MAX_MS]);
  assert.equal(world.states.at(-1), "reconnecting 8");

  world.source.stand();
  world.source.refuse();
  await settled();
  assert.equal(world.elapse(), BACKOFF_MS);
});

test("a run that is unknown ends the stream; one that is known is asked for again", async () => {
  const world = live();
  world.probed = "known";
  world.source.refuse();
  await settled();
  world.elapse();
  world.probed = "unknown";
  world.source.refuse();
  await settled();

  assert.equal(world.states.at(-1), "ended");
  assert.equal(world.timers.length, 0);
});

test("a hole is filled by asking again from the last good id", () => {
  const world = live();
  chunk(world.source, "7-1", "7-2", "7-4");
  const [holed] = world.sources;
  world.elapse();
  world.source.stand();
  chunk(holed, "7-5");
  chunk(world.source, "7-3", "7-4", "7-5");

  assert.equal(holed.readyState, CLOSED);
  assert.equal(world.source.url, "/runs/R%201/events?last_event_id=7-2");
  assert.deepEqual(world.sequences, [1, 2, 3, 4, 5]);
  assert.deepEqual(world.drops, []);
});

test("a hole that no asking fills is one of the log: said, and passed over", () => {
  const world = live();
  chunk(world.source, "7-1");
  for (let tries = 0; tries < HOLE_TRIES_MAX; tries++) {
    chunk(world.source, "7-3");
    world.elapse();
    world.source.stand();
  }
  assert.deepEqual(world.sequences, [1]);
  chunk(world.source, "7-3", "7-4");

  assert.deepEqual(world.sequences, [1, 3, 4]);
  assert.deepEqual(world.drops, [3]);
});

test("an id that is none is a hole", () => {
  const world = live();
  chunk(world.source, "7-1", "nonsense");

  assert.deepEqual(world.sequences, [1]);
  assert.equal(world.states.at(-1), "reconnecting 1");
});

test("a log that begins later is taken from there on, and said to be cut", () => {
  const world = live();
  chunk(world.source, "7-40", "7-41");

  assert.deepEqual(world.sequences, [40, 41]);
  assert.deepEqual(world.drops, [40]);
});

test("a gap takes back everything from the earliest event on, and the log is read anew", () => {
  const world = live();
  chunk(world.source, "7-1", "7-2", "7-3");
  world.source.send("gap", "7-3", { requested: "7-3", earliest: "0-1", latest: "9-2" });
  assert.deepEqual(world.drops, [1]);
  chunk(world.source, "0-1");
  assert.equal(world.states.at(-1), "gap");
  chunk(world.source, "9-2", "9-3");

  assert.deepEqual(world.sequences, [1, 2, 3, 1, 2, 3]);
  assert.deepEqual(world.states.slice(2), ["gap", "live"]);
});

test("a gap after a trimmed part leaves what came before the earliest event", () => {
  const world = live();
  chunk(world.source, "7-1", "7-2");
  world.source.send("gap", "7-2", { requested: "7-2", earliest: "7-9", latest: "7-10" });
  chunk(world.source, "7-9", "7-10");

  assert.deepEqual(world.sequences, [1, 2, 9, 10]);
  assert.ok(world.drops.every((sequence) => sequence === 9));
});

test("a connection that is lost within a gap starts from the beginning, still in the gap", async () => {
  const world = live();
  chunk(world.source, "7-1", "7-2");
  world.source.send("gap", "7-2", { requested: "7-2", earliest: "0-1", latest: "9-2" });
  world.source.refuse();
  await settled();
  world.elapse();
  world.source.stand();

  assert.equal(world.source.url, "/runs/R%201/events");
  assert.equal(world.states.at(-1), "gap");
  chunk(world.source, "0-1", "9-2");
  assert.equal(world.states.at(-1), "live");
});

test("reconnect() takes up after the last id, and does nothing for a stream that has ended", () => {
  const world = live();
  chunk(world.source, "7-1");
  world.stream.reconnect();
  assert.equal(world.sources[0].readyState, CLOSED);
  assert.equal(world.source.url, "/runs/R%201/events?last_event_id=7-1");

  world.source.send("done", "7-2");
  world.stream.reconnect();
  assert.equal(world.sources.length, 2);
});

test("a closed stream says nothing more and asks for nothing", async () => {
  const world = live();
  world.source.refuse();
  world.stream.close();
  const said = world.states.length;
  await settled();

  assert.equal(world.states.length, said);
  assert.equal(world.timers.length, 0);
});

test("a new run's events have their time from the first on", () => {
  const world = live({ isNew: true });
  world.now = 5;
  chunk(world.source, "7-1");
  world.now = 6;
  chunk(world.source, "7-2");

  assert.deepEqual(world.events.map((event) => event.at), [5, 6]);
});

test("replayed events have no time until it was quiet, and again after a reconnect", () => {
  const world = live();
  world.now = 1000; // the log took a while to read
  chunk(world.source, "7-1", "7-2");
  world.now += QUIET_MS;
  chunk(world.source, "7-3", "7-4");
  world.source.lose();
  world.now += 1000;
  world.source.stand();
  chunk(world.source, "7-5", "7-6");
  world.now += QUIET_MS;
  chunk(world.source, "7-7");

  const times = world.events.map((event) => event.at);
  assert.deepEqual(times, [null, null, 1000 + QUIET_MS, 1000 + QUIET_MS, null, null, 2000 + 2 * QUIET_MS]);
});

test("every name is asked for once", () => {
  assert.equal(new Set(EVENT_NAMES).size, EVENT_NAMES.length);
});
