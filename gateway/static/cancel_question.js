// Asks before a run is cancelled by a small button, which a finger hits by accident. A cancelled run does not come back.

import { $ } from "./dom.js";

/** Returns whether the person confirms that the run is to be cancelled. */
export function confirmCancel(prompt) {
  const dialog = $("cancel-question");
  if (dialog.open) return Promise.resolve(false);
  $("cancel-question-run").textContent = prompt;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "cancel"), { once: true });
  });
}
