// Tests of src/run_state.ts: events in, state of the run out.

import assert from "node:assert/strict";
import { test } from "node:test";

import { answerStage, emptyRun, isTerminal, reduce, waitingCalls } from "../dist/index.js";

/** A log: numbers its events as the producer does; `at` says when they come, null for replayed ones. */
function logOf(...entries) {
  return entries.map(([name, stageId, data = {}, at = null], index) => ({
    id: `7-${index + 1}`,
    sequence: index + 1,
    name,
    data: { stage_id: stageId, ...data },
    at,
  }));
}

const applyEvents = (run, events) => events.reduce(reduce, run);
const dropFrom = (run, sequence) => reduce(run, { name: "gap", id: "", sequence, data: {}, at: null });

const text = (stageId, content) => delta(stageId, { content });
const delta = (stageId, fields) => [
  "tool_completion_chunk", stageId, { tool_results: { choices: [{ index: 0, delta: fields }] } },
];
const CALL = { id: "c1", name: "get_weather", arguments: '{"city":"Paris"}' };

const QUEUED = ["run_queued", "run", { run_id: "R", model: "demo" }, 100];
const STARTED = ["run_started", "run", { attempt: 7, worker: "w" }, 110];
const DONE = ["done", "run", { usage: { prompt_tokens: 3, completion_tokens: 4, total_tokens: 7 } }, 1100];
const TOOL_CALL = ["tool_call", "tools", { call_id: "c1", name: CALL.name, arguments: CALL.arguments }, 340];
const WHOLE = logOf(
  QUEUED,
  STARTED,
  ["stage_started", "extraction", {}, 120],
  delta("extraction", { tool_calls: [{ index: 0, id: "c1" }] }),
  ["stage_completed", "extraction", { result: { text: "", tool_calls: [CALL] } }, 320],
  ["stage_started", "tools", {}, 330],
  TOOL_CALL,
  ["tool_progress", "tools", { call_id: "c1", message: "halfway", fraction: 0.5 }, 400],
  ["tool_result", "tools", { call_id: "c1", name: CALL.name, content: "14 °C", duration_ms: 250 }, 590],
  ["tool_summary", "tools", { tool_summary: [] }, 591],
  ["stage_completed", "tools", { result: { outcomes: [] } }, 600],
  ["stage_started", "synthesis", {}, 610],
  text("synthesis", "It is "),
  text("synthesis", "mild."),
  ["stage_completed", "synthesis", { result: { text: "It is mild." } }, 1090],
  DONE,
);

const stage = (run, id) => run.stages.find((other) => other.id === id);

test("a replayed run takes its duration from its events", () => {
  const queued = ["run_queued", "run", { run_id: "R", model: "demo", at: 1_000_000 }];
  const run = applyEvents(emptyRun(), logOf(queued, STARTED, ["done", "run", { usage: {}, at: 1_004_200 }]));

  assert.equal(run.queuedAt, 1_000_000);
  assert.equal(run.durationMs, 4200);
});

test("a whole run has stages in order, calls, answer, usage and times", () => {
  const run = applyEvents(emptyRun(), WHOLE);

  assert.equal(run.status, "succeeded");
  assert.deepEqual(run.stages.map(({ id, state }) => [id, state]), [
    ["extraction", "done"], ["tools", "done"], ["synthesis", "done"],
  ]);
  assert.deepEqual(run.stages.map((other) => other.durationMs), [200, 270, 480]);
  const [call] = stage(run, "tools").calls;
  assert.deepEqual([call.state, call.content, call.durationMs], ["done", "14 °C", 250]);
  assert.equal(answerStage(run).text, "It is mild.");
  assert.equal(run.usage.total_tokens, 7);
  assert.equal(run.durationMs, 1000);
  assert.equal(run.cursor, "7-16");
});

test("a stage's own duration takes precedence over arrival times", () => {
  const run = applyEvents(emptyRun(), logOf(
    ["stage_started", "extraction", {}, 120],
    ["stage_completed", "extraction", { result: { text: "hi" }, duration_ms: 4200 }, 121],
  ));

  assert.equal(stage(run, "extraction").durationMs, 4200);
});

