// What a run looks like, as a pure function of its events: no DOM, no clock, no network.
//
//   let run = applyEvents(emptyRun(), events);   // [{ id, sequence, name, data, at }], in order, each once
//   answerStage(run)?.text
//
// `at` is when the event came, in ms, or null where it was replayed and so its time is not known.
// What is passed in is never changed: a stage that no event touched stays the same object.

const RUN_STAGE = "run";
const TOOLS = "tools";
const SYNTHESIS = "synthesis";
const TERMINAL_STATUSES = new Set(["succeeded", "failed", "cancelled"]);

/** A run of which nothing is known yet. */
export function emptyRun() {
  return {
    id: "",
    status: null, // queued | running | succeeded | failed | cancelled
    model: "",
    attempts: 0,
    stages: [],
    usage: null,
    error: null, // { error, code, failed_stage }
    lastId: "",
    startedAt: null,
    durationMs: null,
    events: [], // all of them: a gap takes some back
  };
}

/** The run after these events. */
export function applyEvents(run, events) {
  if (events.length === 0) return run;
  const draft = { ...run, stages: [...run.stages], events: [...run.events, ...events] };
  const touched = new Map();
  for (const event of events) applyEvent(draft, touched, event);
  for (const stage of touched.values()) settleText(stage);
  draft.lastId = events.at(-1).id;
  return draft;
}

/** The run without its events from that sequence on: the log no longer has them, or has others. */
export function dropFrom(run, sequence) {
  return applyEvents(emptyRun(), run.events.filter((event) => event.sequence < sequence));
}

/** Whether the run's terminal event was seen. */
export function isTerminal(run) {
  return TERMINAL_STATUSES.has(run.status);
}

/** The stage whose text is the answer: synthesis, or an extraction that ended without a call; or null. */
export function answerStage(run) {
  const last = run.stages.findLast((stage) => stage.kind !== TOOLS);
  // Until an extraction has ended its text may yet turn out to be what the model says before a call.
  const isAnswer = last?.kind === SYNTHESIS || (last?.result && listOf(last.result.tool_calls).length === 0);
  return isAnswer ? last : null;
}

function applyEvent(draft, touched, event) {
  const { name, data } = event;
  const stageOf = (stageId) => touch(draft, touched, stageId);
  if (data.stage_id !== RUN_STAGE) {
    if (!isTerminal(draft)) draft.status = "running";
    if (name === "stage_restarted") restart(stageOf(data.stage_id), event);
    else record(stageOf(data.stage_id), event);
  } else if (name === "retry_scheduled") {
    scheduleRetry(stageOf(data.retry_of), event);
  } else {
    RUN_EVENTS[name]?.(draft, event, stageOf);
  }
}

/** The draft's own copy of a stage, made at its first event of this batch. */
function touch(draft, touched, stageId) {
  let stage = touched.get(stageId);
  if (!stage) {
    const index = draft.stages.findIndex((other) => other.id === stageId);
    stage = index < 0 ? emptyStage(stageId) : copyStage(draft.stages[index]);
    draft.stages[index < 0 ? draft.stages.length : index] = stage;
    touched.set(stageId, stage);
  }
  return stage;
}

// --- the run's own events ---

const RUN_EVENTS = {
  run_queued(draft, { data, at }) {
    draft.id = data.run_id;
    draft.model = data.model;
    draft.status = "queued";
    draft.startedAt = at;
  },
  run_started(draft) {
    draft.status = "running";
    draft.attempts += 1;
  },
  done(draft, { data, at }) {
    end(draft, "succeeded", at);
    draft.usage = data.usage ?? null;
  },
  cancel(draft, { at }, stageOf) {
    end(draft, "cancelled", at);
    stopStages(draft, stageOf, () => "stopped");
  },
  error(draft, { data, at }, stageOf) {
    end(draft, "failed", at);
    draft.error = data;
    stopStages(draft, stageOf, (stage) => (stage.id === data.failed_stage ? "failed" : "stopped"));
  },
};

function end(draft, status, at) {
  draft.status = status;
  draft.durationMs = elapsed(draft.startedAt, at);
}

function stopStages(draft, stageOf, stateFor) {
  for (const { id, state } of [...draft.stages]) {
    if (state === "done") continue;
    const stage = stageOf(id);
    stage.state = stateFor(stage);
    stage.calls = stage.calls.map((call) => (call.state === "running" ? { ...call, state: "stopped" } : call));
  }
}

// --- a stage ---

