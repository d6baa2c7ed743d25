// Follows runs with this client for a test elsewhere: a line of JSON in for each run, a line out for all that it saw.
//
//   in    { run, urls, cutMax }         urls: gateways, one of which each connection goes to
//   out   { run, id, event, data }      as the caller of `updates` gets them, gaps included
//         { run, connection }           connecting, live, reconnecting, …
//         { run, error }                null once it has ended as it should

import { createInterface } from "node:readline";

import { Stagebus } from "../dist/index.js";

for await (const line of createInterface({ input: process.stdin })) void follow(JSON.parse(line));

async function follow({ run, urls, cutMax }) {
  const say = (seen) => process.stdout.write(`${JSON.stringify({ run, ...seen })}\n`);
  const fetch = async (path, init) => {
    const response = await globalThis.fetch(urls[Math.floor(Math.random() * urls.length)] + path, init);
    return cutMax && response.body ? cut(response, Math.ceil(Math.random() * cutMax)) : response;
  };
  try {
    const client = new Stagebus({ fetch });
    for await (const update of client.runs.resume(run).updates({ patienceMs: Infinity })) {
      if (update.name === "connection") say({ connection: update.state });
      else say({ id: update.id, event: update.name, data: update.data });
    }
    say({ error: null });
  } catch (error) {
    say({ error: `${error.name}: ${error.message}` });
  }
}

/** The response, ended after so many bytes, wherever in a frame or a character that is. */
function cut(response, bytesMax) {
  let left = bytesMax;
  const scissors = new TransformStream({
    transform(bytes, controller) {
      controller.enqueue(bytes.subarray(0, left));
      left -= bytes.length;
      if (left <= 0) controller.terminate();
    },
  });
  return new Response(response.body.pipeThrough(scissors), response);
}
