// What a client asks: once or again, with which headers, and what its errors say.

import assert from "node:assert/strict";
import { test } from "node:test";

import {
  isRetryable, ProblemError, RunCancelledError, RunFailedError, Stagebus, UnreachableError,
} from "../dist/index.js";
import { answer, chunks, DONE, RESET, RETRY, serve, stream } from "./scripted_server.mjs";

Math.random = () => 0; // no test waits for a backoff

const JSON_TYPE = "content-type: application/json\r\n";
const ok = (body, status = 200) => answer(status, body, JSON_TYPE);
const ACCEPTED = ok({ id: "R", status: "queued" }, 202);
const record = (fields) => ok({ id: "R", status: "running", finished_at: null, last_event_id: "7-1", error: null, result: null, ...fields });
const problem = (status, code, headers = "") => answer(status, { code, detail: `it is ${code}`, type: `/problems/${code}` }, `content-type: application/problem+json\r\n${headers}`);
const clientOf = (server, options) => new Stagebus({ baseUrl: `${server.url}/`, ...options });

test("retries of create send the same idempotency key", async (t) => {
  const busy = problem(503, "storage_unavailable", "retry-after: 0\r\n");
  const server = await serve(t, RESET, busy, answer(502, "<html>", "content-type: text/html\r\n"), ACCEPTED);
  const retried = [];
  const onRetry = (tries, error) => retried.push([tries, error.code ?? error.name]);
  const run = await clientOf(server, { apiKey: "sbk_x" }).runs.create({ user_prompt: "Grüße" }, { onRetry });

  assert.equal(run.id, "R");
  assert.deepEqual(retried, [[1, "UnreachableError"], [2, "storage_unavailable"], [3, "UnreachableError"]]);
  assert.equal(new Set(server.asked.map(({ headers }) => headers["idempotency-key"])).size, 1);
  assert.match(server.asked[0].headers["idempotency-key"], /^[\x21-\x7e]{16,255}$/);
  const { method, path, headers, body } = server.asked[3];
  assert.deepEqual([method, path, headers.authorization], ["POST", "/runs", "Bearer sbk_x"]);
  assert.deepEqual(JSON.parse(body), { user_prompt: "Grüße" });
});

test("create sends the caller's idempotency key, or a new one", async (t) => {
  const server = await serve(t, ACCEPTED);
  await clientOf(server).runs.create({ user_prompt: "x" }, { idempotencyKey: "mine" });
  await clientOf(server).runs.create({ user_prompt: "x" });
  await clientOf(server).runs.create({ user_prompt: "x" });

  const keys = server.asked.map(({ headers }) => headers["idempotency-key"]);
  assert.equal(keys[0], "mine");
  assert.equal(new Set(keys).size, 3);
});

test("a record is waited for, exported and deleted", async (t) => {
  const server = await serve(t, record({ status: "succeeded" }));
  const created = await clientOf(server).runs.createAndWait({ user_prompt: "x" }, { waitS: 7 });
  await clientOf(server).runs.get("R", { waitS: 5 });
  await clientOf(server).runs.get("R");

  await clientOf(server).runs.resume("R").export();
  await clientOf(server).runs.resume("R").delete();
  const about = server.asked.splice(3).map(({ method, path }) => [method, path]);
  assert.deepEqual(about, [["GET", "/runs/R/export"], ["DELETE", "/runs/R"]]);
  assert.equal(created.status, "succeeded");
  assert.equal(server.asked[0].headers.prefer, "wait=7");
  assert.deepEqual(server.asked.map(({ path }) => path), ["/runs", "/runs/R?wait=5", "/runs/R"]);
});

test("a thread's deletion that goes on by itself is an answer without a body", async (t) => {
  const server = await serve(t, answer(202));
  await clientOf(server).threads.open("chat").delete();

  assert.deepEqual(server.asked.map(({ method, path }) => [method, path]), [["DELETE", "/threads/chat"]]);
});

