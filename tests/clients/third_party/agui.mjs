// Drives AG-UI's HttpAgent against a gateway.
//
//   {"do": "run", "thread": "t", "run": "r", "messages": […], "props": {…}, "tearAt": 3}
//
// After a torn connection the same agent runs with the same ids again.

import { HttpAgent } from "@ag-ui/client";

import { serve } from "./commands.mjs";
import { tearFirst } from "./torn.mjs";

const url = `${process.argv[2]}/agui`;
const warnings = [];
// After a connection has broken, the client cancels its reader, which rejects, and nobody awaits that.
process.on("unhandledRejection", () => undefined);
for (const name of ["warn", "error"]) console[name] = (...words) => warnings.push(words.map(String).join(" "));

await serve({
  async run({ thread, run: runId, messages, props, tearAt }) {
    warnings.length = 0;
    const events = [];
    const agent = new HttpAgent({
      url, threadId: thread, initialMessages: messages, fetch: tearAt === undefined ? undefined : tearFirst(tearAt),
    });
    const runOnce = () => agent.runAgent({ runId, forwardedProps: props }, { onEvent: ({ event }) => void events.push(event) });
    let error = await runOnce().then(() => null, String);
    const torn = warnings.splice(0).filter(() => tearAt === undefined);
    if (tearAt !== undefined) error = await runOnce().then(() => null, String);
    return { messages: agent.messages, events, error, warnings: [...torn, ...warnings] };
  },
});
