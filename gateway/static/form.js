// The form that starts a run: what it sends, what it remembers, and errors beside their fields.

import { client, isGuest, isSignInNeeded } from "./api.js";
import { $, make, setBusy } from "./dom.js";
import { showSignIn } from "./sign_in.js";
import { isRetryable } from "./vendor/stagebus-client.js";

const KEPT = "stagebus.form"; // in localStorage: the last run's options, never its prompt
const NUMBERS = { rounds: "max_rounds", timeout: "timeout_s" };
const STAGE_NUMBERS = { "max-tokens": "max_tokens", temperature: "temperature" }; // each stage may have its own value
const KEPT_INPUTS = [
  "system", "model", "synthesis-model", "tool-choice",
  ...Object.keys(NUMBERS), ...Object.keys(STAGE_NUMBERS).flatMap((id) => [id, `synthesis-${id}`]),
];
// The input for an invalid field, by the beginning of the field's path.
const INPUT_BY_FIELD = {
  user_prompt: "prompt", messages: "prompt", system_prompt: "system", tools: "tools", tool_choice: "tool-choice",
  metadata: "metadata", "model.synthesis": "synthesis-model", model: "model",
  "max_tokens.1": "synthesis-max-tokens", max_tokens: "max-tokens",
  "temperature.1": "synthesis-temperature", temperature: "temperature",
  ...Object.fromEntries(Object.entries(NUMBERS).map(([input, field]) => [field, input])),
};

const DEMO_MODEL = /^demo(:|$)/; // worker/demo/demo_script.py

const hasNoPointer = matchMedia("(hover: none)");

let onCreated;
// The body whose outcome is unknown, with its idempotency key, so that a repeated submission creates no second run.
let pending = null;
let isLoaded = false; // the tools and models to choose from

