// Tests of the notes of src/stage_state.ts.

import assert from "node:assert/strict";
import { test } from "node:test";

import { emptyRun, reduce } from "../dist/index.js";

test("a message that joins the run is a note of the stage before which the model gets it", () => {
  const messages = [{ role: "user", content: "And in " }, { role: "user", content: [{ type: "text", text: "Rome?" }] }];
  const events = [
    { name: "message_added", data: { stage_id: "run", run_id: "R2", before: "synthesis", messages } },
    { name: "stage_started", data: { stage_id: "synthesis" } },
  ].map((event, index) => ({ ...event, id: `7-${index + 1}`, sequence: index + 1, at: null }));

  const [{ id, notes, state }] = events.reduce(reduce, emptyRun()).stages;
  assert.deepEqual(notes, [{ kind: "message", runId: "R2", text: "And in \n\nRome?" }]);
  assert.deepEqual([id, state], ["synthesis", "running"]);
});