function emptyStage(id) {
  const [kind, round] = id.split(".");
  return {
    id,
    kind,
    round: Number(round ?? 1),
    state: "running", // running | waiting (for a retry) | restarted (and running) | done | failed | stopped
    text: "",
    reasoning: "",
    calls: [], // { id, name, arguments, state: running | done | error | stopped, progress, content, durationMs, startedAt }
    notes: [], // what went wrong on the way: { kind: retry | restart | resume, ... }
    startedAt: null,
    durationMs: null,
    content: "", // the model's text as it came, with thoughts in it where a server leaves them there
    thoughts: "",
    refusal: "",
    result: null,
    events: [], // those that are not void
  };
}

function copyStage(stage) {
  return { ...stage, calls: [...stage.calls], notes: [...stage.notes], events: [...stage.events] };
}

function record(stage, event) {
  stage.events.push(event);
  if (stage.state === "waiting") stage.state = "running";
  STAGE_EVENTS[event.name]?.(stage, event);
}

/** Void what came from `discard_from` on, by folding what is left anew. */
function restart(stage, { sequence, data }) {
  const { notes, startedAt } = stage;
  const kept = stage.events.filter((event) => event.sequence < data.discard_from);
  const isResumed = data.discard_from === sequence;
  const discarded = stage.content.length + stage.thoughts.length;
  Object.assign(stage, emptyStage(stage.id));
  for (const event of kept) record(stage, event);
  stage.startedAt = startedAt;
  stage.notes = [...notes, isResumed ? { kind: "resume" } : { kind: "restart", discarded }];
  stage.state = "restarted";
}

function scheduleRetry(stage, { data }) {
  stage.state = "waiting";
  stage.notes.push({ kind: "retry", retry: data.retry, backoffS: data.backoff_s, reason: data.reason });
}

const STAGE_EVENTS = {
  stage_started(stage, { at }) {
    stage.startedAt = at;
  },
  tool_completion_chunk(stage, { data }) {
    for (const choice of listOf(data.tool_results?.choices)) {
      if (choice && !choice.index) addDelta(stage, choice.delta ?? choice.message ?? {});
    }
  },
  tool_call(stage, { data, at }) {
    setCall(stage, data.call_id, { name: data.name, arguments: data.arguments, state: "running", startedAt: at });
  },
  tool_progress(stage, { data }) {
    setCall(stage, data.call_id, { progress: { message: data.message, fraction: data.fraction ?? null } });
  },
  tool_result(stage, { data }) {
    const state = data.is_error ? "error" : "done";
    const { name, content, duration_ms: durationMs } = data;
    setCall(stage, data.call_id, { name, content, state, durationMs, progress: null });
  },
  stage_completed(stage, { data, at }) {
    stage.state = "done";
    stage.result = data.result ?? {};
    const watchedMs = elapsed(stage.startedAt, at);
    // What comes at once seems to take no time; the calls know better.
    stage.durationMs = watchedMs === null ? null : Math.max(watchedMs, ...stage.calls.map((call) => call.durationMs));
  },
};

function setCall(stage, id, fields) {
  const index = stage.calls.findIndex((call) => call.id === id);
  if (index >= 0) stage.calls[index] = { ...stage.calls[index], ...fields };
  else {
    const blank = { id, name: "", arguments: "", progress: null, content: "", durationMs: null, startedAt: null };
    stage.calls.push({ ...blank, ...fields });
  }
}

function addDelta(stage, delta) {
  if (typeof delta.content === "string") stage.content += delta.content;
  for (const part of listOf(delta.content)) {
    if (isThought(part)) stage.thoughts += textOf(part);
    else stage.content += textOf(part);
  }
  // Some servers send the same thought under both names.
  const thought = delta.reasoning_content || delta.reasoning;
  if (typeof thought === "string") stage.thoughts += thought;
  if (typeof delta.refusal === "string") stage.refusal += delta.refusal;
}

function isThought(part) {
  return part?.type === "thinking" || part?.type === "reasoning";
}

function textOf(part) {
  if (typeof part === "string") return part;
  if (Array.isArray(part)) return part.map(textOf).join("");
  return textOf(part?.text ?? part?.thinking ?? part?.reasoning ?? "");
}

/** Once a batch: tell thoughts from text. The result of a complete stage has the last word. */
function settleText(stage) {
  const [text, thoughts] = splitThoughts(stage.content);
  stage.text = (stage.result?.text ?? text) || stage.refusal;
  stage.reasoning = stage.thoughts + thoughts;
}

const THOUGHTS = /^\s*<think>([\s\S]*?)(?:<\/think>\s*|$)/;

function splitThoughts(content) {
  const match = THOUGHTS.exec(content);
  return match ? [content.slice(match[0].length), match[1].trim()] : [content, ""];
}

function listOf(value) {
  return Array.isArray(value) ? value : [];
}

function elapsed(from, to) {
  return from == null || to == null ? null : to - from;
}
