// The form that starts a run: what it sends, what it remembers, and errors at the field that they are about.

import { client, isSignInNeeded } from "./api.js";
import { $, make, setBusy } from "./dom.js";
import { showSignIn } from "./sign_in.js";
import { isRetryable } from "./vendor/stagebus-client.js";

const KEPT = "stagebus.form"; // in localStorage: how runs were made last, never what was asked
const NUMBERS = { rounds: "max_rounds", timeout: "timeout_s" };
const STAGE_NUMBERS = { "max-tokens": "max_tokens", temperature: "temperature" }; // each stage may have its own
const KEPT_INPUTS = [
  "system", "model", "synthesis-model", "tool-choice",
  ...Object.keys(NUMBERS), ...Object.keys(STAGE_NUMBERS).flatMap((id) => [id, `synthesis-${id}`]),
];
// A field is where its path begins.
const INPUT_BY_FIELD = {
  user_prompt: "prompt", messages: "prompt", system_prompt: "system", tools: "tools", tool_choice: "tool-choice",
  metadata: "metadata", "model.synthesis": "synthesis-model", model: "model",
  "max_tokens.1": "synthesis-max-tokens", max_tokens: "max-tokens",
  "temperature.1": "synthesis-temperature", temperature: "temperature",
  ...Object.fromEntries(Object.entries(NUMBERS).map(([input, field]) => [field, input])),
};

const hasNoPointer = matchMedia("(hover: none)");

let onCreated;
// One key for one body, as long as it is not known what became of it.
let pending = null;
let isLoaded = false; // what a run may name

/** Make the form work; `listener(run, body)` is told of each run that it made. */
export function initForm(listener) {
  onCreated = listener;
  $("run-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  $("prompt").addEventListener("keydown", (event) => {
    // A keyboard on a screen has no other way to a new line.
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

/** What the form says. Throws `{field, message}` where it says what cannot be. */
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

/** Null where nothing is said. */
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

/** Whether a run that names no tools is offered this one: a run without a person at hand would wait in vain. */
function isOfferedUnasked(name) {
  return name !== "ask_user";
}

function toolBoxes() {
  return [...$("tools").querySelectorAll("input")];
}

/** What a run may name: asked for once somebody looks. */
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
    // A browser may keep nothing for this page; the form works all the same.
  }
}

function recall() {
  const { values = {}, tools = {}, synthesis = true } = recalled();
  for (const [id, value] of Object.entries(values)) if ($(id)) $(id).value = value;
  $("synthesis").checked = synthesis;
  // A tool that was left out is left out again, and is seen to be.
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

/** randomUUID is there in secure contexts only, and a gateway may well be asked by plain HTTP in a local network. */
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
  const first = document.querySelector("#run-form [aria-invalid=true]"); // as one reads the page
  if (first) $("options").open ||= $("options").contains(first);
  first?.focus();
}

function clearErrors() {
  for (const error of document.querySelectorAll("#form-error, #run-form .field-error")) error.textContent = "";
  for (const input of document.querySelectorAll("[aria-invalid]")) input.ariaInvalid = null;
}
