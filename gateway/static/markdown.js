// Renders Markdown while it streams in. marked's tokens become elements of a few fixed kinds, created here: no text is
// ever parsed as HTML, no image is loaded, and a link is followed only when it is clicked. HTML in a text is shown as text.
//
// marked needs quadratic time for some texts, such as "_a_a_a…" (5 s for 60 kB). It is therefore parsed within limits
// of depth, length and time; what exceeds them is shown as plain text.

import { Lexer } from "./vendor/marked.js";

const CHARS_MAX = 200_000; // a longer text is shown as plain text
const INLINE_CHARS_MAX = 5_000; // of one paragraph, item or cell: 50 ms at most
const DEPTH_MAX = 30; // of nested quotes and lists
const PARSE_MAX_MS = 300; // of one rendering; a long real answer takes 5 to 20
const LINK = /^(https?|mailto):/i;

/** Parses within limits of depth, length and time. */
class BudgetLexer extends Lexer {
  #deadline = performance.now() + PARSE_MAX_MS;

  #depth = 0;

  blockTokens(text, tokens = [], ...options) {
    if (this.#depth === DEPTH_MAX || performance.now() > this.#deadline) {
      tokens.push({ type: "plain", raw: text });
      return tokens;
    }
    this.#depth += 1;
    super.blockTokens(text, tokens, ...options);
    this.#depth -= 1;
    return tokens;
  }

  inlineTokens(text, tokens = []) {
    if (text.length <= INLINE_CHARS_MAX && performance.now() < this.#deadline) return super.inlineTokens(text, tokens);
    tokens.push({ type: "plain", raw: text });
    return tokens;
  }
}

/** Shows a growing text in an element. */
export class MarkdownText {
  #text = "";
  #frozenEnd = 0; // start of the last block; earlier blocks cannot change any more
  #frozenNodes = 0;

  constructor(element) {
    this.element = element;
  }

  /** Shows the text. Elements that are complete stay, so that a selection survives. */
  show(text) {
    if (text === this.#text) return;
    if (!text.startsWith(this.#text)) this.#forget();
    this.#text = text;
    const tail = text.slice(this.#frozenEnd);
    const blocks = read(tail);
    while (this.element.childNodes.length > this.#frozenNodes) this.element.lastChild.remove();
    this.element.append(...blocks.map(block));
    this.#freeze(blocks, tail);
  }

  #freeze(blocks, tail) {
    const last = blocks.findLastIndex(({ type }) => type !== "space");
    const before = blocks.slice(0, Math.max(0, last));
    const length = before.reduce((sum, { raw }) => sum + raw.length, 0);
    // marked normalises tabs and line ends, which would shift the positions.
    if (!before.length || before.map(({ raw }) => raw).join("") !== tail.slice(0, length)) return;
    this.#frozenEnd += length;
    this.#frozenNodes += before.length;
  }

  #forget() {
    this.#frozenEnd = this.#frozenNodes = 0;
    this.element.replaceChildren();
  }
}

function read(text) {
  if (text.length > CHARS_MAX) return [{ type: "plain", raw: text }];
  try {
    return new BudgetLexer({ gfm: true }).lex(text);
  } catch {
    return [{ type: "plain", raw: text }]; // nested too deeply for the parser
  }
}

// How a token becomes a node. Tokens of other types are shown as plain text.
const NODE = {
  space: ({ raw }) => new Text(raw),
  paragraph: ({ tokens }) => element("p", inline(tokens)),
  // Below the page's own headings.
  heading: ({ depth, tokens }) => element(`h${Math.min(6, depth + 2)}`, inline(tokens)),
  // Shown as text; marked includes the empty lines after it.
  html: ({ raw, block: isBlock }) => (isBlock ? element("p", [raw.trimEnd()]) : new Text(raw)),
  blockquote: ({ tokens }) => element("blockquote", tokens.map(block)),
  hr: () => element("hr"),
  code: ({ text }) => scrollable(element("pre", [element("code", [text])])),
  list: ({ ordered, start, items }) => {
    const list = element(ordered ? "ol" : "ul", items.map(listItem), items.some(({ task }) => task) ? "tasks" : "");
    if (ordered && start > 1) list.start = start;
    return list;
  },
  table: ({ header, rows, align }) => {
    const cell = (name, { tokens }, column) => element(name, inline(tokens), align[column] ?? "");
    const row = (cells, name) => element("tr", cells.map((one, column) => cell(name, one, column)));
    const head = element("thead", [row(header, "th")]);
    const table = element("table", [head, element("tbody", rows.map((cells) => row(cells, "td")))]);
    return scrollable(element("div", [table], "table"));
  },
  text: ({ tokens, text }) => (tokens ? span(inline(tokens)) : new Text(text)),
  escape: ({ text }) => new Text(text),
  strong: ({ tokens }) => element("strong", inline(tokens)),
  em: ({ tokens }) => element("em", inline(tokens)),
  del: ({ tokens }) => element("del", inline(tokens)),
  codespan: ({ text }) => element("code", [text]),
  br: () => new Text("\n"),
  link: ({ href, tokens, raw }) => (LINK.test(href) ? link(href, inline(tokens)) : new Text(raw)),
  image: ({ href, text, raw }) => (LINK.test(href) ? link(href, [text || href]) : new Text(raw)),
};

function block(token) {
  return (NODE[token.type] ?? (({ raw }) => new Text(raw)))(token);
}

function inline(tokens) {
  return tokens.map(block);
}

function listItem({ task, checked, tokens }) {
  const item = element("li", tokens.map(block));
  if (task) item.prepend(checked ? "☑ " : "☐ ");
  return item;
}

function link(href, children) {
  const anchor = element("a", children);
  anchor.href = href;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer nofollow";
  anchor.title = href;
  return anchor;
}

/** Lets the keyboard scroll an element that is wider than the page. */
function scrollable(element) {
  element.tabIndex = 0;
  return element;
}

function span(children) {
  return element("span", children);
}

function element(name, children = [], className = "") {
  const made = document.createElement(name);
  made.append(...children);
  if (className) made.className = className;
  return made;
}
