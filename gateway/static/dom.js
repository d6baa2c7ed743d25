// Helpers for the page's elements. Text from a model, a tool or a person is set as text, never as HTML.

export const $ = (id) => document.getElementById(id);

/** Sets an element's text. If the text has only grown, the rest is appended, so that a selection survives. */
export function setText(element, text) {
  const node = element.firstChild ?? element.appendChild(new Text());
  if (node.data === text) return;
  if (node.data && text.startsWith(node.data)) node.appendData(text.slice(node.length));
  else node.data = text;
}

/** Marks a button as busy. Does not use `disabled`, which would take the focus away. */
export function setBusy(button, isBusy) {
  button.ariaDisabled = isBusy;
}

/**
 * Calls `send(submitter)` when a form is submitted. Its buttons are busy meanwhile, and stay so after success: the event
 * that follows removes the form, in this browser and in all others. A failure is shown in its `.field-error`.
 */
export function whenSubmitted(form, send, messageOf) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const buttons = [...form.querySelectorAll("button")];
    if (buttons.some((button) => button.ariaDisabled === "true")) return;
    const error = form.querySelector(".field-error");
    error.textContent = "";
    for (const button of buttons) setBusy(button, true);
    try {
      await send(event.submitter);
    } catch (problem) {
      error.textContent = messageOf(problem);
      for (const button of buttons) setBusy(button, false);
    }
  });
}

/** Returns until when a call waits, as a sentence. */
export function untilText(expiresAt) {
  return `It waits until ${new Date(expiresAt).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" })}.`;
}

/** Announces a text to screen readers. */
export function announce(text) {
  $("announcer").textContent = text;
}

/** Returns a copy of a template's content. */
export function clone(templateId) {
  return $(templateId).content.firstElementChild.cloneNode(true);
}

/** Creates an element with a class and children. */
export function make(name, className, ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Makes these the element's children. Children already in place are not moved, since one may have the focus or the pointer. */
export function placeChildren(element, wanted) {
  const isWanted = new Set(wanted);
  for (const child of [...element.children]) if (!isWanted.has(child)) child.remove();
  wanted.forEach((child, n) => element.children[n] === child || element.insertBefore(child, element.children[n] ?? null));
}

/** Returns true if a click on a link is meant for this page and not for a new tab. */
export function isPlainClick(event) {
  return event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
}
