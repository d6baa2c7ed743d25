// One run's events over the browser's EventSource: each once, in order, across whatever happens to the connection.
//
//   connecting    until the first connection stands
//   live          it stands
//   reconnecting  it was lost, or an event was
//   gap           the log no longer has what was seen, and is read anew
//   ended         after the terminal event, or where there is no such run
//
// An id is `<attempt>-<sequence>` and sequences are consecutive, so a hole or a copy shows in the id alone.
// Spec: https://html.spec.whatwg.org/multipage/server-sent-events.html

// An EventSource gives only events that were asked for by name, so one that is not here would look like a hole.
export const EVENT_NAMES = [
  "run_queued", "run_started", "retry_scheduled", "stage_started", "stage_restarted", "tool_completion_chunk",
  "tool_call", "tool_progress", "tool_result", "tool_summary", "stage_completed", "done", "cancel", "error",
];
export const TERMINAL_NAMES = new Set(["done", "cancel", "error"]);

export const BACKOFF_MS = 500;
export const BACKOFF_MAX_MS = 15_000;
// A hole that stays after this many tries is one of the log itself, not of the connection.
export const HOLE_TRIES_MAX = 3;
// Events come in a rush when they are replayed; the first one after this much silence is new.
export const QUIET_MS = 150;

const CLOSED = 2;

/** The sequence of an event id; NaN where it is none. */
export function sequenceOf(id) {
  return /^\d+-\d+$/.test(id) ? Number(id.slice(id.indexOf("-") + 1)) : NaN;
}

export class RunStream {
  #listener;
  #env;
  #url;
  #source = null;
  #lastId = ""; // the cursor; while it is empty the next event may have any sequence
  #sequence = 0;
  #losses = 0; // since the connection last stood
  #failures = 0; // answers that made EventSource give up, in a row
  #holeTries = 0;
  #gapEnd = 0; // the sequence up to which a gap is read anew
  #isReplay;
  #lastAt = 0;
  #timer = null;
  #state = "";

  /**
   * @param listener  onEvent({ id, sequence, name, data, at }); onDrop(sequence): forget the events from there on;
   *   onConnection(state, losses); probe(): is the run `known` or `unknown`, or the gateway `away`?
   * @param options.isNew  the run was just made, so nothing of it is old
   */
  constructor(runId, listener, { isNew = false, env = globalThis } = {}) {
    this.#url = `/runs/${encodeURIComponent(runId)}/events`;
    this.#listener = listener;
    this.#env = env;
    this.#isReplay = !isNew;
  }

  open() {
    this.#setState("connecting");
    this.#connect();
  }

  /** Stop without a word to the listener. */
  close() {
    this.#disconnect();
    this.#state = "ended";
  }

  /** Connect anew now: the network is back, or the page was asleep and the connection may be dead. */
  reconnect() {
    if (this.#state === "ended") return;
    this.#disconnect();
    this.#noteLoss();
    this.#connect();
  }

  #connect() {
    const cursor = this.#lastId && `?last_event_id=${encodeURIComponent(this.#lastId)}`;
    const source = new this.#env.EventSource(this.#url + cursor);
    this.#source = source;
    const ifCurrent = (handle) => (frame) => source === this.#source && handle(frame);
    source.addEventListener("open", ifCurrent(() => this.#opened()));
    source.addEventListener("gap", ifCurrent((frame) => this.#gap(JSON.parse(frame.data))));
    for (const name of EVENT_NAMES) {
      source.addEventListener(name, ifCurrent((frame) => {
        // EventSource's own `error` has no data; the run's has.
        if (frame.data === undefined) this.#lost();
        else this.#receive(name, frame);
      }));
    }
  }

  #disconnect() {
    this.#env.clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #opened() {
    this.#losses = 0;
    this.#failures = 0;
    this.#lastAt = Infinity; // the first event is no sign: the log may have taken a while to read
    this.#setState(this.#gapEnd ? "gap" : "live");
  }

  #receive(name, { lastEventId: id, data: text }) {
    const sequence = sequenceOf(id);
    if (sequence <= this.#sequence) return;
    if (sequence !== this.#sequence + 1 && !this.#accepts(sequence)) return;
    this.#holeTries = 0;
    this.#sequence = sequence;
    this.#lastId = id;
    if (sequence >= this.#gapEnd && this.#gapEnd) {
      this.#gapEnd = 0;
      this.#setState("live");
    }
    this.#listener.onEvent({ id, sequence, name, data: JSON.parse(text), at: this.#clock() });
    if (TERMINAL_NAMES.has(name)) this.#end();
  }

  /** Whether an event after a hole is taken; if not, what is missing is asked for again. */
  #accepts(sequence) {
    const isTrimmed = this.#lastId === "" || this.#holeTries >= HOLE_TRIES_MAX;
    if (isTrimmed && Number.isFinite(sequence)) {
      this.#listener.onDrop(sequence);
      return true;
    }
    this.#holeTries += 1;
    this.#disconnect();
    this.#noteLoss();
    this.#connectAfter(this.#holeTries === 1 ? 0 : this.#backoff(this.#holeTries));
    return false;
  }

  #gap({ earliest, latest }) {
    const sequence = sequenceOf(earliest);
    this.#sequence = Math.min(this.#sequence, sequence - 1);
    this.#lastId = ""; // the cursor did not stand; until an event brings a new one, the start is all there is
    this.#isReplay = true;
    this.#gapEnd = sequenceOf(latest);
    this.#setState("gap");
    this.#listener.onDrop(sequence);
  }

  /** When the event came; null while events are replayed. */
  #clock() {
    const now = this.#env.performance.now();
    this.#isReplay &&= now - this.#lastAt < QUIET_MS;
    this.#lastAt = now;
    return this.#isReplay ? null : now;
  }

  #lost() {
    this.#noteLoss();
    // Not closed: the EventSource asks again by itself, with its cursor.
    if (this.#source.readyState === CLOSED) this.#recover();
  }

  /** Any status but 200 makes an EventSource give up for good; find out whether the run is gone or only the gateway. */
  async #recover() {
    const source = this.#source;
    const answer = await this.#listener.probe();
    if (source !== this.#source) return;
    this.#disconnect();
    if (answer === "unknown") this.#end();
    else this.#connectAfter(this.#backoff(++this.#failures));
  }

  /** The connection is gone; what comes next is first of all what was missed. */
  #noteLoss() {
    this.#isReplay = true;
    this.#losses += 1;
    this.#setState("reconnecting", this.#losses);
  }

  #end() {
    this.close();
    this.#listener.onConnection("ended", 0);
  }

  #connectAfter(ms) {
    this.#timer = this.#env.setTimeout(() => this.#connect(), ms);
  }

  #backoff(number) {
    return Math.min(BACKOFF_MS * 2 ** (number - 1), BACKOFF_MAX_MS) * (0.5 + this.#env.Math.random() / 2);
  }

  #setState(state, losses = 0) {
    this.#state = state;
    this.#listener.onConnection(state, losses);
  }
}
