// Functions that answer the calls of client tools: claimed, run once, answered, and left to others.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";

import { Window } from "happy-dom";

import { Stagebus } from "../dist/index.js";
import { DONE, frame, RETRY } from "./scripted_server.mjs";

Math.random = () => 0; // no test waits for a backoff

const CALL = {
  stage_id: "tools", call_id: "c/1", name: "read_file", arguments: '{"path":"a"}', kind: "client", expires_at: 1, ref: "7-1", once: false,
};
const deferred = (sequence, more = {}) => frame(`7-${sequence}`, "call_deferred", { ...CALL, ...more });
const answered = (sequence) => frame(`7-${sequence}`, "tool_result", { stage_id: "tools", call_id: "c/1", name: "read_file", content: "x", is_error: false });

/** A gateway whose run has these frames, and ends when a call has its result. */
async function world(t, frames, refusals = {}) {
  const claims = [];
  const results = [];
  const streams = new Set();
  const server = createServer((request, response) => {
    let body = "";
    request.on("data", (data) => (body += data));
    request.on("end", () => {
      if (request.method === "GET") {
        response.writeHead(200, { "content-type": "text/event-stream" });
        response.write(RETRY + frames.join(""));
        if (frames.at(-1).includes("event: done")) return response.end();
        return streams.add(response);
      }
      const what = request.url.split("/").at(-1);
      (what === "claim" ? claims : results).push({ path: request.url, ...JSON.parse(body) });
      const refusal = refusals[what]?.shift();
      if (refusal) {
        response.writeHead(refusal.status, { "content-type": "application/problem+json", "retry-after": "0" });
        return response.end(JSON.stringify({ code: refusal.code, detail: refusal.code }));
      }
      response.writeHead(200, { "content-type": "application/json" });
      response.end("{}");
      if (what === "result") for (const stream of streams) stream.end(answered(frames.length + 1) + DONE(`7-${frames.length + 2}`));
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const bus = new Stagebus({ baseUrl: `http://127.0.0.1:${server.address().port}` });
  const follow = async (tools) => {
    for await (const _ of bus.runs.resume("R").events({ tools })) continue;
  };
  return { bus, claims, results, follow };
}

test("a call is claimed, run and answered", async (t) => {
  const { claims, results, follow } = await world(t, [deferred(1)]);
  let context;
  await follow({ read_file: async ({ path }, call) => ((context = call), { path, size: 3 }) });

  assert.deepEqual(results, [{ path: "/runs/R/calls/c%2F1/result", content: '{"path":"a","size":3}', is_error: false, ref: "7-1" }]);
  assert.equal(claims.length, 1);
  assert.equal(claims[0].ref, "7-1");
  assert.deepEqual([context.runId, context.callId, context.signal.aborted], ["R", "c/1", true]);
});

test("an exception is a result", async (t) => {
  const { results, follow } = await world(t, [deferred(1)]);
  await follow({ read_file: () => { throw new TypeError("no file"); } });

  assert.deepEqual(results.map(({ content, is_error }) => [content, is_error]), [["TypeError: no file", true]]);
});

test("a call of another client is taken over when its claim ends", async (t) => {
  const refusal = { status: 409, code: "call_claimed" };
  const { claims, results, follow } = await world(t, [deferred(1)], { claim: [refusal, refusal] });
  await follow({ read_file: ({ path }) => path });

  assert.deepEqual([claims.length, results.length], [3, 1]);
});

test("a call that runs once is run once in a page, whoever follows the run", async (t) => {
  const first = await world(t, [deferred(1, { once: true })]);
  let ran = 0;
  await first.follow({ read_file: () => String(++ran) });
  const again = await world(t, [deferred(1, { once: true }), DONE("7-2")]);
  await again.follow({ read_file: () => String(++ran) });

  assert.equal(ran, 1);
});

const LEFT = {
  "that has its result": [[deferred(1), answered(2), DONE("7-3")], { claim: [{ status: 409, code: "call_has_result" }] }],
  "of another tool": [[deferred(1, { name: "toString" }), DONE("7-2")], {}],
  "that no client runs": [[deferred(1, { kind: "deferred" }), DONE("7-2")], {}],
};
for (const [which, [frames, refusals]] of Object.entries(LEFT)) {
  test(`a call ${which} is left alone`, async (t) => {
    const { results, follow } = await world(t, frames, refusals);
    let ran = 0;
    await follow({ read_file: () => ++ran });

    assert.deepEqual([ran, results], [0, []]);
  });
}

test("a result that is too large becomes an error", async (t) => {
  const { results, follow } = await world(t, [deferred(1)], { result: [{ status: 413, code: "result_too_large" }] });
  await follow({ read_file: () => "long" });

  assert.deepEqual(results.map(({ is_error }) => is_error), [false, true]);
});

test("useRun answers calls with the functions of the last render", async (t) => {
  const window = new Window();
  const { document, navigator } = window;
  for (const [name, value] of Object.entries({ window, document, navigator, IS_REACT_ACT_ENVIRONMENT: true })) {
    Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  }
  t.after(() => {
    window.happyDOM.close();
    for (const name of ["window", "document", "navigator", "IS_REACT_ACT_ENVIRONMENT"]) delete globalThis[name];
  });
  const { createElement } = await import("react");
  const { cleanup, render, waitFor } = await import("@testing-library/react");
  const { useRun } = await import("../dist/react.js");
  const { bus, results } = await world(t, [deferred(1)]);
  const run = bus.runs.resume("R");
  const View = ({ word }) => {
    const { state } = useRun(run, { tools: { read_file: () => word } });
    return createElement("p", null, state.status);
  };

  const view = render(createElement(View, { word: "first" }), { reactStrictMode: true });
  view.rerender(createElement(View, { word: "last" }));
  await waitFor(() => assert.equal(document.querySelector("p").textContent, "succeeded"));
  assert.deepEqual(results.map(({ content }) => content), ["last"]);
  cleanup();
});
