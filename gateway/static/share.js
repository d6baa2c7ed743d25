// A link to the open run for somebody who has no key: it shows this run, and nothing else.

import { isGuest } from "./api.js";
import { $, setBusy } from "./dom.js";
import { copy } from "./events_view.js";

/** Make the button work; `openRun()` is the run that the page shows. */
export function initShare(openRun) {
  $("share").hidden = isGuest;
  $("share").addEventListener("click", () => share(openRun()));
  $("share-copy").addEventListener("click", () => copy($("share-copy"), $("share-url").value));
}

async function share(run) {
  if ($("share").ariaDisabled === "true") return;
  setBusy($("share"), true);
  $("share-error").textContent = "";
  try {
    const { links, expires_at: expiresAt } = await run.ticket({ share: true });
    $("share-url").value = location.origin + links.page;
    $("share-until").textContent = new Date(expiresAt).toLocaleString();
    $("share-link").hidden = false;
    $("share-url").select();
  } catch (problem) {
    $("share-error").textContent = problem.message;
  } finally {
    setBusy($("share"), false);
  }
}
