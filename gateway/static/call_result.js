// The box in which a person gives the result of a call that waits for one from outside.

import { ProblemError } from "./vendor/stagebus-client.js";
import { clone, untilText, whenSubmitted } from "./dom.js";

const PURPOSE = {
  client: "A client runs this call. You can give its result instead.",
  deferred: "The result of this call comes from outside. You can give it here.",
};

/** Shows the box in a call's card. `giveResult(call, result)` sends the result; null if this page may not. */
export function showResultBox(card, call, giveResult) {
  const place = card.querySelector(".give-result");
  const ref = call.state === "running" && call.deferred?.ref;
  if (place.dataset.ref === ref) return;
  place.replaceChildren(); // after a lost tail another call may have the same id
  delete place.dataset.ref;
  if (!ref) return;
  place.dataset.ref = ref;
  place.append(form(call, giveResult));
}

function form(call, giveResult) {
  const { kind, expires_at: expiresAt } = call.deferred;
  const form = clone("result-template");
  const part = (name) => form.querySelector(name);
  part(".until").textContent = untilText(expiresAt);
  if (!giveResult) {
    for (const control of form.querySelectorAll("textarea, label, .buttons")) control.remove();
    part(".until").textContent += " This link shows the run; it cannot give the result.";
    return form;
  }
  part(".question").textContent = PURPOSE[kind] ?? PURPOSE.deferred;
  const send = () => giveResult(call, resultOf(part));
  whenSubmitted(form, send, messageOf);
  return form;
}

function resultOf(part) {
  const content = part(".content").value;
  if (!content.trim()) throw new Error("Write a result first.");
  return { content, isError: part(".is-error").checked };
}

function messageOf(problem) {
  const isLate = problem instanceof ProblemError && problem.code === "call_has_result";
  return isLate ? "This call has another result already." : problem.message;
}
