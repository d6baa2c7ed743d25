// Requests to the gateway: repeated while the trouble may pass, since all that this client asks is safe to repeat.

import { ProblemError, type ProblemBody, StagebusError, UnreachableError } from "./errors.js";
import { backoffMs, linkedController, sleep } from "./timing.js";

export type Fetch = (input: string, init: RequestInit) => Promise<Response>;

export interface Options {
  /** Where the gateway is; in a page that the gateway itself serves, leave it out. */
  baseUrl?: string;
  /** Sent as `Authorization: Bearer …`; a function is asked before each request, so that it may be renewed. */
  apiKey?: string | (() => string | Promise<string>);
  /** Sent in the query, by those who hold a ticket for one run instead of a key. */
  ticket?: string | (() => string | Promise<string>);
  /** Takes the place of the global `fetch`. */
  fetch?: Fetch;
}

export interface CallOptions {
  signal?: AbortSignal | undefined;
  /** How often it is asked before a passing trouble is given up on. */
  triesMax?: number;
  /** Hears of each failed try before the next one. */
  onRetry?: (tries: number, error: StagebusError) => void;
}

interface RequestParts extends CallOptions {
  method?: string;
  body?: unknown;
  headers?: Record<string, string>;
}

const TRIES_MAX = 5;
const BACKOFF_MS = 500;
const BACKOFF_MAX_MS = 10_000;
const RETRY_AFTER_MAX_MS = 60_000;
const ANSWER_MAX_MS = 30_000;
const NO_CONTENT = 204;
// So answers a gateway that restarts or has too much to do, or a proxy for it.
const PASSING_STATUSES: ReadonlySet<number> = new Set([408, 425, 429, 500, 502, 503, 504]);

export class Http {
  readonly baseUrl: string;
  readonly #apiKey: Options["apiKey"];
  readonly #ticket: Options["ticket"];
  readonly #fetch: Fetch;

  constructor({ baseUrl = "", apiKey, ticket, fetch }: Options) {
    this.baseUrl = baseUrl.replace(/\/+$/, "");
    this.#apiKey = apiKey;
    this.#ticket = ticket;
    // Not called as a method of this: a browser's fetch wants to be the window's.
    this.#fetch = fetch ?? ((input, init) => globalThis.fetch(input, init));
  }

  /** One answer's JSON. */
  async call<T>(path: string, parts: RequestParts = {}): Promise<T> {
    const { signal, triesMax = TRIES_MAX, onRetry } = parts;
    for (let tries = 1; ; tries++) {
      try {
        return (await this.#callOnce(path, parts)) as T;
      } catch (error) {
        if (signal?.aborted || !isPassing(error) || tries >= triesMax) throw error;
        onRetry?.(tries, error);
        await sleep(waitMs(error, tries), signal);
      }
    }
  }

  /** A response as it comes. */
  async send(path: string, init: RequestInit): Promise<Response> {
    const headers: Record<string, string> = { ...(init.headers as Record<string, string>) };
    const key = await current(this.#apiKey);
    if (key) headers["Authorization"] = `Bearer ${key}`;
    const ticket = await current(this.#ticket);
    const query = ticket ? `${path.includes("?") ? "&" : "?"}ticket=${encodeURIComponent(ticket)}` : "";
    return this.#fetch(this.baseUrl + path + query, { ...init, headers });
  }

  async #callOnce(path: string, { method = "GET", body, headers, signal }: RequestParts): Promise<unknown> {
    const { controller, release } = linkedController(signal);
    const timer = setTimeout(() => controller.abort(new UnreachableError("no answer in time")), ANSWER_MAX_MS);
    try {
      const init: RequestInit = { method, signal: controller.signal, headers: { Accept: "application/json", ...headers } };
      if (body !== undefined) {
        init.headers = { ...init.headers, "Content-Type": "application/json" };
        init.body = JSON.stringify(body);
      }
      const response = await this.send(path, init);
      if (!response.ok) throw await refusal(response);
      return response.status === NO_CONTENT ? undefined : await response.json();
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

function current(secret: Options["apiKey"]): string | undefined | Promise<string> {
  return typeof secret === "function" ? secret() : secret;
}

/** What an answer that is no success means: the gateway's own no, or somebody else's for one that is away. */
export async function refusal(response: Response): Promise<StagebusError> {
  const problem = await problemOf(response);
  if (problem) return new ProblemError(response.status, problem, retryAfterMs(response));
  return new UnreachableError(`HTTP status ${response.status}, and not from a Stagebus gateway`);
}

/** Whether the same request may simply be made again. */
export function isPassing(error: unknown): error is StagebusError {
  if (error instanceof ProblemError) return PASSING_STATUSES.has(error.status);
  return error instanceof UnreachableError;
}

async function problemOf(response: Response): Promise<ProblemBody | null> {
  if (!response.headers.get("content-type")?.includes("json")) return null;
  try {
    const body: unknown = await response.json();
    return isProblem(body) ? body : null;
  } catch {
    return null; // half an answer
  }
}

function isProblem(body: unknown): body is ProblemBody {
  return typeof body === "object" && body !== null && "code" in body && typeof body.code === "string";
}

function retryAfterMs(response: Response): number | null {
  const text = response.headers.get("retry-after");
  if (text === null) return null;
  const ms = /^\d+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.now();
  return Number.isFinite(ms) ? Math.max(0, ms) : null;
}

/** The gateway's wish, and some chance upon it, so that those whom it sent away do not all come back at once. */
function waitMs(error: StagebusError, tries: number): number {
  const wishMs = error instanceof ProblemError ? (error.retryAfterMs ?? 0) : 0;
  return Math.min(wishMs, RETRY_AFTER_MAX_MS) + backoffMs(tries, BACKOFF_MS, BACKOFF_MAX_MS);
}
