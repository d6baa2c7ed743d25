// The page's elements. What came from a model, a tool or a person is set as text, never as HTML.

export const $ = (id) => document.getElementById(id);

/** The element's text; text that only grew is appended, so that a selection in it stays. */
export function setText(element, text) {
  const node = element.firstChild ?? element.appendChild(new Text());
  if (node.data === text) return;
  if (node.data && text.startsWith(node.data)) node.appendData(text.slice(node.length));
  else node.data = text;
}

/** Not `disabled`, which would take the focus away. */
export function setBusy(button, isBusy) {
  button.ariaDisabled = isBusy;
}

/** Say something to those who listen to the page instead of looking at it. */
export function announce(text) {
  $("announcer").textContent = text;
}

/** What a template holds, to be put somewhere. */
export function clone(templateId) {
  return $(templateId).content.firstElementChild.cloneNode(true);
}

/** An element with a class and children. */
export function make(name, className, ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Make these the element's children, and touch none that has its place already: it may have the focus or the pointer. */
export function placeChildren(element, wanted) {
  const isWanted = new Set(wanted);
  for (const child of [...element.children]) if (!isWanted.has(child)) child.remove();
  wanted.forEach((child, n) => element.children[n] === child || element.insertBefore(child, element.children[n] ?? null));
}

/** Whether a click on a link is meant for this page, and not for a new tab. */
export function isPlainClick(event) {
  return event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
}
