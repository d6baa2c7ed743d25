// The system's view: the queue, the workers with the runs that they hold, and rates. Refreshed while it is visible.

import { client, isSignInNeeded, runAddress } from "./api.js";
import { $, make, placeChildren, setText } from "./dom.js";
import { duration } from "./format.js";
import { showSignIn } from "./sign_in.js";

const ASK_MS = 2000;
const RATES_OVER_MS = 10_000;
const RUNS_SHOWN = 20; // per worker
const PER_MINUTE = 60_000;

let timer = null;
const rows = new Map(); // worker name -> its row, kept as long as the worker exists
let seen = []; // the last few { at, totals }, for rates

/** Starts or stops the refreshing. */
export function showOps(isShown) {
  clearInterval(timer);
  timer = null;
  seen = [];
  if (!isShown) return;
  timer = setInterval(() => document.hidden || refresh(), ASK_MS);
  refresh();
}

async function refresh() {
  try {
    const stats = await client.stats({ triesMax: 1 });
    if (timer === null) return;
    setText($("ops-error"), "");
    render(stats, performance.now());
  } catch (error) {
    setText($("ops-error"), `Cannot be loaded right now: ${error.message}`);
    if (isSignInNeeded(error)) showSignIn();
  }
}

function render({ queue, workers, streams_open: streams, totals }, now) {
  seen = [...seen.filter(({ at }) => now - at <= RATES_OVER_MS), { at: now, totals }];
  const ended = ({ runs_succeeded: good, runs_failed: bad, runs_cancelled: off }) => good + bad + off;
  const failed = change(({ runs_failed: bad }) => bad);
  const all = change(ended);
  const figures = {
    waiting: queue.waiting, running: queue.running, parked: queue.parked, "held-back": queue.held_back, streams,
    ended: perMinute(all), tokens: perMinute(change(({ tokens }) => tokens)),
    errors: all ? `${Math.round((100 * failed) / all)} %` : "–",
    succeeded: totals.runs_succeeded, failed: totals.runs_failed, cancelled: totals.runs_cancelled, events: totals.events,
  };
  for (const [name, value] of Object.entries(figures)) {
    setText(document.querySelector(`[data-figure=${name}]`), typeof value === "number" ? value.toLocaleString() : value);
  }
  placeChildren($("workers"), workers.map(showWorker));
  for (const name of rows.keys()) if (!workers.some((worker) => worker.name === name)) rows.delete(name);
  setText($("workers-none"), workers.length ? "" : "No worker is running; runs wait.");
}

/** Returns how much a figure grew over the last seconds; null while that is unknown. */
function change(figure) {
  return seen.length > 1 ? figure(seen.at(-1).totals) - figure(seen[0].totals) : null;
}

function perMinute(grown) {
  if (grown === null) return "–";
  return Math.round((grown * PER_MINUTE) / (seen.at(-1).at - seen[0].at));
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
