// The list of recent runs: a column where there is room, a drawer where there is not.

import { client, isSignInNeeded } from "./api.js";
import { ago } from "./format.js";
import { showSignIn } from "./sign_in.js";
import { $ } from "./view.js";

const RECENT_RUNS_MAX = 20;

const isNarrow = matchMedia("(width < 64rem)");

let runs = [];
let openId = null;
let openStatus = null;

/** Make the list work; `onOpen(runId)` is told of a click. */
export function initRecents(onOpen) {
  $("recents-list").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    onOpen(link.dataset.runId);
  });
  $("recents-toggle").addEventListener("click", () => setDrawer(true));
  for (const id of ["recents-close", "recents-shade"]) $(id).addEventListener("click", () => setDrawer(false));
  addEventListener("keydown", (event) => event.key === "Escape" && setDrawer(false));
  isNarrow.addEventListener("change", () => setDrawer(false));
  setDrawer(false);
}

/** Ask for the list. Without it the page works as well. */
export async function refreshRecents() {
  try {
    runs = (await client.runs.list({ limit: RECENT_RUNS_MAX, triesMax: 1 })).runs;
    $("recents-note").textContent = runs.length ? "" : "None yet.";
  } catch (error) {
    $("recents-note").textContent = "The list cannot be had right now.";
    if (isSignInNeeded(error)) showSignIn();
  }
  render();
}

/** The run that the page shows, if any. */
export function markRecent(runId) {
  openId = runId;
  openStatus = null;
  setDrawer(false);
  render();
}

/** The shown run's status: its stream knows it sooner than the list does. */
export function noteStatus(status) {
  openStatus = status;
  render();
}

function render() {
  const focusedId = document.activeElement.dataset.runId;
  $("recents-list").replaceChildren(...runs.map(listItem));
  if (focusedId) [...$("recents-list").querySelectorAll("a")].find((a) => a.dataset.runId === focusedId)?.focus();
}

function listItem(run) {
  const isOpen = run.id === openId;
  const status = (isOpen && openStatus) || run.status;
  const item = document.createElement("li");
  const link = document.createElement("a");
  link.href = `/?run=${encodeURIComponent(run.id)}`;
  link.dataset.runId = run.id;
  if (isOpen) link.ariaCurrent = "page";
  const facts = span("muted", "");
  facts.append(span("status", status), span("", run.created_at ? ago(new Date(run.created_at), Date.now()) : ""));
  link.append(span("", run.prompt || run.id), facts);
  item.append(link);
  return item;
}

function span(name, text) {
  const element = document.createElement("span");
  element.className = name;
  element.textContent = text;
  if (name === "status") element.dataset.status = text;
  return element;
}

function setDrawer(isOpen) {
  const wasOpen = $("main").inert;
  document.body.classList.toggle("drawer-open", isOpen);
  $("recents-toggle").ariaExpanded = isOpen;
  $("recents").inert = isNarrow.matches && !isOpen;
  $("main").inert = isOpen;
  if (isOpen) refreshRecents();
  if (isOpen) $("recents-close").focus();
  else if (wasOpen) $("recents-toggle").focus();
}
