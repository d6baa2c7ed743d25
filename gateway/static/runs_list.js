// The list of runs: a column on a wide page, a drawer on a narrow one. While it is visible, the feed tells of changes.

import { client, isGuest, isSignInNeeded, runAddress } from "./api.js";
import { confirmCancel } from "./cancel_question.js";
import { $, isPlainClick, make, placeChildren, setBusy } from "./dom.js";
import { ago, duration, finishText, money } from "./format.js";
import { showSignIn } from "./sign_in.js";

const PAGE_RUNS = 30;
const REFRESH_RUNS_MAX = 100; // the gateway's maximum for one page
const REFRESH_MIN_MS = 300; // between two requests, however much happens
const FEED_RETRY_MS = 5000; // after an error that the client does not retry by itself
const RENDER_MS = 3000; // the times in the entries grow
const TYPING_MS = 250;
const STATUS_TEXT = { parked: "waiting for you" };
const EMPTY_PAGES_MAX = 20; // in a row, for a filter with few matches

const isNarrow = matchMedia("(width < 64rem)");

const items = new Map(); // run id -> { says, item }: the entries shown
let runs = [];
let next = null; // the cursor of the next page
let asked = 0; // number of the latest request; answers to older ones are dropped
let isLoading = false;
let openId = null;
let openStatus = null;
let feed = null; // aborts the feed; null while the list is not visible
let refreshing = null; // the timer of the next refresh

/** Initialises the list; calls `onOpen(runId)` when an entry is clicked. */
export function initRunsList(onOpen) {
  $("recents-list").addEventListener("click", (event) => {
    const cancel = event.target.closest("button");
    if (cancel) return cancelRun(cancel);
    const link = event.target.closest("a");
    if (!link || !isPlainClick(event)) return;
    event.preventDefault();
    onOpen(link.dataset.runId);
  });
  let typing;
  $("runs-search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(reload, TYPING_MS);
  });
  for (const id of ["runs-status", "runs-model"]) $(id).addEventListener("change", reload);
  new IntersectionObserver(([end]) => end.isIntersecting && loadMore(), { root: $("recents") }).observe($("recents-end"));
  $("recents-toggle").addEventListener("click", () => setDrawer(true));
  for (const id of ["recents-close", "recents-shade"]) $(id).addEventListener("click", () => setDrawer(false));
  addEventListener("keydown", (event) => event.key === "Escape" && setDrawer(false));
  isNarrow.addEventListener("change", () => setDrawer(false));
  document.addEventListener("visibilitychange", () => (isSeen() && refreshRuns(), followFeed()));
  setInterval(() => isSeen() && render(), RENDER_MS);
  setDrawer(false);
}

/** Follows the feed while the list is visible. */
function followFeed() {
  if (isGuest || isSeen() === (feed !== null)) return;
  if (feed === null) return void listen((feed = new AbortController()).signal);
  feed.abort();
  feed = null;
}

async function listen(signal) {
  while (!signal.aborted) {
    scheduleRefresh(FEED_RETRY_MS / 5); // what happened between the first list and the feed's first answer
    try {
      for await (const _ of client.runs.events({ signal })) scheduleRefresh(REFRESH_MIN_MS);
    } catch {
      await new Promise((resolve) => setTimeout(resolve, FEED_RETRY_MS));
    }
  }
}

function scheduleRefresh(ms) {
  refreshing ??= setTimeout(() => {
    refreshing = null;
    if (isSeen()) refreshRuns();
  }, ms);
}

/** Fetches the shown part of the list again. If that fails, the page still works. */
export async function refreshRuns() {
  if (isGuest) return;
  const list = asked;
  try {
    const limit = Math.min(REFRESH_RUNS_MAX, Math.max(PAGE_RUNS, runs.length));
    const page = await ask({ limit });
    if (list !== asked) return;
    const last = page.runs.at(-1)?.id ?? "";
    // The entries after the fetched page stay unchanged.
    const kept = page.next === null ? [] : runs.filter(({ id }) => id < (page.runs.length ? last : page.next));
    if (kept.length === 0) next = page.next;
    runs = [...page.runs, ...kept];
    note(runs.length || next ? "" : isFiltered() ? "No run matches." : "None yet.");
  } catch (error) {
    if (list === asked) note(isSignInNeeded(error) ? "Sign in to see them." : "The list cannot be loaded right now.");
    if (isSignInNeeded(error)) showSignIn();
  }
  render();
}

/** Marks the run that the page shows, if any. */
export function markRun(runId) {
  openId = runId;
  openStatus = null;
  setDrawer(false);
  render();
}

/** Updates the open run's status, which its stream reports before the list does. */
export function noteStatus(status) {
  openStatus = status;
  render();
}

function reload() {
  asked += 1;
  runs = [];
  next = null;
  note("Loading…");
  render();
  refreshRuns().then(loadMore);
}