test("a call shows its newest progress until its result", () => {
  const say = (message, fraction) => ["tool_progress", "tools", { call_id: "c1", message, ...fraction }];
  const events = logOf(TOOL_CALL, say("begun"), say("halfway", { fraction: 0.5 }), say("nearly"), [
    "tool_result", "tools", { call_id: "c1", name: CALL.name, content: "14 °C" },
  ]);
  const after = (count) => stage(applyEvents(emptyRun(), events.slice(0, count)), "tools").calls[0].progress;

  assert.deepEqual([1, 2, 3, 4, 5].map(after), [
    null, { message: "begun", fraction: null }, { message: "halfway", fraction: 0.5 },
    { message: "nearly", fraction: null }, null,
  ]);
});

test("reduce changes no argument and keeps untouched stages identical", () => {
  const before = applyEvents(emptyRun(), WHOLE.slice(0, 12));
  const copy = structuredClone({ ...before, events: [...before.events] });
  const after = applyEvents(before, WHOLE.slice(12));

  assert.deepEqual({ ...before, events: [...before.events] }, copy);
  assert.equal(stage(after, "tools"), stage(before, "tools"));
  assert.notEqual(stage(after, "synthesis"), stage(before, "synthesis"));
});

test("replayed events give no durations beyond those in the log", () => {
  const run = applyEvents(emptyRun(), WHOLE.map((event) => ({ ...event, at: null })));

  assert.deepEqual(run.stages.map((other) => other.durationMs), [null, null, null]);
  assert.equal(stage(run, "tools").calls[0].durationMs, 250);
});

test("the extraction's text is the answer unless it calls tools", () => {
  for (const [toolCalls, expected] of [[[], "Hello."], [undefined, "Hello."], [[CALL], undefined]]) {
    const events = logOf(QUEUED, STARTED, text("extraction", "Hello."), [
      "stage_completed", "extraction", { result: { text: "Hello.", tool_calls: toolCalls } },
    ]);
    const run = applyEvents(emptyRun(), events);

    assert.equal(answerStage(run)?.text, expected);
    assert.equal(stage(run, "extraction").text, "Hello.");
    assert.equal(answerStage(applyEvents(emptyRun(), events.slice(0, 3))).text, "Hello.", "no call so far");
  }
});

test("an extraction's text is no longer the answer once a call begins, and is again if the stage starts over", () => {
  const call = delta("extraction", { tool_calls: [{ index: 0, id: "c1", function: { name: "get_weather", arguments: "" } }] });
  const events = logOf(
    QUEUED, STARTED, text("extraction", "Let me look."), call,
    ["stage_restarted", "extraction", { attempt: 9, discard_from: 3 }], text("extraction", "Hello."),
  );
  const answerAfter = (count) => answerStage(applyEvents(emptyRun(), events.slice(0, count)))?.text;

  assert.deepEqual([3, 4, 5, 6].map(answerAfter), ["Let me look.", undefined, "", "Hello."]);
});

test("the text of the last round without calls is the answer", () => {
  const events = logOf(
    ["stage_completed", "extraction", { result: { text: "", tool_calls: [CALL] } }],
    ["stage_started", "tools"],
    text("extraction.2", "Enough known."),
    ["stage_completed", "extraction.2", { result: { text: "Enough known.", tool_calls: [] } }],
  );
  const run = applyEvents(emptyRun(), events);

  assert.equal(answerStage(run).id, "extraction.2");
  assert.deepEqual([answerStage(run).kind, answerStage(run).round], ["extraction", 2]);
});

