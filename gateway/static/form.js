// The form that starts a run: what it sends, and errors at the field that they are about.

import { createRun } from "./api.js";
import { $ } from "./view.js";

const FIELD_INPUTS = { user_prompt: "prompt", messages: "prompt", system_prompt: "system", model: "model" };

export class RunForm {
  #onCreated;
  // One key for one body, as long as it is not known what became of it.
  #pending = { body: "", key: "" };

  constructor(onCreated) {
    this.#onCreated = onCreated;
    $("run-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    $("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      $("run-form").requestSubmit();
    });
    for (const button of document.querySelectorAll(".example")) {
      button.addEventListener("click", () => this.fill(button.textContent));
    }
  }

  fill(prompt) {
    $("prompt").value = prompt;
    this.#clearErrors();
    $("prompt").focus();
  }

  async #submit() {
    if ($("start").getAttribute("aria-disabled") === "true") return;
    this.#clearErrors();
    const body = readBody();
    if (!body.user_prompt.trim()) {
      this.#showField("prompt", "Write a prompt first.");
      $("prompt").focus();
      return;
    }
    this.#setBusy(true);
    try {
      const run = await createRun(body, this.#keyFor(body), (tries) => {
        this.#showError(`The gateway does not answer; trying again (${tries}). The run is not started twice.`);
      });
      this.#pending = { body: "", key: "" };
      this.#clearErrors();
      $("prompt").value = "";
      this.#onCreated(run, body);
    } catch (problem) {
      if (!problem.isPassing) this.#pending = { body: "", key: "" };
      this.#showProblem(problem);
    } finally {
      this.#setBusy(false);
    }
  }

  #keyFor(body) {
    const text = JSON.stringify(body);
    if (this.#pending.body !== text) this.#pending = { body: text, key: newKey() };
    return this.#pending.key;
  }

  #setBusy(isBusy) {
    // Not `disabled`: that would take the focus away.
    $("start").setAttribute("aria-disabled", isBusy);
    $("start").firstElementChild.textContent = isBusy ? "Starting…" : "Start";
  }

  #showProblem(problem) {
    const others = [];
    let first = null;
    for (const { field = "", message } of problem.errors) {
      const input = FIELD_INPUTS[String(field).split(".")[0]];
      if (input) this.#showField(input, message);
      else others.push(field ? `${field}: ${message}` : message);
      first ??= input;
    }
    if (first) {
      if (first !== "prompt") $("options").open = true;
      $(first).focus();
    }
    const isSaid = first && others.length === 0;
    if (!isSaid) this.#showError([problem.message, ...others].join(" "));
  }

  #showField(input, message) {
    $(input).setAttribute("aria-invalid", "true");
    $(`${input}-error`).textContent = message;
    $(`${input}-error`).hidden = false;
  }

  #showError(text) {
    $("form-error").textContent = text;
    $("form-error").hidden = false;
  }

  #clearErrors() {
    $("form-error").hidden = true;
    for (const input of new Set(Object.values(FIELD_INPUTS))) {
      $(input).removeAttribute("aria-invalid");
      $(`${input}-error`).hidden = true;
    }
  }
}

function readBody() {
  const body = { user_prompt: $("prompt").value, synthesis: $("synthesis").checked };
  if ($("system").value.trim()) body.system_prompt = $("system").value;
  if ($("model").value.trim()) body.model = $("model").value.trim();
  return body;
}

/** randomUUID is there in secure contexts only, and a gateway may well be asked by plain HTTP in a local network. */
function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