async function loadMore() {
  if (isLoading || next === null) return;
  const list = asked;
  isLoading = true;
  try {
    for (let pages = 0, found = 0; next !== null && found === 0 && pages < EMPTY_PAGES_MAX; pages++) {
      const page = await ask({ limit: PAGE_RUNS, before: next });
      if (list !== asked) return;
      const known = new Set(runs.map(({ id }) => id));
      const more = page.runs.filter(({ id }) => !known.has(id));
      runs = [...runs, ...more];
      next = page.next;
      found = more.length;
    }
    render();
  } catch {
    note("The rest of the list cannot be loaded right now.");
  } finally {
    isLoading = false;
  }
}

function ask(options) {
  const [q, status, model] = ["runs-search", "runs-status", "runs-model"].map((id) => $(id).value.trim());
  return client.runs.list({
    ...options, triesMax: 1, ...(q && { q }), ...(status && { status: status.split(",") }), ...(model && { model }),
  });
}

function isFiltered() {
  return ["runs-search", "runs-status", "runs-model"].some((id) => $(id).value.trim() !== "");
}

async function cancelRun(button) {
  if (button.ariaDisabled === "true" || !(await confirmCancel(button.dataset.prompt))) return;
  setBusy(button, true);
  try {
    await client.runs.resume(button.dataset.cancelId).cancel();
    await refreshRuns();
  } catch (error) {
    note(`Not cancelled: ${error.message}`);
    setBusy(button, false);
  }
}

function render() {
  const focused = document.activeElement;
  const { runId, cancelId } = focused.dataset;
  placeChildren($("recents-list"), runs.map(itemOf));
  const ids = new Set(runs.map(({ id }) => id));
  for (const id of items.keys()) if (!ids.has(id)) items.delete(id);
  $("recents-end").hidden = next === null;
  const place = runId ? `[data-run-id="${runId}"]` : cancelId && `[data-cancel-id="${cancelId}"]`;
  if (place && !focused.isConnected) $("recents-list").querySelector(place)?.focus({ preventScroll: true });
}

/** Returns a run's entry. An unchanged entry is reused, since it may be under the pointer. */
function itemOf(run) {
  const isOpen = run.id === openId;
  const status = (isOpen && openStatus) || run.status;
  const says = JSON.stringify([run, isOpen, status, whenText(run)]);
  const shown = items.get(run.id);
  if (shown?.says === says) return shown.item;
  const item = listItem(run, isOpen, status);
  items.set(run.id, { says, item });
  return item;
}

function listItem(run, isOpen, status) {
  const head = make("span", "head", make("span", "title", run.prompt || run.id), make("span", "muted when", whenText(run)));
  const link = make("a", "", head, make("span", "muted facts", ...facts(run, status)));
  link.href = runAddress(run.id);
  link.dataset.runId = run.id;
  link.title = Object.entries(run.metadata ?? {}).map(([key, value]) => `${key}: ${value}`).join("\n") || run.id;
  if (isOpen) link.ariaCurrent = "page";
  const item = make("li", "", link);
  if (["queued", "running", "parked"].includes(status) && !isOpen) item.append(cancelButton(run));
  return item;
}

function facts(run, status) {
  const word = make("span", "status", STATUS_TEXT[status] ?? status);
  word.dataset.status = status;
  const tokens = run.usage?.total_tokens;
  // The model's name comes last: it may be long, and the end of the line is cut.
  const parts = [finishText(run.finish_reason), duration(tookMs(run)), money(run.usage?.cost), tokens ? `${tokens.toLocaleString()} tokens` : "", run.model];
  return [word, make("span", "more", parts.filter(Boolean).join(" · "))];
}

function whenText({ created_at: createdAt }) {
  return createdAt ? ago(new Date(createdAt), Date.now()) : "";
}

function tookMs({ created_at: createdAt, finished_at: finishedAt }) {
  return createdAt && finishedAt ? new Date(finishedAt) - new Date(createdAt) : null;
}

function cancelButton(run) {
  const button = make("button", "button quiet icon", make("span", "sr-only", `Cancel: ${run.prompt || run.id}`));
  const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  icon.append(document.createElementNS("http://www.w3.org/2000/svg", "use"));
  icon.firstChild.setAttribute("href", "#i-cross");
  icon.setAttribute("aria-hidden", "true");
  button.prepend(icon);
  button.title = "Cancel";
  button.dataset.cancelId = run.id;
  button.dataset.prompt = run.prompt || run.id;
  return button;
}

function note(text) {
  $("recents-note").textContent = text;
}

function isSeen() {
  return !document.hidden && (!isNarrow.matches || document.body.classList.contains("drawer-open"));
}

function setDrawer(isOpen) {
  const wasOpen = $("main").inert;
  document.body.classList.toggle("drawer-open", isOpen);
  $("recents-toggle").ariaExpanded = isOpen;
  $("recents").inert = isNarrow.matches && !isOpen;
  $("main").inert = isOpen;
  if (isOpen) refreshRuns();
  followFeed();
  if (isOpen) $("recents-close").focus();
  else if (wasOpen) $("recents-toggle").focus();
}
