// The sign-in form: exchanges a key for a cookie that scripts cannot read.

import { signIn } from "./api.js";
import { $, setBusy } from "./dom.js";

/** Initialises the form. */
export function initSignIn() {
  $("sign-in-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
}

/** Shows the form. If it is open already, it stays untouched: every refresh of the list is refused and calls this again. */
export function showSignIn() {
  if (!$("sign-in").hidden) return;
  $("sign-in").hidden = false;
  $("home").hidden ||= $("prompt").value === ""; // a prompt that was begun stays visible
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