test("stage_restarted discards the stage's events from discard_from on", () => {
  const events = logOf(
    QUEUED,
    STARTED,
    ["stage_started", "synthesis", {}, 200], // 3
    text("synthesis", "Once "),
    text("synthesis", "upon"),
    ["run_started", "run", { attempt: 9, worker: "w2" }],
    ["stage_restarted", "synthesis", { attempt: 9, discard_from: 4 }],
  );
  const restarted = applyEvents(emptyRun(), events);
  assert.equal(stage(restarted, "synthesis").text, "");
  assert.equal(stage(restarted, "synthesis").state, "restarted");
  assert.deepEqual(stage(restarted, "synthesis").notes, [
    { kind: "restart", attempt: 9, discarded: { text: "Once upon", reasoning: "", calls: [] } },
  ]);
  assert.equal(restarted.attempts, 2);

  const more = logOf(...Array(7).fill(QUEUED), text("synthesis", "Anew."), [
    "stage_restarted", "synthesis", { attempt: 12, discard_from: 4 },
  ], text("synthesis", "Third."), ["stage_completed", "synthesis", { result: { text: "Third." } }, 900]).slice(7);
  const done = applyEvents(restarted, more);
  assert.equal(stage(done, "synthesis").text, "Third.");
  assert.equal(stage(done, "synthesis").state, "done");
  assert.equal(stage(done, "synthesis").notes.length, 2);
  assert.equal(stage(done, "synthesis").durationMs, 700);
});

test("a tools stage that resumes from its checkpoints keeps its results", () => {
  const events = logOf(
    ["stage_started", "tools"],
    ["tool_call", "tools", { call_id: "a", name: "f", arguments: "{}" }],
    ["tool_call", "tools", { call_id: "b", name: "f", arguments: "{}" }],
    ["tool_result", "tools", { call_id: "a", name: "f", content: "1", duration_ms: 5 }],
    ["stage_restarted", "tools", { attempt: 9, discard_from: 5 }],
    ["tool_result", "tools", { call_id: "b", name: "f", content: "no", is_error: true, duration_ms: 6 }],
  );
  const { calls, notes } = stage(applyEvents(emptyRun(), events), "tools");

  assert.deepEqual(calls.map((call) => [call.id, call.state, call.content]), [["a", "done", "1"], ["b", "error", "no"]]);
  assert.deepEqual(notes, [{ kind: "resume", attempt: 9 }]);
});

test("retry_scheduled makes its stage wait until its next event", () => {
  const events = logOf(
    ["stage_started", "extraction"],
    ["retry_scheduled", "run", { retry_of: "extraction", retry: 1, backoff_s: 0.5, reason: "cut" }],
    text("extraction", "x"),
  );
  const waiting = applyEvents(emptyRun(), events.slice(0, 2));

  assert.equal(stage(waiting, "extraction").state, "waiting");
  assert.deepEqual(stage(waiting, "extraction").notes, [
    { kind: "retry", retry: 1, backoffS: 0.5, reason: "cut", model: null },
  ]);
  assert.equal(stage(applyEvents(waiting, events.slice(2)), "extraction").state, "running");
});

test("a run is parked while calls wait for a person", () => {
  const events = logOf(
    ["approval_required", "tools", { call_id: "p", name: "pay", arguments: '{"amount":5}', expires_at: 9 }],
    ["input_required", "tools", { call_id: "q", question: "Which?", expires_at: 9 }],
    TOOL_CALL,
    ["tool_result", "tools", { call_id: "c1", name: CALL.name, content: "14 °C" }],
    ["approval_decided", "tools", { call_id: "p", decision: "approve", arguments: '{"amount":4}' }],
    ["tool_call", "tools", { call_id: "p", name: "pay", arguments: '{"amount":4}' }],
    ["tool_result", "tools", { call_id: "p", name: "pay", content: "paid 4" }],
    ["approval_decided", "tools", { call_id: "q", decision: "deny", is_expired: true }],
    ["tool_result", "tools", { call_id: "q", name: "ask_user", content: "nobody answered", is_error: true }],
  );
  const after = (count) => applyEvents(emptyRun(), events.slice(0, count));
  const calls = (count) => stage(after(count), "tools").calls.map(({ id, state }) => `${id} ${state}`);

  assert.deepEqual([1, 2, 3, 4, 5, 7, 8, 9].map((count) => after(count).status), [
    "parked", "parked", "running", "parked", "running", "parked", "running", "running",
  ]);
  assert.deepEqual(waitingCalls(after(4)).map(({ id, approval }) => [id, approval.question]), [["p", null], ["q", "Which?"]]);
  assert.deepEqual(calls(5), ["p running", "q waiting", "c1 done"]);
  assert.deepEqual(calls(9), ["p done", "q error", "c1 done"]);
  const [pay, ask] = stage(after(9), "tools").calls;
  assert.deepEqual([pay.arguments, pay.approval.decided.decision], ['{"amount":4}', "approve"]);
  assert.deepEqual([ask.name, ask.approval.decided.is_expired], ["ask_user", true]);
  const cancelled = applyEvents(after(2), [{ ...logOf(["cancel", "run"])[0], sequence: 3 }]);
  assert.deepEqual(stage(cancelled, "tools").calls.map(({ state }) => state), ["stopped", "stopped"]);
});

