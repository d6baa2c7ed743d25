// Follows runs for the Python tests: reads one line of JSON per run, writes one line per update.
//
//   in    { run, urls, cutMax }         urls: gateways; each connection goes to a random one
//   out   { run, id, event, data }      as `updates` yields them, including gaps
//         { run, connection }           connecting, live, reconnecting, …
//         { run, error }                null after a normal end

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

/** Returns the response cut after so many bytes, even within a frame or a character. */
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
