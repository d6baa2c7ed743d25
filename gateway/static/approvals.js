// The question of a call to a person: two buttons or a box for the answer, later the decision.

import { ProblemError } from "./vendor/stagebus-client.js";
import { clone, setText, untilText, whenSubmitted } from "./dom.js";
import { duplicateKeys, pretty, showControls } from "./json_text.js";

const DECIDED = { approve: "Approved", deny: "Denied", answer: "Answered" };

/** Shows a call's question in its card. `decide(call, decision)` sends the decision; null if this page may not decide. */
export function showApproval(card, call, decide) {
  const place = card.querySelector(".approval");
  const { approval, state } = call;
  setText(card.querySelector(".asked"), showControls(approval?.question ?? ""));
  if (approval?.decided) {
    place.replaceChildren();
    return setText(card.querySelector(".decided"), decidedText(approval.decided));
  }
  if (state !== "waiting") return place.replaceChildren();
  if (!place.firstElementChild) place.append(form(call, decide));
}

function decidedText({ decision, reason, is_expired: isExpired, arguments: changed }) {
  if (isExpired) return "Nobody decided in time; the call counts as denied.";
  const changes = changed == null ? "" : ", with other arguments";
  return `${DECIDED[decision]}${changes}${reason ? `: ${reason}` : "."}`;
}

function form(call, decide) {
  const { question, expiresAt } = call.approval;
  const isQuestion = question !== null;
  const form = clone(isQuestion ? "question-template" : "approval-template");
  const part = (name) => form.querySelector(name);
  part(".question").textContent = isQuestion ? "" : "May this call run?";
  part(".until").textContent = untilText(expiresAt);
  if (!decide) {
    for (const control of form.querySelectorAll("button, textarea, input, details")) control.remove();
    part(".until").textContent += " This link shows the run; it cannot decide.";
    return form;
  }
  if (!isQuestion) {
    part(".twice").textContent = twiceText(duplicateKeys(call.arguments));
    part(".changed").value = pretty(call.arguments);
  }
  whenSubmitted(form, ({ value }) => decide(call, decisionOf(value, part, call)), messageOf);
  return form;
}

/** Returns the decision in the form. Throws if the arguments are not a JSON object or an answer is empty. */
function decisionOf(decision, part, call) {
  if (decision === "deny") {
    const reason = part(".reason")?.value.trim();
    return reason ? { decision, reason } : { decision };
  }
  if (decision === "answer") {
    const text = part(".reply").value;
    if (!text.trim()) throw new Error("Write an answer first.");
    return { decision, text };
  }
  const changed = part(".changed").value;
  if (changed === pretty(call.arguments)) return { decision };
  checkObject(changed);
  return { decision, argumentsJson: changed }; // as text: parsing would round large integers
}

/** Throws if a text is not a JSON object, or if parsers could read it in two ways. */
function checkObject(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`The arguments are not valid JSON: ${error.message}`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw new Error("The arguments must be a JSON object.");
  const twice = twiceText(duplicateKeys(text));
  if (twice) throw new Error(twice);
}

function twiceText(keys) {
  const named = keys.map((key) => JSON.stringify(key)).join(", ");
  return keys.length ? `${named} occurs twice; the last value counts.` : "";
}

function messageOf(problem) {
  if (problem instanceof ProblemError && problem.code === "approval_conflict") return "Someone else has decided differently.";
  return problem.message;
}
