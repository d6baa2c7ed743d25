// Times and money as text for people.

// With these finish reasons the text is not the answer that was asked for.
const FINISH_TEXT = {
  length: "cut off at the token limit", max_tokens: "cut off at the token limit",
  content_filter: "cut off by the content filter", refusal: "refused",
};

const CENT_PARTS = 5; // decimals of an amount below 1

/** Returns 320 ms, 3.4 s or 2 min 05 s; an empty text if the duration is unknown. */
export function duration(ms) {
  if (ms == null) return "";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return ms < 59_950 ? `${(ms / 1000).toFixed(1)} s` : elapsed(ms);
}

/** The same for a duration that is still growing: in whole seconds, so that it does not flicker. */
export function elapsed(ms) {
  const seconds = Math.floor(ms / 1000);
  return seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
}

/** Returns just now, 5 min ago or 3 h ago; later the date. */
export function ago(date, now) {
  const minutes = Math.floor((now - date) / 60_000);
  if (minutes < 1) return "just now";
  if (minutes < 60) return `${minutes} min ago`;
  return minutes < 24 * 60 ? `${Math.floor(minutes / 60)} h ago` : date.toLocaleDateString();
}

/** Returns $0.0123 or EUR 4.50; an empty text if the cost is unknown. */
export function money(cost) {
  if (cost == null) return "";
  const { amount, currency } = cost;
  const maximumFractionDigits = amount < 1 ? CENT_PARTS : 2;
  const least = 10 ** -CENT_PARTS;
  const text = (value) => value.toLocaleString(undefined, { style: "currency", currency, minimumFractionDigits: 2, maximumFractionDigits });
  return amount > 0 && amount < least ? `< ${text(least)}` : text(amount);
}

/** Returns how an answer ended, if it is not the one that was asked for; else an empty text. */
export function finishText(reason) {
  return FINISH_TEXT[reason] ?? "";
}
