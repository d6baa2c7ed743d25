// The form that starts a run: what it sends, and errors at the field that they are about.

import { client, isSignInNeeded } from "./api.js";
import { showSignIn } from "./sign_in.js";
import { isPassing } from "./vendor/stagebus-client.js";
import { $, setBusy } from "./view.js";

const INPUT_BY_FIELD = { user_prompt: "prompt", messages: "prompt", system_prompt: "system", model: "model" };

let onCreated;
// One key for one body, as long as it is not known what became of it.
let pending = null;

/** Make the form work; `listener(run, body)` is told of each run that it made. */
export function initForm(listener) {
  onCreated = listener;
  $("run-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("run-form").requestSubmit();
  });
  for (const button of document.querySelectorAll(".examples button")) {
    button.addEventListener("click", () => {
      clearErrors();
      $("prompt").value = button.textContent;
      $("prompt").focus();
    });
  }
}

async function submit() {
  if ($("start").ariaDisabled === "true") return;
  clearErrors();
  const body = readBody();
  if (!body.user_prompt.trim()) return showErrors([{ field: "user_prompt", message: "Write a prompt first." }]);
  const text = JSON.stringify(body);
  if (pending?.text !== text) pending = { text, key: newKey() };
  setBusy($("start"), true);
  try {
    const onRetry = (tries) => {
      $("form-error").textContent = `The gateway does not answer; trying again (${tries}). No run is started twice.`;
    };
    const run = await client.runs.create(body, { idempotencyKey: pending.key, onRetry });
    pending = null;
    clearErrors();
    $("prompt").value = "";
    onCreated(run, body);
  } catch (problem) {
    if (isSignInNeeded(problem)) showSignIn();
    if (!isPassing(problem)) pending = null;
    $("form-error").textContent = problem.message;
    showErrors(problem.errors ?? []);
  } finally {
    setBusy($("start"), false);
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
  return crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint32Array(4))).join("-");
}

function showErrors(errors) {
  let first = null;
  for (const { field, message } of errors) {
    const input = INPUT_BY_FIELD[field.split(".")[0]];
    if (input) {
      $(input).ariaInvalid = "true";
      $(`${input}-error`).textContent = message;
      first ??= $(input);
    } else {
      $("form-error").append(` ${field}: ${message}`);
    }
  }
  if (first) $("options").open ||= $("options").contains(first);
  first?.focus();
}

function clearErrors() {
  for (const error of document.querySelectorAll("#form-error, .field-error")) error.textContent = "";
  for (const input of document.querySelectorAll("[aria-invalid]")) input.ariaInvalid = null;
}
