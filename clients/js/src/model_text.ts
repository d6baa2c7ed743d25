// Extracts text, reasoning and refusals from a model's chunks, under the field names of different servers.

/** Returns what one chunk adds, and whether it has a part of a tool call; only its first choice counts. */
export function deltaOf(chunk: unknown): { content: string; thoughts: string; refusal: string; isCall: boolean } {
  const added = { content: "", thoughts: "", refusal: "", isCall: false };
  for (const choice of listOf(field(chunk, "choices"))) {
    if (!choice || field(choice, "index")) continue;
    const delta = field(choice, "delta") ?? field(choice, "message");
    const content = field(delta, "content");
    if (typeof content === "string") added.content += content;
    for (const part of listOf(content)) {
      if (isThought(part)) added.thoughts += textOf(part);
      else added.content += textOf(part);
    }
    // Some servers send the same reasoning in both fields.
    const thought = field(delta, "reasoning_content") || field(delta, "reasoning");
    if (typeof thought === "string") added.thoughts += thought;
    const refusal = field(delta, "refusal");
    if (typeof refusal === "string") added.refusal += refusal;
    added.isCall ||= listOf(field(delta, "tool_calls")).length > 0 || field(delta, "function_call") !== undefined;
  }
  return added;
}

const OPEN = "<think>";
const CLOSE = "</think>";

/**
 * Separates reasoning that a server leaves in the text, as `<think>…</think>` at its start.
 *
 * The value is immutable; `push` returns the next one, at a cost proportional to the added text.
 */
export interface Splitter {
  readonly phase: "start" | "thoughts" | "after" | "text";
  readonly pending: string; // may still become a tag, or is whitespace around one
  readonly text: string;
  readonly thoughts: string;
}

export const emptySplitter: Splitter = { phase: "start", pending: "", text: "", thoughts: "" };

export function push(splitter: Splitter, added: string): Splitter {
  if (added === "") return splitter;
  const piece = splitter.pending + added;
  switch (splitter.phase) {
    case "start":
      return pushStart(splitter, piece);
    case "thoughts":
      return pushThoughts(splitter, piece);
    case "after":
      return piece.trimStart() === "" ? splitter : { ...splitter, phase: "text", text: piece.trimStart() };
    case "text":
      return { ...splitter, text: splitter.text + added };
  }
}

function pushStart(splitter: Splitter, piece: string): Splitter {
  const trimmed = piece.trimStart();
  if (trimmed.startsWith(OPEN)) {
    return pushThoughts({ ...splitter, phase: "thoughts", pending: "" }, trimmed.slice(OPEN.length).trimStart());
  }
  if (OPEN.startsWith(trimmed)) return { ...splitter, pending: piece };
  return { ...splitter, phase: "text", pending: "", text: piece };
}

function pushThoughts(splitter: Splitter, piece: string): Splitter {
  const closeAt = piece.indexOf(CLOSE);
  if (closeAt >= 0) {
    const thoughts = (splitter.thoughts + piece.slice(0, closeAt)).trim();
    return push({ phase: "after", pending: "", text: "", thoughts }, piece.slice(closeAt + CLOSE.length));
  }
  const held = heldBack(piece);
  const added = piece.slice(0, piece.length - held);
  const thoughts = splitter.thoughts === "" ? added.trimStart() : splitter.thoughts + added;
  return { ...splitter, thoughts, pending: piece.slice(piece.length - held) };
}

/** Returns the length of the end that may be the beginning of the closing tag. */
function heldBack(piece: string): number {
  for (let length = Math.min(CLOSE.length - 1, piece.length); length > 0; length--) {
    if (CLOSE.startsWith(piece.slice(-length))) return length;
  }
  return 0;
}

/** Returns the text to show now. */
export function shownText({ phase, pending, text }: Splitter): string {
  return phase === "start" ? pending : text;
}

function isThought(part: unknown): boolean {
  const type = field(part, "type");
  return type === "thinking" || type === "reasoning";
}

function textOf(part: unknown): string {
  if (typeof part === "string") return part;
  if (Array.isArray(part)) return part.map(textOf).join("");
  const inner = field(part, "text") ?? field(part, "thinking") ?? field(part, "reasoning");
  return inner === undefined ? "" : textOf(inner);
}

function field(value: unknown, name: string): unknown {
  if (typeof value !== "object" || value === null) return undefined;
  return (value as Record<string, unknown>)[name] ?? undefined;
}

function listOf(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}
