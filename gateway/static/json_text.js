// Shows text of a model to a person exactly as it is. JSON is not parsed for that: a parser makes 9007199254740992 of
// 9007199254740993 and drops the first of two equal keys. Controls, which could turn text around, appear as escapes.

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;
const INVISIBLE = /[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}\u2800]/gu; // U+2800 is the blank of Braille
const CONTROLS = /[\p{Cc}\p{Zl}\p{Zp}\p{Cs}\p{Bidi_Control}]/gu;
const LINE_MAX = 44; // JSON up to this length is written on one line

/** Returns JSON text indented if it is an object or a list, each value as written; other text with its controls visible. */
export function pretty(text) {
  if (!isContainer(text)) return showControls(text);
  const lines = indent(text.match(TOKEN) ?? []);
  const line = lines.replace(/\n */g, " ");
  return line.length <= LINE_MAX ? line : lines;
}

/** Returns the keys that occur more than once in an object of a JSON text. Parsers use the last one's value. */
export function duplicateKeys(text) {
  if (!isContainer(text)) return [];
  const found = new Set();
  const open = []; // the keys of each object around the token, null for a list
  let before = "";
  for (const token of text.match(TOKEN) ?? []) {
    if (token === "{") open.push(new Set());
    else if (token === "[") open.push(null);
    else if (token === "}" || token === "]") open.pop();
    else if (token.startsWith('"') && open.at(-1) && before !== ":") {
      const key = JSON.parse(token);
      if (open.at(-1).has(key)) found.add(key);
      open.at(-1).add(key);
    }
    before = token;
  }
  return [...found];
}

/** Escapes every character that cannot be seen, for text that a person approves. */
export function reveal(text) {
  return text.replace(INVISIBLE, (character) => (character === " " ? character : escaped(character)));
}

/** Escapes controls and what changes the direction of text, for any other text. Lines stay. */
export function showControls(text) {
  return text.replace(CONTROLS, (character) => ("\n\t".includes(character) ? character : escaped(character)));
}

function escaped(character) {
  const units = Array.from({ length: character.length }, (_, n) => character.charCodeAt(n));
  return units.map((unit) => `\\u${unit.toString(16).padStart(4, "0")}`).join("");
}

function isContainer(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === "object";
  } catch {
    return false;
  }
}

function indent(tokens) {
  let lines = "";
  let depth = 0;
  let before = "";
  for (const token of tokens) {
    const isFirst = before === "{" || before === "[";
    const isEnd = token === "}" || token === "]";
    depth += isFirst - isEnd;
    if (before === "," || isFirst !== isEnd) lines += `\n${"  ".repeat(depth)}`;
    // Escapes of ordinary letters would hide a word: \u0061lice is alice.
    lines += token === ":" ? ": " : token.startsWith('"') ? reveal(JSON.stringify(JSON.parse(token))) : token;
    before = token;
  }
  return lines;
}
