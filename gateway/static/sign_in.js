// The form for those whom the gateway does not know: a key goes out once and comes back as a cookie that no script reads.

import { signIn } from "./api.js";
import { $, setBusy } from "./dom.js";

/** Make the form work. */
export function initSignIn() {
  $("sign-in-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
}

/** Ask for a key; who is at it already is left alone, though the list is refused again and again. */
export function showSignIn() {
  if (!$("sign-in").hidden) return;
  $("sign-in").hidden = false;
  $("home").hidden ||= $("prompt").value === ""; // what was written there is not put out of sight
  $("key").focus();
}

async function submit() {
  const key = $("key").value.trim();
  if (!key || $("sign-in-button").ariaDisabled === "true") return;
  setBusy($("sign-in-button"), true);
  try {
    await signIn(key);
    $("key").value = "";
    location.reload();
  } catch (problem) {
    $("sign-in-error").textContent = problem.message;
  } finally {
    setBusy($("sign-in-button"), false);
  }
}
