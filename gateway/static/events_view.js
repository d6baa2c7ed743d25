// The list of a run's raw events, of which only the visible rows are drawn, and the curl command that fetches one.

import { eventsUrl } from "./api.js";
import { $, make, setBusy } from "./dom.js";
import { showControls } from "./json_text.js";
import { EVENT_NAMES } from "./vendor/stagebus-client.js";

const ROW_PX = 28;
const SPARE_ROWS = 8; // above and below the visible rows
const EXCERPT_CHARS = 200;
const COPIED_MS = 1500;

export class EventsView {
  #run = null;
  #events = []; // the events that match the filter
  #seen = 0; // the number of the run's events that were filtered so far
  #lastSeen = null;
  #chosen = null;

  constructor() {
    $("events-list").addEventListener("scroll", () => this.#draw(), { passive: true });
    $("events-filter").addEventListener("input", () => this.#refilter());
    $("events").addEventListener("toggle", () => this.#refilter());
    $("events-list").addEventListener("click", ({ target }) => this.#choose(target.closest("[data-index]")?.dataset.index));
    $("events-list").addEventListener("keydown", (event) => this.#step(event));
    for (const button of document.querySelectorAll("[data-copy]")) {
      button.addEventListener("click", () => copy(button, this.#command(button.dataset.copy)));
    }
  }

  reset() {
    this.#run = null;
    $("events").open = false;
    $("events-filter").value = "";
    this.#refilter();
  }

  render(run) {
    this.#run = run;
    $("events-count").textContent = run.events.length.toLocaleString();
    if (!$("events").open) return;
    // After a gap the run has other events.
    const isGrown = this.#seen <= run.events.length && run.events.at(this.#seen - 1) === this.#lastSeen;
    if (isGrown) this.#add();
    else this.#refilter();
  }

  #refilter() {
    this.#events = [];
    this.#seen = 0;
    this.#lastSeen = undefined;
    this.#chosen = null;
    this.#add();
    this.#showChosen();
  }

  #add() {
    if (!this.#run || !$("events").open) return;
    const { events } = this.#run;
    const words = $("events-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const event of events.slice(this.#seen)) if (isWanted(event, words)) this.#events.push(event);
    this.#seen = events.length;
    this.#lastSeen = events.at(-1);
    this.#draw();
  }

  #draw() {
    const { scrollTop, clientHeight } = $("events-list");
    const first = Math.max(0, Math.floor(scrollTop / ROW_PX) - SPARE_ROWS);
    const count = Math.ceil((clientHeight || 400) / ROW_PX) + 2 * SPARE_ROWS;
    const rows = this.#events.slice(first, first + count).map((event, n) => this.#row(event, first + n));
    $("events-rows").style.height = `${this.#events.length * ROW_PX}px`;
    $("events-rows").replaceChildren(...rows);
    $("events-none").hidden = this.#events.length > 0;
  }

  #row(event, index) {
    const row = make(
      "div", "event", make("span", "id", event.id), make("span", "name", event.name),
      make("span", "excerpt", showControls(JSON.stringify(event.data).slice(0, EXCERPT_CHARS))),
    );
    row.id = `event-${index}`;
    row.role = "option";
    row.dataset.index = index;
    row.style.top = `${index * ROW_PX}px`;
    row.ariaSelected = event === this.#chosen;
    return row;
  }

  #step(event) {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined || this.#events.length === 0) return;
    event.preventDefault();
    const from = this.#chosen ? this.#events.indexOf(this.#chosen) : -1;
    this.#choose(Math.min(this.#events.length - 1, Math.max(0, from + by)));
  }

  #choose(index) {
    if (index === undefined) return;
    this.#chosen = this.#events[index];
    const list = $("events-list");
    const top = index * ROW_PX;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW_PX > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_PX - list.clientHeight;
    list.setAttribute("aria-activedescendant", `event-${index}`);
    this.#draw();
    this.#showChosen();
  }

  #showChosen() {
    $("event-detail").hidden = !this.#chosen;
    if (!this.#chosen) return $("events-list").removeAttribute("aria-activedescendant");
    const { id, name, data } = this.#chosen;
    $("event-title").textContent = `${id} ${name}`;
    $("event-data").textContent = showControls(JSON.stringify(data, null, 2));
  }

  #command(kind) {
    const { id, data, sequence } = this.#chosen;
    const { id: runId, events } = this.#run;
    if (kind === "json") return $("event-data").textContent;
    if (kind === "redis-cli") return `redis-cli XRANGE ${quote(`sb:run:{${runId}}:stage:${data.stage_id}`)} ${id} ${id}`;
    const before = events.at(Math.max(0, sequence - events.at(0).sequence - 1));
    const cursor = before.sequence < sequence ? ` -H ${quote(`Last-Event-ID: ${before.id}`)}` : "";
    const key = $("sign-out").hidden ? "" : ' -H "Authorization: Bearer $STAGEBUS_API_KEY"'; // programs have no session
    return `curl -N ${quote(eventsUrl(runId))}${key}${cursor}`;
  }
}

function isWanted(event, words) {
  if (words.length === 0) return true;
  const text = `${event.id} ${event.name} ${JSON.stringify(event.data)}`.toLowerCase();
  // The whole name of an event matches only names: the data of every chunk contains `tool_results`.
  return words.every((word) => (EVENT_NAMES.includes(word) ? event.name === word : text.includes(word)));
}

/** Quotes a text for a shell, so that the text of a model or a tool cannot become a command. */
function quote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** Copies a text to the clipboard; the button shows whether that worked. */
export async function copy(button, text) {
  const label = button.textContent;
  setBusy(button, true);
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not copied: the browser does not allow it";
  }
  setTimeout(() => {
    button.textContent = label;
    setBusy(button, false);
  }, COPIED_MS);
}
