// The system view's part about webhooks: what is open, and the deliveries that failed or are tried again. It stays hidden
// while there are none.

import { client, runAddress } from "./api.js";
import { $, make, placeChildren, setBusy, setText } from "./dom.js";
import { duration } from "./format.js";

const SHOWN = 20;

/** Shows the figures of `GET /stats`, and the newest deliveries that are not delivered. */
export async function showDeliveries({ undistributed, open, oldest_s: oldest, failed, gone, files_differ: differ }) {
  const waiting = Object.values(open).reduce((sum, count) => sum + count, undistributed);
  $("webhooks").hidden = waiting + failed + gone.length === 0 && !differ;
  if ($("webhooks").hidden) return;
  const figures = { open: waiting, oldest: waiting ? duration(1000 * oldest) : "–", failed };
  for (const [name, value] of Object.entries(figures)) setText(document.querySelector(`[data-figure=hooks-${name}]`), value.toLocaleString());
  const notes = [
    differ ? "Processes have different webhooks files." : "",
    gone.length ? `Answered 410 and get nothing more: ${gone.join(", ")}.` : "",
  ];
  setText($("webhooks-note"), notes.filter(Boolean).join(" "));
  const pages = await Promise.all(["waiting", "failed"].map((state) => client.webhooks.deliveries({ state, limit: SHOWN, triesMax: 1 })));
  placeChildren($("deliveries"), pages.flatMap((page) => page.deliveries).filter(({ tries, state }) => tries || state === "failed").slice(0, SHOWN).map(row));
}

function row(delivery) {
  const { id, endpoint, type, run_id: runId, state, tries, last_error: error } = delivery;
  const link = make("a", "", runId || "test");
  if (runId) link.href = runAddress(runId);
  const button = make("button", "button", "Send again");
  button.addEventListener("click", async () => {
    setBusy(button, true);
    await client.webhooks.resend(id).catch((failure) => setText($("webhooks-note"), `Not sent: ${failure.message}`));
    setBusy(button, false);
  });
  const head = make("div", "head", make("h3", "", `${type} to ${endpoint}`), make("span", "spacer"), button);
  const says = `${state} · ${tries} ${tries === 1 ? "try" : "tries"} · ${error ?? ""}`;
  return make("li", "card worker", head, make("div", "load", link, make("span", "muted", says)));
}
