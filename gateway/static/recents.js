// The list of recent runs: a column where there is room, a drawer where there is not.

import { listRuns } from "./api.js";
import { ago } from "./format.js";
import { $ } from "./view.js";

const drawer = matchMedia("(max-width: 63.99rem)");

export class Recents {
  #onOpen;
  #currentId = null;
  #runs = [];

  constructor(onOpen) {
    this.#onOpen = onOpen;
    $("recents-toggle").addEventListener("click", () => this.#setOpen(true));
    $("recents-close").addEventListener("click", () => this.#setOpen(false));
    $("recents-shade").addEventListener("click", () => this.#setOpen(false));
    $("recents").addEventListener("keydown", (event) => event.key === "Escape" && this.#setOpen(false));
    drawer.addEventListener("change", () => this.#setOpen(false));
    $("recents").inert = drawer.matches;
  }

  /** Ask for the list. Without it the page works as well. */
  async refresh() {
    try {
      const { runs } = await listRuns();
      this.#runs = Array.isArray(runs) ? runs : [];
      this.#render(this.#runs.length ? "" : "None yet.");
    } catch {
      if (this.#runs.length === 0) this.#render("The list cannot be had right now.");
    }
  }

  mark(runId) {
    this.#currentId = runId;
    this.#render($("recents-note").textContent);
    if (drawer.matches) this.#setOpen(false);
  }

  #render(note) {
    $("recents-note").textContent = note;
    $("recents-note").hidden = note === "";
    const focusedId = document.activeElement?.closest("#recents-list a")?.dataset.runId;
    $("recents-list").replaceChildren(...this.#runs.map((run) => this.#item(run)));
    if (focusedId) [...$("recents-list").querySelectorAll("a")].find((link) => link.dataset.runId === focusedId)?.focus();
  }

  #item(run) {
    const item = document.createElement("li");
    const link = document.createElement("a");
    link.href = `/?run=${encodeURIComponent(run.id)}`;
    link.dataset.runId = run.id;
    if (run.id === this.#currentId) link.setAttribute("aria-current", "page");
    link.append(span("recent-prompt", run.prompt || run.id), facts(run));
    link.addEventListener("click", (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey || event.button !== 0) return;
      event.preventDefault();
      this.#onOpen(run.id);
    });
    item.append(link);
    return item;
  }

  #setOpen(isOpen) {
    const wasOpen = document.body.classList.contains("drawer-open");
    document.body.classList.toggle("drawer-open", isOpen);
    $("recents-toggle").setAttribute("aria-expanded", isOpen);
    $("recents").inert = drawer.matches && !isOpen;
    $("main").inert = isOpen;
    if (isOpen) {
      this.refresh();
      $("recents-close").focus();
    } else if (wasOpen) {
      $("recents-toggle").focus();
    }
  }
}

function facts(run) {
  const line = span("recent-facts", "");
  const status = span("dot-status", run.status ?? "");
  status.dataset.status = run.status ?? "";
  line.append(status);
  const created = new Date(run.created_at ?? NaN);
  if (!Number.isNaN(created.getTime())) {
    const time = document.createElement("time");
    time.dateTime = created.toISOString();
    time.textContent = ago(created, Date.now());
    line.append(time);
  }
  return line;
}

function span(name, text) {
  const element = document.createElement("span");
  element.className = name;
  element.textContent = text;
  return element;
}