test("an error fails its stage and stops open stages and calls", () => {
  const events = logOf(
    QUEUED,
    ["stage_completed", "extraction", { result: { tool_calls: [CALL] } }],
    ["tool_call", "tools", { call_id: "c1", name: "f", arguments: "{}" }],
    ["error", "run", { error: "too slow", code: "run_timeout", failed_stage: "tools" }],
  );
  const run = applyEvents(emptyRun(), events);

  assert.deepEqual([run.status, run.error.error, isTerminal(run)], ["failed", "too slow", true]);
  assert.deepEqual(run.stages.map(({ id, state }) => [id, state]), [["extraction", "done"], ["tools", "failed"]]);
  assert.equal(stage(run, "tools").calls[0].state, "stopped");
});

test("a stage or call that did not end took until the run's end, by the times in the log", () => {
  const ends = [["cancel", "run", { at: 5000 }], ["error", "run", { error: "x", code: "x", failed_stage: "tools", at: 5000 }]];
  for (const end of ends) {
    const run = applyEvents(emptyRun(), logOf(
      QUEUED,
      ["stage_completed", "extraction", { result: {}, duration_ms: 300 }],
      ["stage_started", "tools", { at: 2000 }],
      ["tool_call", "tools", { call_id: "c1", name: "f", arguments: "{}", at: 2500 }],
      end,
    ));

    assert.deepEqual(run.stages.map(({ durationMs }) => durationMs), [300, 3000]);
    assert.equal(stage(run, "tools").calls[0].durationMs, 2500);
  }
});

test("a cancelled run keeps its text", () => {
  const run = applyEvents(emptyRun(), logOf(QUEUED, text("synthesis", "Half a"), ["cancel", "run", { reason: "wrong" }]));

  assert.equal(run.cancelReason, "wrong");
  assert.deepEqual([run.status, stage(run, "synthesis").state, answerStage(run).text], ["cancelled", "stopped", "Half a"]);
});

test("a gap removes every event that the log lost", () => {
  for (let sequence = 1; sequence <= WHOLE.length + 1; sequence++) {
    const kept = WHOLE.filter((event) => event.sequence < sequence);
    const dropped = dropFrom(applyEvents(emptyRun(), WHOLE), sequence);
    assert.ok(dropped.isLossy);
    assert.deepEqual({ ...dropped, isLossy: false }, applyEvents(emptyRun(), kept));
    assert.deepEqual([...dropped.events], kept);
  }
});

test("a gap that removes a restart restores what it had discarded", () => {
  const events = logOf(text("synthesis", "a"), text("synthesis", "b"), [
    "stage_restarted", "synthesis", { attempt: 9, discard_from: 1 },
  ]);

  assert.equal(stage(dropFrom(applyEvents(emptyRun(), events), 3), "synthesis").text, "ab");
});

test("reasoning is separated from text under each server's field names", () => {
  const events = logOf(
    delta("a", { reasoning_content: "one" }),
    delta("b", { reasoning: "two" }),
    delta("c", { reasoning_content: "same", reasoning: "same" }),
    text("d", "<think>three"),
    text("d", " and</think>\n\nSaid."),
    delta("e", { content: [{ type: "thinking", thinking: [{ type: "text", text: "four" }] }, { type: "text", text: "Out." }] }),
    text("f", "<think>unclosed"),
  );
  const run = applyEvents(emptyRun(), events);

  const shown = run.stages.map((other) => [other.reasoning, other.text]);
  assert.deepEqual(shown, [["one", ""], ["two", ""], ["same", ""], ["three and", "Said."], ["four", "Out."], ["unclosed", ""]]);
});

