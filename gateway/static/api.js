// The gateway's HTTP API as this page uses it. Errors are application/problem+json.
// Spec: https://www.rfc-editor.org/rfc/rfc9457

export const RECENT_RUNS_MAX = 20;
const POST_TRIES_MAX = 5;
const POST_BACKOFF_MS = 400;
// A gateway that restarts answers so, or its proxy for it; the same POST may be made again.
const PASSING_STATUSES = new Set([429, 502, 503, 504]);

/** The gateway's own no, with what it says to do; `status` is 0 where it could not be reached. */
export class Problem extends Error {
  constructor(status, { detail, title, code, errors } = {}) {
    super(detail || title || `the gateway answered ${status}`);
    this.status = status;
    this.code = code ?? "";
    this.errors = Array.isArray(errors) ? errors : []; // { field, message }
  }

  get isPassing() {
    return this.status === 0 || PASSING_STATUSES.has(this.status);
  }
}

export function getRun(runId) {
  return request("GET", runPath(runId));
}

export function listRuns() {
  return request("GET", `/runs?limit=${RECENT_RUNS_MAX}`);
}

export function cancelRun(runId) {
  return request("POST", `${runPath(runId)}/cancel`);
}

/**
 * Create a run. The key makes repeating safe: a POST whose answer was lost is the same run the second time.
 * @param {(tries: number) => void} onRetry  told before each further try
 */
export async function createRun(body, idempotencyKey, onRetry) {
  for (let tries = 1; ; tries++) {
    try {
      return await request("POST", "/runs", body, { "Idempotency-Key": idempotencyKey });
    } catch (problem) {
      if (!problem.isPassing || tries === POST_TRIES_MAX) throw problem;
      onRetry(tries);
      await new Promise((resolve) => setTimeout(resolve, POST_BACKOFF_MS * 2 ** (tries - 1) * (0.5 + Math.random() / 2)));
    }
  }
}

function runPath(runId) {
  return `/runs/${encodeURIComponent(runId)}`;
}

async function request(method, path, body, headers = {}) {
  const init = { method, headers: { Accept: "application/json", ...headers } };
  if (body !== undefined) {
    init.headers["Content-Type"] = "application/json";
    init.body = JSON.stringify(body);
  }
  let response, answer;
  try {
    response = await fetch(path, init);
    const text = await response.text();
    answer = text ? parse(text) : {};
  } catch {
    throw new Problem(0, { detail: "The gateway cannot be reached." });
  }
  if (!response.ok) throw new Problem(response.status, answer);
  return answer;
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return {}; // a proxy's page; the status says enough
  }
}
