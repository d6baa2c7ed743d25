import assert from "node:assert/strict";
import { test } from "node:test";

import { emptyRun, partialJson, reduce } from "../dist/index.js";

const ANSWER = '{"name": "Köln", "people": [1087353, true], "river": {"name": "Rhine"}}';

function runSaying(text, ...ends) {
  const delta = { choices: [{ index: 0, delta: { content: text } }] };
  const events = [
    ["stage_started", { stage_id: "extraction" }],
    ["tool_completion_chunk", { stage_id: "extraction", tool_results: delta }],
    ...ends.map((name) => [name, { stage_id: "run" }]),
  ];
  return events
    .map(([name, data], at) => ({ id: `7-${at + 1}`, sequence: at + 1, name, data, at: null }))
    .reduce(reduce, emptyRun());
}

test("the value of an answer grows with its text", () => {
  assert.equal(partialJson(runSaying("")), undefined);
  assert.deepEqual(partialJson(runSaying("{")), {});
  assert.deepEqual(partialJson(runSaying('{"name": "Kö')), { name: "Kö" });
  assert.deepEqual(partialJson(runSaying('{"name": "Köln", "peo')), { name: "Köln" });
  assert.deepEqual(partialJson(runSaying('{"people": [10, tr')), { people: [10] });
  assert.deepEqual(partialJson(runSaying(`\`\`\`json\n${ANSWER}\n\`\``)), JSON.parse(ANSWER));
  const fenced = `\ufeff\`\`\`JSON5\r\n${ANSWER}\r\n\`\`\`\r\n`;
  assert.deepEqual(partialJson(runSaying(fenced, "done")), JSON.parse(ANSWER));
  assert.deepEqual(partialJson(runSaying(`\`\`\`json ${ANSWER}\`\`\``, "done")), JSON.parse(ANSWER));
  assert.deepEqual(partialJson(runSaying('{"a": "`')), { a: "`" });
});

test("no cut of an answer throws", () => {
  for (let end = 0; end <= ANSWER.length; end++) partialJson(runSaying(ANSWER.slice(0, end)));
});

test("an answer that has ended counts whole or not at all", () => {
  assert.deepEqual(partialJson(runSaying(ANSWER, "done")), JSON.parse(ANSWER));
  assert.equal(partialJson(runSaying(ANSWER.slice(0, -1), "cancel")), undefined);
  assert.equal(partialJson(runSaying("It is Köln.", "done")), undefined);
});
