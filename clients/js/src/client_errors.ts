// The errors of the client. An aborted signal throws its own reason instead.

import type { FieldError } from "./schema.js";

/** The base class of all errors of this package. */
export class StagebusError extends Error {
  override name = "StagebusError";
}

/** No gateway answered, or a proxy answered in its place. The run is not affected. */
export class UnreachableError extends StagebusError {
  override name = "UnreachableError";
}

/** The gateway refused, with `application/problem+json`. The message says what to do. */
export class ProblemError extends StagebusError {
  override name = "ProblemError";
  /** A stable name: `run_not_found`, `invalid_request`, … */
  readonly code: string;
  /** The problem's `type`: a URL at the gateway that explains it. */
  readonly type: string;
  readonly title: string;
  readonly status: number;
  /** The invalid fields. */
  readonly errors: FieldError[];
  /** How long the gateway asks to wait; null if it does not say. */
  readonly retryAfterMs: number | null;

  constructor(status: number, problem: ProblemBody, retryAfterMs: number | null = null) {
    super(problem.detail ?? problem.title ?? `HTTP status ${status}`);
    this.status = status;
    this.code = problem.code;
    this.type = problem.type ?? "about:blank";
    this.title = problem.title ?? "";
    this.errors = problem.errors ?? [];
    this.retryAfterMs = retryAfterMs;
  }
}

/** The body of a problem. Gateways of other versions may send more or fewer fields. */
export interface ProblemBody {
  code: string;
  type?: string;
  title?: string;
  detail?: string;
  errors?: FieldError[];
}

/** The stream contains something other than events, even after retries, so it does not come from a gateway. */
export class StreamBrokenError extends StagebusError {
  override name = "StreamBrokenError";

  constructor(cursor: string) {
    super(`the data after ${cursor ? `event ${cursor}` : "the start"} is not an event of a run, even after retries`);
  }
}

/** The run ended with an `error` event; the message is its text. */
export class RunFailedError extends StagebusError {
  override name = "RunFailedError";

  constructor(
    readonly runId: string,
    message: string,
    /** A stable name: `run_timeout`, `model_unavailable`, … */
    readonly code: string,
    /** The answer as far as it was written. */
    readonly text = "",
  ) {
    super(message);
  }
}

/** The run was cancelled. */
export class RunCancelledError extends StagebusError {
  override name = "RunCancelledError";

  constructor(
    readonly runId: string,
    readonly reason: string | null = null,
    /** The answer as far as it was written. */
    readonly text = "",
  ) {
    super(`run ${runId} was cancelled${reason === null ? "" : `: ${reason}`}`);
  }
}