test("Retry-After delays the retry", async (t) => {
  const server = await serve(t, problem(429, "rate_limited", "retry-after: 1\r\n"), ACCEPTED);
  const begun = performance.now();
  await clientOf(server).runs.create({ user_prompt: "x" });

  assert.ok(performance.now() - begun >= 990);
});

test("a problem of the gateway is thrown without retries, with all fields", async (t) => {
  const body = {
    type: "/problems/invalid_request", title: "Invalid request", status: 422, detail: "model: too long",
    code: "invalid_request", errors: [{ field: "model", message: "too long" }],
  };
  const server = await serve(t, answer(422, body));

  await assert.rejects(clientOf(server).runs.create({ model: "x" }), (error) => {
    assert.ok(error instanceof ProblemError);
    const { message, code, type, title, status, errors, retryAfterMs } = error;
    assert.deepEqual({ detail: message, code, type, title, status, errors }, body);
    assert.deepEqual([retryAfterMs, isRetryable(error)], [null, false]);
    return true;
  });
  assert.equal(server.asked.length, 1);
});

test("a persistent temporary error is thrown after triesMax tries", async (t) => {
  const server = await serve(t, problem(503, "storage_full", "retry-after: 0\r\n"));
  await assert.rejects(clientOf(server).tools(), (error) => {
    assert.deepEqual([error.code, error.retryAfterMs, isRetryable(error)], ["storage_full", 0, true]);
    return true;
  });
  assert.equal(server.asked.length, 5);
  await assert.rejects(clientOf(server).models({ triesMax: 1 }), ProblemError);
  assert.equal(server.asked.length, 6);
  await assert.rejects(clientOf({ url: "http://127.0.0.1:9" }).runs.list(), UnreachableError);
});

test("a page instead of JSON is an UnreachableError", async (t) => {
  const server = await serve(t, answer(200, "<html>", "content-type: text/html\r\n"));
  await assert.rejects(clientOf(server).models({ triesMax: 1 }), UnreachableError);
});

test("an abort ends a call and the wait before its retry", async (t) => {
  const server = await serve(t, problem(503, "draining", "retry-after: 60\r\n"));
  const controller = new AbortController();
  const onRetry = () => controller.abort(new Error("enough"));

  await assert.rejects(clientOf(server).models({ signal: controller.signal, onRetry }), /enough/);
  await assert.rejects(clientOf(server).models({ signal: AbortSignal.abort(new Error("before")) }), /before/);
});

test("each call has its method and path", async (t) => {
  const server = await serve(t, ok({}));
  const client = clientOf(server);
  const run = client.runs.resume("a/b");
  const calls = [
    [() => client.tools(), "GET /tools"],
    [() => client.models(), "GET /models"],
    [() => client.runs.list(), "GET /runs"],
    [() => client.runs.list({ limit: 5, before: "R" }), "GET /runs?limit=5&before=R"],
    [() => client.runs.list({ status: ["queued", "running"], q: "a b", metadata: { user: "4/2" } }),
      "GET /runs?status=queued%2Crunning&q=a+b&metadata.user=4%2F2"],
    [() => client.runs.get("R"), "GET /runs/R"],
    [() => run.get(), "GET /runs/a%2Fb"],
    [() => run.explain(), "GET /runs/a%2Fb/explain"],
    [() => run.cancel(), "POST /runs/a%2Fb/cancel"],
    [() => run.cancel({ reason: "no" }), 'POST /runs/a%2Fb/cancel {"reason":"no"}'],
    [() => run.decide("c/1", { decision: "deny", reason: "no" }), 'POST /runs/a%2Fb/approvals/c%2F1 {"decision":"deny","reason":"no"}'],
    [() => run.decide("c", { decision: "approve", argumentsJson: '{"n": 9007199254740993}' }),
      'POST /runs/a%2Fb/approvals/c {"decision":"approve","arguments":{"n": 9007199254740993}}'],
    [() => run.ticket({ share: true, ttlS: 60 }), 'POST /runs/a%2Fb/ticket {"share":true,"ttl_s":60}'],
    [() => run.revokeTicket("t1"), "DELETE /runs/a%2Fb/ticket/t1"],
  ];
  for (const [call, expected] of calls) {
    await call();
    const { method, path, body } = server.asked.at(-1);
    assert.equal(`${method} ${path} ${body}`.trim(), expected);
  }
});

