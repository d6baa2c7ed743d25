// A link to the open run for someone without a key. It gives access to this run only.

import { $, setBusy } from "./dom.js";
import { copy } from "./events_view.js";

let shared = null; // { run, id }: the run of the link shown, and its ticket's id

/** Initialises the buttons; `openRun()` returns the run that the page shows. */
export function initShare(openRun) {
  $("share").addEventListener("click", () => share(openRun(), openRun));
  $("share-revoke").addEventListener("click", revoke);
  $("share-copy").addEventListener("click", () => copy($("share-copy"), $("share-url").value));
}

async function share(run, openRun) {
  if ($("share").ariaDisabled === "true") return;
  setBusy($("share"), true);
  $("share-error").textContent = "";
  try {
    const { id, links, expires_at: expiresAt } = await run.ticket({ share: true });
    if (openRun() !== run) return; // another run has been opened since
    shared = { run, id };
    $("share-url").value = location.origin + links.page;
    $("share-until").textContent = new Date(expiresAt).toLocaleString();
    $("share-link").hidden = false;
    $("share-url").select();
  } catch (problem) {
    if (openRun() === run) $("share-error").textContent = problem.message;
  } finally {
    setBusy($("share"), false);
  }
}

/** Revokes the link. The gateway also closes the streams that it opened. */
async function revoke() {
  if ($("share-revoke").ariaDisabled === "true") return;
  setBusy($("share-revoke"), true);
  $("share-error").textContent = "";
  try {
    await shared.run.revokeTicket(shared.id);
    $("share-link").hidden = true;
    $("share").focus();
  } catch (problem) {
    $("share-error").textContent = problem.message;
  } finally {
    setBusy($("share-revoke"), false);
  }
}
