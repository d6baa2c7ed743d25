// The protocol's conformance tests against the server at CONFORMANCE_TEST_URL. STAGEBUS_LONG_POLL_S is the server's.

import { runConformanceTests } from "@durable-streams/server-conformance-tests";

runConformanceTests({
  baseUrl: process.env.CONFORMANCE_TEST_URL,
  longPollTimeoutMs: 1000 * Number(process.env.STAGEBUS_LONG_POLL_S),
});
