// Everything that the client throws on purpose. An aborted signal throws its own reason.

import type { FieldError } from "./schema.js";

/** The root of the hierarchy. */
export class StagebusError extends Error {
  override name = "StagebusError";
}

/** Nobody answered, or only a proxy did for a gateway that is away. The run, if there is one, is not touched by that. */
export class UnreachableError extends StagebusError {
  override name = "UnreachableError";
}

/** The gateway's own no: `application/problem+json`. The message says what to do. */
export class ProblemError extends StagebusError {
  override name = "ProblemError";
  /** Stable: `run_not_found`, `invalid_request`, … */
  readonly code: string;
  /** The problem's `type`: an address under the gateway that explains it. */
  readonly type: string;
  readonly title: string;
  readonly status: number;
  /** The fields that do not hold. */
  readonly errors: FieldError[];
  /** How long the gateway asks to wait, where it says so. */
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

/** What is known of a problem; a gateway of another time may say more or less. */
export interface ProblemBody {
  code: string;
  type?: string;
  title?: string;
  detail?: string;
  errors?: FieldError[];
}

/** A stream keeps sending what is no event, however often it is asked again: no gateway of ours. */
export class StreamBrokenError extends StagebusError {
  override name = "StreamBrokenError";

  constructor(cursor: string) {
    super(`what follows ${cursor || "the start"} is no event of a run, each time that it is asked for`);
  }
}

/** The run ended with `error`; the message is its text. */
export class RunFailedError extends StagebusError {
  override name = "RunFailedError";

  constructor(
    readonly runId: string,
    message: string,
    /** Stable: `run_timeout`, `model_unavailable`, … */
    readonly code: string,
  ) {
    super(message);
  }
}

/** The run was cancelled, so it has no result. */
export class RunCancelledError extends StagebusError {
  override name = "RunCancelledError";

  constructor(readonly runId: string) {
    super(`run ${runId} was cancelled`);
  }
}