test("key and ticket functions are called before each request", async (t) => {
  const server = await serve(t, ok({}), stream(RETRY + chunks("7-1")), stream(DONE("7-2")));
  let count = 0;
  const client = clientOf(server, { apiKey: async () => `k${++count}`, ticket: () => `t ${count}` });
  await client.runs.list({ limit: 1 });
  for await (const _ of client.runs.resume("R").events()) continue;

  const sent = server.asked.map(({ path, headers }) => [path, headers.authorization]);
  assert.deepEqual(sent, [
    ["/runs?limit=1&ticket=t%201", "Bearer k1"],
    ["/runs/R/events?ticket=t%202", "Bearer k2"],
    ["/runs/R/events?ticket=t%203", "Bearer k3"],
  ]);
});

test("requests and streams name the user in UTF-8", async (t) => {
  const server = await serve(t, ok({}), stream(RETRY + DONE("7-2")));
  const client = clientOf(server, { user: async () => "Zoë" });
  await client.runs.list({ user: "bob" });
  for await (const _ of client.runs.resume("R").events()) continue;

  const sent = server.asked.map(({ path, headers }) => [path, headers["stagebus-user"]]);
  assert.equal(sent[0][0], "/runs?user=bob");
  assert.deepEqual(new Set(sent.map(([, user]) => user)), new Set(["Zoë"]));
  assert.ok(sent.length > 1);
});

test("result and text wait for the end of the run", async (t) => {
  const done = record({ status: "succeeded", finished_at: "now", result: { text: "Mild." } });
  const server = await serve(t, record({}), stream(DONE("7-2")), done);
  const run = clientOf(server).runs.resume("R", "5-1");

  assert.equal(await run.text(), "Mild.");
  assert.deepEqual(server.cursors(), ["", "7-1", ""]);
  assert.equal((await run.result()).status, "succeeded");
});

test("the result of a failed or cancelled run throws", async (t) => {
  const failed = record({ status: "failed", finished_at: "now", error: { error: "too slow", code: "run_timeout" } });
  const result = { text: "Half a", finish_reason: "cancelled", partial: true };
  const cancelled = record({ status: "cancelled", finished_at: "now", cancel_reason: "wrong", result });
  const server = await serve(t, failed, cancelled);
  const run = clientOf(server).runs.resume("R");

  await assert.rejects(run.text(), (error) => {
    assert.ok(error instanceof RunFailedError);
    assert.deepEqual([error.message, error.code, error.runId], ["too slow", "run_timeout", "R"]);
    return true;
  });
  await assert.rejects(run.text(), (error) => {
    assert.ok(error instanceof RunCancelledError);
    assert.deepEqual([error.message, error.reason, error.text], ["run R was cancelled: wrong", "wrong", "Half a"]);
    return true;
  });
});

test("events of a new run have times; a second reader gets replayed events without", async (t) => {
  const replay = { headers: "x-last-event-id: 7-2\r\n" };
  const server = await serve(t, ACCEPTED, stream(chunks("7-1") + DONE("7-2"), replay));
  const run = await clientOf(server).runs.create({ user_prompt: "x" });
  const times = async () => {
    const seen = [];
    for await (const { at } of run) seen.push(typeof at);
    return seen;
  };

  assert.deepEqual(await times(), ["number", "number"]);
  assert.deepEqual(await times(), ["object", "object"]);
});
