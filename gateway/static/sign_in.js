// The sign-in form, which exchanges a key for a cookie that scripts cannot read, and the button that ends this session.

import { endSession, hasSession, isGuest, signIn } from "./api.js";
import { $, announce, setBusy } from "./dom.js";

/** Initialises the form and the button. */
export function initSignIn() {
  $("sign-out").addEventListener("click", signOut);
  if (!isGuest) hasSession().then((isSignedIn) => ($("sign-out").hidden = !isSignedIn), () => undefined);
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

async function signOut() {
  if ($("sign-out").ariaDisabled === "true") return;
  setBusy($("sign-out"), true);
  try {
    await endSession();
  } catch (problem) {
    setBusy($("sign-out"), false);
    $("sign-out").title = `Not signed out: ${problem.message}`;
    announce($("sign-out").title);
  }
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
