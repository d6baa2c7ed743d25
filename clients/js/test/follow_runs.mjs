// Follows runs and threads for the Python tests: reads one line of JSON for each, writes one line per update.
//
//   in    { of, run, urls, cutMax }     urls: gateways; each connection goes to a random one
//         { of, thread, urls, cutMax, isUntilIdle }
//         { stop }                      the `of` of what is no longer followed
//   out   { of, id, event, data }       as `updates` yields them, including gaps
//         { of, connection }            connecting, live, reconnecting, …
//         { of, error }                 null after a normal end

import { createInterface } from "node:readline";

import { Stagebus } from "../dist/index.js";

const followed = new Map(); // by `of`: an AbortController

for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  if ("stop" in order) followed.get(order.stop)?.abort();
  else void follow(order);
}

async function follow({ of, run, thread, urls, cutMax, isUntilIdle }) {
  const ending = new AbortController();
  followed.set(of, ending);
  const say = (seen) => process.stdout.write(`${JSON.stringify({ of, ...seen })}\n`);
  const fetch = async (path, init) => {
    const response = await globalThis.fetch(urls[Math.floor(Math.random() * urls.length)] + path, init);
    return cutMax && response.body ? cut(response, Math.ceil(Math.random() * cutMax)) : response;
  };
  try {
    const client = new Stagebus({ fetch });
    const source = run ? client.runs.resume(run) : client.threads.open(thread);
    for await (const update of source.updates({ patienceMs: Infinity, signal: ending.signal, untilIdle: isUntilIdle })) {
      if (update.name === "connection") say({ connection: update.state });
      else say({ id: update.id, event: update.event?.name ?? update.name, data: update.event?.data ?? update.data });
    }
    say({ error: null });
  } catch (error) {
    if (ending.signal.aborted) return;
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
