// The gateway's HTTP API as this page uses it. Errors are application/problem+json.
// Spec: https://www.rfc-editor.org/rfc/rfc9457

const RECENT_RUNS_MAX = 20;
const POST_TRIES_MAX = 5;
const POST_BACKOFF_MS = 400;
// So answers a gateway that restarts, or its proxy for it; 0 stands for no answer at all.
const PASSING_STATUSES = new Set([0, 429, 502, 503, 504]);

/** The gateway's own no, with what it says to do. */
export class Problem extends Error {
  constructor(status, { detail = "The gateway does not answer.", code, errors } = {}) {
    super(detail);
    this.code = code;
    this.errors = errors ?? []; // { field, message }
    this.isPassing = PASSING_STATUSES.has(status);
  }
}

export const getRun = (runId) => request("GET", runPath(runId));
export const listRuns = () => request("GET", `/runs?limit=${RECENT_RUNS_MAX}`);
export const cancelRun = (runId) => request("POST", `${runPath(runId)}/cancel`);

/** Create a run. The key makes repeating safe: a POST whose answer was lost is the same run the second time. */
export async function createRun(body, idempotencyKey, onRetry) {
  for (let tries = 1; ; tries++) {
    try {
      return await request("POST", "/runs", body, { "Idempotency-Key": idempotencyKey });
    } catch (problem) {
      if (!problem.isPassing || tries === POST_TRIES_MAX) throw problem;
      onRetry(tries);
      const backoffMs = POST_BACKOFF_MS * 2 ** (tries - 1) * (0.5 + Math.random() / 2);
      await new Promise((resolve) => setTimeout(resolve, backoffMs));
    }
  }
}

function runPath(runId) {
  return `/runs/${encodeURIComponent(runId)}`;
}

async function request(method, path, body, headers = {}) {
  const init = { method, headers: { Accept: "application/json", ...headers } };
  if (body) {
    init.headers["Content-Type"] = "application/json";
    init.body = JSON.stringify(body);
  }
  let status = 0;
  let answer;
  try {
    const response = await fetch(path, init);
    if (!response.ok) status = response.status;
    answer = await response.json();
    if (response.ok) return answer;
  } catch {
    // No answer, half of one, or a proxy's page instead.
  }
  throw new Problem(status, answer);
}