/** Initialises the form; calls `listener(run, body)` for each run that it creates. */
export function initForm(listener) {
  onCreated = listener;
  $("run-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  $("prompt").addEventListener("keydown", (event) => {
    // An on-screen keyboard has no Shift+Enter for a new line.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || hasNoPointer.matches) return;
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
  $("options").addEventListener("toggle", () => $("options").open && !isLoaded && loadChoices());
  recall();
  if (!isGuest) showDemo().catch(() => {}); // not signed in, or no connection: the form works without it
}

/** Says that the demo model answers, if it does, and offers an example with a call that waits for a person. */
async function showDemo() {
  const { models } = await client.models();
  if (!models.some(({ id, is_default: isDefault }) => isDefault && DEMO_MODEL.test(id))) return;
  $("demo-note").hidden = false;
  const { tools } = await client.tools();
  $("approval-example").hidden = !tools.some(({ name }) => name === "book_table");
}

async function submit() {
  if ($("start").ariaDisabled === "true") return;
  clearErrors();
  let body;
  try {
    body = readBody();
  } catch ({ field, message }) {
    return showErrors([{ field, message }]);
  }
  const text = JSON.stringify(body);
  if (pending?.text !== text) pending = { text, key: newKey() };
  setBusy($("start"), true);
  try {
    const onRetry = (tries) => {
      $("form-error").textContent = `The gateway does not answer; retrying (${tries}). The run is not started twice.`;
    };
    const run = await client.runs.create(body, { idempotencyKey: pending.key, onRetry });
    pending = null;
    clearErrors();
    keep();
    $("prompt").value = "";
    onCreated(run, body);
  } catch (problem) {
    if (isSignInNeeded(problem)) showSignIn();
    if (!isRetryable(problem)) pending = null;
    $("form-error").textContent = problem.errors?.length ? "" : problem.message;
    showErrors(problem.errors ?? []);
  } finally {
    setBusy($("start"), false);
  }
}

/** Returns the request body. Throws `{field, message}` if a field is invalid. */
function readBody() {
  const body = { user_prompt: $("prompt").value, synthesis: $("synthesis").checked };
  if (!body.user_prompt.trim()) throw { field: "user_prompt", message: "Write a prompt first." };
  if ($("system").value.trim()) body.system_prompt = $("system").value;
  if ($("tool-choice").value) body.tool_choice = $("tool-choice").value;
  const [model, other] = ["model", "synthesis-model"].map((id) => $(id).value.trim());
  if (other && other !== model) body.model = { ...(model && { extraction: model }), synthesis: other };
  else if (model) body.model = model;
  for (const [input, field] of Object.entries(NUMBERS)) {
    const value = readNumber(input, field);
    if (value !== null) body[field] = value;
  }
  for (const [input, field] of Object.entries(STAGE_NUMBERS)) {
    const value = readNumber(input, field);
    const other = readNumber(`synthesis-${input}`, `${field}.1`);
    if (other !== null && other !== value) body[field] = [value, other];
    else if (value !== null) body[field] = value;
  }
  const boxes = toolBoxes();
  const isStandard = boxes.every(({ checked, value }) => checked === isOfferedUnasked(value));
  if (!isStandard) body.tools = boxes.filter(({ checked }) => checked).map(({ value }) => value);
  const metadata = readMetadata();
  if (metadata) body.metadata = metadata;
  return body;
}

/** Returns an input's number; null if it is empty. */
function readNumber(input, field) {
  const { value, validity } = $(input);
  if (validity.badInput) throw { field, message: "Enter a number." };
  return value === "" ? null : Number(value);
}

function readMetadata() {
  const lines = $("metadata").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const pairs = lines.map((line) => {
    const [key, ...value] = line.split("=");
    if (!key.trim() || value.length === 0) throw { field: "metadata", message: `“${line}” is no name=value.` };
    return [key.trim(), value.join("=").trim()];
  });
  return pairs.length > 0 ? Object.fromEntries(pairs) : null;
}

/** Returns true for tools of runs that name none. A run without a person would wait in vain for `ask_user`. */
function isOfferedUnasked(name) {
  return name !== "ask_user";
}

function toolBoxes() {
  return [...$("tools").querySelectorAll("input")];
}

/** Loads the tools and models to choose from, when the options are first opened. */
async function loadChoices() {
  try {
    const [{ tools }, { models, any_model: isAny }] = await Promise.all([client.tools(), client.models()]);
    isLoaded = true;
    const { tools: kept = {} } = recalled();
    $("tools").replaceChildren(...tools.map((tool) => toolChoice(tool, kept[tool.name] ?? isOfferedUnasked(tool.name))));
    if (tools.length === 0) $("tools").append("No worker offers a tool.");
    $("models").replaceChildren(...models.map(({ id }) => Object.assign(make("option"), { value: id })));
    const standard = models.find((model) => model.is_default)?.id;
    $("model").placeholder = standard ? `${standard} (standard)` : "the gateway’s default";
    $("model-hint").textContent = isAny ? "Other names are passed to the provider unchanged." : "";
  } catch (error) {
    $("tools").textContent = "The tools cannot be loaded right now; a run gets all of them.";
    if (isSignInNeeded(error)) showSignIn();
  }
}

function toolChoice({ name, description, parameters, requires_approval: asks }, isChecked) {
  const box = Object.assign(make("input"), { type: "checkbox", value: name, checked: isChecked });
  const label = make("label", "check", box, make("code", "", name), asks ? make("span", "muted", "asks first") : "");
  const schema = make("pre", "", JSON.stringify(parameters, null, 2));
  schema.tabIndex = 0;
  const details = make("details", "", make("summary", "", description.split("\n")[0] || "its arguments"), schema);
  return make("div", "tool", label, details);
}

function keep() {
  const values = Object.fromEntries(KEPT_INPUTS.map((id) => [id, $(id).value]));
  const tools = isLoaded ? Object.fromEntries(toolBoxes().map(({ value, checked }) => [value, checked])) : recalled().tools;
  try {
    localStorage.setItem(KEPT, JSON.stringify({ values, tools, synthesis: $("synthesis").checked }));
  } catch {
    // The browser may not allow storage; the form works without it.
  }
}

function recall() {
  const { values = {}, tools = {}, synthesis = true } = recalled();
  for (const [id, value] of Object.entries(values)) if ($(id)) $(id).value = value;
  $("synthesis").checked = synthesis;
  // A tool that was deselected is deselected again, visibly.
  const isChanged = Object.entries(tools).some(([name, isChosen]) => isChosen !== isOfferedUnasked(name));
  if (isChanged) loadChoices();
  if (isChanged || Object.values(values).some(Boolean)) $("options").open = true;
}

function recalled() {
  try {
    return JSON.parse(localStorage.getItem(KEPT)) ?? {};
  } catch {
    return {};
  }
}

/** Returns a new idempotency key. `randomUUID` is missing if the page was loaded over plain HTTP. */
function newKey() {
  return crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint32Array(4))).join("-");
}

function showErrors(errors) {
  for (const { field, message } of errors) {
    const input = INPUT_BY_FIELD[Object.keys(INPUT_BY_FIELD).find((path) => `${field}.`.startsWith(`${path}.`))];
    const place = input && $(`${input}-error`);
    if (place) {
      $(input).ariaInvalid = "true";
      place.textContent = message;
    } else {
      $("form-error").append(` ${field}: ${message}`);
    }
  }
  const first = document.querySelector("#run-form [aria-invalid=true]"); // in document order
  if (first) $("options").open ||= $("options").contains(first);
  first?.focus();
}

function clearErrors() {
  for (const error of document.querySelectorAll("#form-error, #run-form .field-error")) error.textContent = "";
  for (const input of document.querySelectorAll("[aria-invalid]")) input.ariaInvalid = null;
}
