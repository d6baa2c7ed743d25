// Drives the client of Durable Streams against a gateway.
//
//   {"do": "json", "path": "<run id>", "live": true}     all that there is; one page if `live` is false
//   {"do": "follow", "path": "<run id>", "readers": [{"live": "sse", "offset": "-1", "tearAt": 3}, …]}
//
// All readers follow at once. One that is torn begins again at the last offset that it was given.

import { stream } from "@durable-streams/client";

import { serve } from "./commands.mjs";
import { tearFirst } from "./torn.mjs";

const base = `${process.argv[2]}/durable/runs`;

await serve({
  json: async ({ path, live }) => (await stream({ url: `${base}/${path}`, live, warnOnHttp: false })).json(),
  follow: ({ path, readers }) => Promise.all(readers.map((reader) => follow(`${base}/${path}`, reader))),
});

async function follow(url, { live, offset, tearAt }) {
  const items = [];
  const fetch = tearAt === undefined ? undefined : tearFirst(tearAt);
  for (let torn = 0; ; torn++) {
    let isTorn = false;
    try {
      const response = await stream({ url, live, offset, fetch, warnOnHttp: false });
      // `closed` alone may come before the last batch.
      const ended = new Promise((resolve) => {
        response.subscribeJson((batch) => {
          if (isTorn) return;
          items.push(...batch.items);
          offset = batch.offset;
          if (batch.upToDate && batch.streamClosed) resolve();
        });
      });
      await response.closed.then(() => ended);
      return { items, offset, torn };
    } catch (error) {
      isTorn = true;
      if (!String(error).includes("torn")) return { items, offset, torn, status: error.status, error: String(error) };
    }
  }
}