test("the result of a completed stage replaces its text", () => {
  const events = logOf(text("synthesis", "  draft "), ["stage_completed", "synthesis", { result: { text: "draft" } }]);

  assert.equal(stage(applyEvents(emptyRun(), events), "synthesis").text, "draft");
});

test("malformed chunks and events of other versions are ignored", () => {
  const events = logOf(
    ["tool_completion_chunk", "extraction", { tool_results: { choices: [] } }],
    ["tool_completion_chunk", "extraction", { tool_results: {} }],
    ["tool_completion_chunk", "extraction", { tool_results: { choices: [null, { index: 1, delta: { content: "other" } }] } }],
    delta("extraction", { content: null }),
    ["tool_progress", "tools", { call_id: "c1" }],
    ["run_parked", "run"],
  );
  const run = applyEvents(emptyRun(), events);

  assert.equal(stage(run, "extraction").text, "");
  assert.equal(run.cursor, "7-6");
});

test("two states grown from one state are independent", () => {
  const before = applyEvents(emptyRun(), WHOLE.slice(0, 10));
  const one = reduce(before, WHOLE[10]);
  const other = reduce(before, WHOLE[11]);

  assert.deepEqual([before, one, other].map(({ events }) => [...events].map(({ id }) => id).slice(9)), [
    ["7-10"], ["7-10", "7-11"], ["7-10", "7-12"],
  ]);
  assert.equal(one.events.at(-1), WHOLE[10]);
  assert.equal(before.events.at(10), undefined);
  for (const bounds of [[], [-2], [3, 5], [-100, -9], [9, 100], [100]]) {
    assert.deepEqual(before.events.slice(...bounds), WHOLE.slice(0, 10).slice(...bounds), `${bounds}`);
  }
});

test("a gap keeps the connection's state", () => {
  const connection = { state: "reconnecting", losses: 3, transport: "polling", waitingFor: null };
  const lost = reduce(emptyRun(), { name: "connection", ...connection });

  assert.deepEqual(lost.connection, connection);
  assert.deepEqual(dropFrom(lost, 1).connection, lost.connection);
});

test("reasoning in the text is separated however chunks are cut", () => {
  const whole = " <think> a </think b</think>\n\nSaid </think>.";
  for (let cut = 0; cut <= whole.length; cut++) {
    for (let end = cut; end <= whole.length; end++) {
      const pieces = [whole.slice(0, cut), whole.slice(cut, end), whole.slice(end)];
      const run = applyEvents(emptyRun(), logOf(...pieces.map((piece) => text("synthesis", piece))));
      assert.deepEqual([stage(run, "synthesis").reasoning, stage(run, "synthesis").text], ["a </think b", "Said </think>."]);
    }
  }
  for (const plain of ["<thin", "<b>", " ", "a <think>b</think>"]) {
    const run = applyEvents(emptyRun(), logOf(...[...plain].map((char) => text("synthesis", char))));
    assert.equal(stage(run, "synthesis").text, plain);
  }
});

test("reduce takes linear time for fifty thousand events", () => {
  // Of the processor, whatever else the machine does.
  const seconds = (count) => {
    const events = logOf(...Array.from({ length: count }, () => text("synthesis", "word ")));
    const begun = process.cpuUsage();
    const run = events.reduce((state, event) => (answerStage(state)?.text, reduce(state, event)), emptyRun());
    assert.equal(answerStage(run).text.length, 5 * count);
    const { user, system } = process.cpuUsage(begun);
    return (user + system) / 1e6;
  };

  seconds(5_000); // warm
  assert.ok(seconds(50_000) < 2);
});

test("the run's finish reason is that of its last model stage", () => {
  const started = ["stage_started", "extraction"];
  const cut = ["stage_completed", "extraction", { result: { text: "It is", finish_reason: "length" } }];
  const events = logOf(QUEUED, STARTED, started, text("extraction", "It is"), cut, DONE);
  const reasons = events.map((_, count) => applyEvents(emptyRun(), events.slice(0, count + 1)).finishReason);

  assert.deepEqual(reasons, [null, null, null, null, "length", "length"]);
  assert.equal(dropFrom(applyEvents(emptyRun(), events), 5).finishReason, null);
  assert.equal(applyEvents(emptyRun(), WHOLE).finishReason, null, "the provider gave none");
});
