// Requests to the gateway. Temporary errors are retried, because every request of this client is safe to repeat.

import { ProblemError, type ProblemBody, StagebusError, UnreachableError } from "./client_errors.js";
import { backoffMs, linkedController, sleep } from "./timing.js";

export type Fetch = (input: string, init: RequestInit) => Promise<Response>;

export interface Options {
  /** The gateway's URL; leave it out in a page that the gateway serves. */
  baseUrl?: string;
  /** Sent as `Authorization: Bearer …`; a function is called before each request, so it can return a renewed key. */
  apiKey?: string | (() => string | Promise<string>);
  /** Sent in the query instead of a key; gives read access to one run. */
  ticket?: string | (() => string | Promise<string>);
  /** The person within the tenant for whom requests are made. For servers: the key needs the scope `on_behalf`. */
  user?: string | (() => string | Promise<string>);
  /** Replaces the global `fetch`. */
  fetch?: Fetch;
}

export interface CallOptions {
  signal?: AbortSignal | undefined;
  /** How often to send a request that fails with temporary errors. */
  triesMax?: number;
  /** Called after each failed try that is followed by another one. */
  onRetry?: (tries: number, error: StagebusError) => void;
}

interface RequestParts extends CallOptions {
  method?: string;
  /** A value, or a text that is JSON already. */
  body?: unknown;
  headers?: Record<string, string>;
  answerMaxMs?: number;
  /** For how long the gateway may hold the answer. */
  waitS?: number;
}

export interface WaitOptions extends CallOptions {
  /** Seconds, at most 30, to wait until the run has ended or waits for a person. */
  waitS?: number;
}

const TRIES_MAX = 5;
const BACKOFF_MS = 500;
const BACKOFF_MAX_MS = 10_000;
const RETRY_AFTER_MAX_MS = 60_000;
const ANSWER_MAX_MS = 30_000;
// Answers that may have no body: what was asked for is done, or follows by itself.
const EMPTY_STATUSES: ReadonlySet<number> = new Set([202, 204]);
// Answers of a gateway that restarts or is overloaded, or of a proxy in front of it.
const RETRYABLE_STATUSES: ReadonlySet<number> = new Set([408, 425, 429, 500, 502, 503, 504]);

export class Http {
  readonly baseUrl: string;
  readonly #apiKey: Options["apiKey"];
  readonly #ticket: Options["ticket"];
  readonly #user: Options["user"];
  readonly #fetch: Fetch;

  constructor({ baseUrl = "", apiKey, ticket, user, fetch }: Options) {
    this.baseUrl = baseUrl.replace(/\/+$/, "");
    this.#apiKey = apiKey;
    this.#ticket = ticket;
    this.#user = user;
    // A browser's fetch fails when it is called as a method of another object than the window.
    this.#fetch = fetch ?? ((input, init) => globalThis.fetch(input, init));
  }

  /** Sends a request, with retries, and returns the JSON of its answer. */
  async call<T>(path: string, parts: RequestParts = {}): Promise<T> {
    const { signal, triesMax = TRIES_MAX, onRetry } = parts;
    for (let tries = 1; ; tries++) {
      try {
        return (await this.#callOnce(path, parts)) as T;
      } catch (error) {
        if (signal?.aborted || !isRetryable(error) || tries >= triesMax) throw error;
        onRetry?.(tries, error);
        await sleep(waitMs(error, tries), signal);
      }
    }
  }

  /** Sends a request once and returns the response. */
  async send(path: string, init: RequestInit): Promise<Response> {
    const headers: Record<string, string> = { ...(init.headers as Record<string, string>) };
    const key = await resolve(this.#apiKey);
    if (key) headers["Authorization"] = `Bearer ${key}`;
    const user = await resolve(this.#user);
    if (user) headers["Stagebus-User"] = asHeader(user);
    const ticket = await resolve(this.#ticket);
    const query = ticket ? `${path.includes("?") ? "&" : "?"}ticket=${encodeURIComponent(ticket)}` : "";
    return this.#fetch(this.baseUrl + path + query, { ...init, headers });
  }

  /** Returns a text that is the same for the same credentials, and does not tell them; empty if there are none. */
  async fingerprint(): Promise<string> {
    const credentials = [await resolve(this.#apiKey), await resolve(this.#user), await resolve(this.#ticket)];
    if (credentials.every((one) => !one) || !globalThis.crypto?.subtle) return "";
    const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(JSON.stringify(credentials)));
    return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  async #callOnce(path: string, parts: RequestParts): Promise<unknown> {
    const { method = "GET", body, headers, signal, waitS = 0 } = parts;
    const answerMaxMs = (parts.answerMaxMs ?? ANSWER_MAX_MS) + waitS * 1000;
    const { controller, release } = linkedController(signal);
    const timer = setTimeout(() => controller.abort(new UnreachableError("the gateway did not answer in time")), answerMaxMs);
    try {
      const init: RequestInit = { method, signal: controller.signal, headers: { Accept: "application/json", ...headers } };
      if (body !== undefined) {
        init.headers = { ...init.headers, "Content-Type": "application/json" };
        init.body = typeof body === "string" ? body : JSON.stringify(body);
      }
      const response = await this.send(path, init);
      if (!response.ok) throw await parseRefusal(response);
      const text = await response.text();
      return text === "" && EMPTY_STATUSES.has(response.status) ? undefined : JSON.parse(text);
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      if (error instanceof StagebusError) throw error;
      throw new UnreachableError(`${this.baseUrl || "the gateway"} does not answer`, { cause: error });
    } finally {
      clearTimeout(timer);
      release();
    }
  }
}

function resolve(secret: Options["apiKey"]): string | undefined | Promise<string> {
  return typeof secret === "function" ? secret() : secret;
}

/** Returns text as a header's value: its bytes in UTF-8, each of which is a character for `fetch`. */
function asHeader(text: string): string {
  return Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
}

/** Returns the error for an unsuccessful response of a gateway, or of something in its place. */
export async function parseRefusal(response: Response): Promise<StagebusError> {
  const problem = await parseProblem(response);
  if (problem) return new ProblemError(response.status, problem, parseRetryAfterMs(response));
  return new UnreachableError(`status ${response.status}, which does not come from a Stagebus gateway`);
}

/** Returns true if the same request may succeed when it is sent again. */
export function isRetryable(error: unknown): error is StagebusError {
  if (error instanceof ProblemError) return RETRYABLE_STATUSES.has(error.status);
  return error instanceof UnreachableError;
}

async function parseProblem(response: Response): Promise<ProblemBody | null> {
  if (!response.headers.get("content-type")?.includes("json")) return null;
  try {
    const body: unknown = await response.json();
    return isProblem(body) ? body : null;
  } catch {
    return null; // the body is incomplete
  }
}

function isProblem(body: unknown): body is ProblemBody {
  return typeof body === "object" && body !== null && "code" in body && typeof body.code === "string";
}

function parseRetryAfterMs(response: Response): number | null {
  const text = response.headers.get("retry-after");
  if (text === null) return null;
  const ms = /^\d+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.now();
  return Number.isFinite(ms) ? Math.max(0, ms) : null;
}

/** The wait that the gateway asks for plus a random backoff, so that rejected clients do not all return together. */
function waitMs(error: StagebusError, tries: number): number {
  const requestedMs = error instanceof ProblemError ? (error.retryAfterMs ?? 0) : 0;
  return Math.min(requestedMs, RETRY_AFTER_MAX_MS) + backoffMs(tries, BACKOFF_MS, BACKOFF_MAX_MS);
}
