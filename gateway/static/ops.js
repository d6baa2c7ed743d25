// The system's view: the queue, the workers with the runs that they hold, rates, and the last hour. Refreshed while it is
// visible. Everything comes from one answer of the gateway, so the first one shows it all.

import { client, isSignInNeeded, runAddress } from "./api.js";
import { $, make, placeChildren, setText } from "./dom.js";
import { duration } from "./format.js";
import { showDeliveries } from "./deliveries.js";
import { showSignIn } from "./sign_in.js";

const ASK_MS = 2000;
const RATES_OVER_MINUTES = 2; // the present one is counted as far as it has passed
const RUNS_SHOWN = 20; // per worker
const HOUR_MINUTES = 60;

let timer = null;
const rows = new Map(); // worker name -> its row, kept as long as the worker exists

/** Starts or stops the refreshing. */
export function showOps(isShown) {
  clearInterval(timer);
  timer = null;
  if (!isShown) return;
  timer = setInterval(() => document.hidden || refresh(), ASK_MS);
  refresh();
}

async function refresh() {
  try {
    const stats = await client.stats({ triesMax: 1 });
    if (timer === null) return;
    setText($("ops-error"), "");
    render(stats);
    await showDeliveries(stats.webhooks);
  } catch (error) {
    setText($("ops-error"), `Cannot be loaded right now: ${error.message}`);
    if (isSignInNeeded(error)) showSignIn();
  }
}

function render({ queue, workers, streams_open: streams, totals, last_hour: minutes }) {
  const passedS = (minutes.at(-1)?.began_s_ago ?? 0) % 60; // of the present minute
  const recentS = 60 * (RATES_OVER_MINUTES - 1) + passedS;
  const recent = sum(minutes.filter((minute) => minute.began_s_ago <= recentS));
  const perMinute = (count) => Math.round((60 * count) / recentS);
  const hour = sum(minutes);
  const figures = {
    waiting: queue.waiting, running: queue.running, parked: queue.parked, "held-back": queue.held_back, streams,
    ended: perMinute(ended(recent)), tokens: perMinute(recent.tokens), errors: failedShare(recent),
    "hour-ended": ended(hour), "hour-errors": failedShare(hour), "hour-tokens": hour.tokens, "hour-events": hour.events,
    succeeded: totals.runs_succeeded, failed: totals.runs_failed, cancelled: totals.runs_cancelled, events: totals.events,
  };
  for (const [name, value] of Object.entries(figures)) {
    setText(document.querySelector(`[data-figure=${name}]`), typeof value === "number" ? value.toLocaleString() : value);
  }
  showHour(minutes);
  placeChildren($("workers"), workers.map(showWorker));
  for (const name of rows.keys()) if (!workers.some((worker) => worker.name === name)) rows.delete(name);
  setText($("workers-none"), workers.length ? "" : "No worker is running; runs wait.");
}

function ended({ runs_succeeded: good, runs_failed: bad, runs_cancelled: off }) {
  return good + bad + off;
}

function failedShare(totals) {
  return ended(totals) ? `${Math.round((100 * totals.runs_failed) / ended(totals))} %` : "–";
}

function sum(minutes) {
  const all = { events: 0, runs_succeeded: 0, runs_failed: 0, runs_cancelled: 0, tokens: 0 };
  for (const minute of minutes) for (const name of Object.keys(all)) all[name] += minute[name];
  return all;
}

/** Shows a bar for each minute of the last hour: its ended runs, of which the lower part failed. */
function showHour(minutes) {
  const byAge = new Map(minutes.map((minute) => [Math.floor(minute.began_s_ago / 60), minute]));
  const most = Math.max(1, ...minutes.map(ended));
  const bars = Array.from({ length: HOUR_MINUTES }, (_, n) => bar(HOUR_MINUTES - 1 - n, byAge.get(HOUR_MINUTES - 1 - n), most));
  $("hour").replaceChildren(...bars);
  $("hour").ariaLabel = `Runs per minute over the last hour: ${ended(sum(minutes))} in all, at most ${Math.max(0, ...minutes.map(ended))}`;
}

function bar(minutesAgo, minute, most) {
  const element = make("span", "bar-of-minute");
  if (!minute) return element;
  const failed = make("span", "failed");
  element.style.height = `${(100 * ended(minute)) / most}%`;
  failed.style.height = `${(100 * minute.runs_failed) / ended(minute)}%`;
  element.append(failed);
  element.title = `${minutesAgo ? `${minutesAgo} min ago` : "this minute"}: ${ended(minute)} ended, ${minute.runs_failed} failed`;
  return element;
}

function showWorker({ name, concurrency, runs, seen_ms_ago: ago }) {
  if (!rows.has(name)) rows.set(name, workerRow(name));
  const { item, load, heard, count, held, more } = rows.get(name);
  Object.assign(load, { max: concurrency, value: runs.length });
  setText(heard, `last seen ${duration(ago)} ago`);
  setText(count, `${runs.length} of ${concurrency} runs`);
  const shown = new Map([...held.children].map((row) => [row.dataset.held, row]));
  const rest = runs.length - RUNS_SHOWN;
  setText(more, `and ${rest} more`);
  placeChildren(held, [...runs.slice(0, RUNS_SHOWN).map((run) => showHeld(shown.get(run.id), run)), ...(rest > 0 ? [more] : [])]);
  return item;
}

function workerRow(name) {
  const load = Object.assign(make("meter", ""), { min: 0, ariaLabel: `Runs of ${name}` });
  const [heard, count] = [make("span", "muted"), make("span", "muted")];
  const held = make("ul", "held");
  const head = make("div", "head", make("h3", "", name), make("span", "spacer"), heard);
  return { item: make("li", "card worker", head, make("div", "load", load, count), held), load, heard, count, held, more: make("li", "muted") };
}

function showHeld(shown, { id, attempt, lease_ends_in_ms: lease }) {
  const row = shown ?? heldRow(id);
  setText(row.lastChild, `attempt ${attempt} · ${lease > 0 ? `lease for ${duration(lease)}` : "lease is over"}`);
  return row;
}

function heldRow(id) {
  const link = make("a", "", id);
  link.href = runAddress(id);
  const row = make("li", "", link, make("span", "muted"));
  row.dataset.held = id;
  return row;
}
