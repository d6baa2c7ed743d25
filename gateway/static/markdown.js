// Markdown as it streams in. What marked reads becomes elements of a fixed few kinds, made here: no text is ever parsed
// as HTML, no image is loaded, and a link is followed only when it is clicked. HTML in a text is shown as it stands there.

import { Lexer } from "./vendor/marked.js";

const CHARS_MAX = 200_000; // what is longer is shown as it is written
const LINK = /^(https?|mailto):/i;

/** A text inside an element, for as long as it grows. */
export class MarkdownText {
  #text = "";
  #frozenEnd = 0; // where the last block begins; those before it can change no more
  #frozenNodes = 0;

  constructor(element) {
    this.element = element;
  }

  /** Show the text; what is shown of it already stays, so that a selection does. */
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
    // Tabs and line ends that marked made alike would put the places out of step.
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
    return new Lexer({ gfm: true }).lex(text);
  } catch {
    return [{ type: "plain", raw: text }]; // nested too deep for it
  }
}

// How a token becomes a node; what is of no kind here is shown as it is written.
const NODE = {
  space: ({ raw }) => new Text(raw),
  paragraph: ({ tokens }) => element("p", inline(tokens)),
  // Below the page's own headings.
  heading: ({ depth, tokens }) => element(`h${Math.min(6, depth + 2)}`, inline(tokens)),
  // As it is written; marked has the empty lines after it in it.
  html: ({ raw, block: isBlock }) => (isBlock ? element("p", [raw.trimEnd()]) : new Text(raw)),
  blockquote: ({ tokens }) => element("blockquote", tokens.map(block)),
  hr: () => element("hr"),
  code: ({ text }) => {
    const pre = element("pre", [element("code", [text])]);
    pre.tabIndex = 0; // to be scrolled by keys
    return pre;
  },
  list: ({ ordered, start, items }) => {
    const list = element(ordered ? "ol" : "ul", items.map(listItem));
    if (ordered && start > 1) list.start = start;
    return list;
  },
  table: ({ header, rows }) => {
    const row = (cells, name) => element("tr", cells.map(({ tokens }) => element(name, inline(tokens))));
    const head = element("thead", [row(header, "th")]);
    return element("div", [element("table", [head, element("tbody", rows.map((cells) => row(cells, "td")))])], "table");
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

function span(children) {
  return element("span", children);
}

function element(name, children = [], className = "") {
  const made = document.createElement(name);
  made.append(...children);
  if (className) made.className = className;
  return made;
}
