// The page's access to the gateway that serves it.

import { Stagebus } from "./vendor/stagebus-client.js";

// The path of the page: `/`, or the prefix below which the gateway is mounted.
const BASE = new URL("..", import.meta.url).pathname;

// A shared link has a ticket for its run in the fragment, which browsers never send.
const ticket = new URLSearchParams(location.hash.slice(1)).get("ticket");
const sharedPath = `${BASE}runs/${encodeURIComponent(new URLSearchParams(location.search).get("run"))}`;

/** True if the page was opened by a shared link, which shows one run and allows no actions. */
export const isGuest = ticket !== null;

export const client = new Stagebus({ baseUrl: BASE, fetch: (path, init) => fetch(withTicket(path), init) });

/** Returns the page's address for a run. */
export function runAddress(id) {
  return `${BASE}?run=${encodeURIComponent(id)}`;
}

/** Returns true if an error means that the visitor has to sign in. */
export function isSignInNeeded(error) {
  return error?.code === "unauthenticated" && !ticket;
}

/** Signs this browser in: exchanges the key for a cookie that scripts cannot read. */
export async function signIn(key) {
  const response = await fetch(`${BASE}session`, { method: "POST", headers: { Authorization: `Bearer ${key}` } });
  if (!response.ok) throw new Error((await response.json()).detail);
}

/** Returns true if this browser has a session that it can end: not on an open gateway. */
export async function hasSession() {
  const response = await fetch(`${BASE}session`);
  return response.ok && (await response.json()).expires_at !== null;
}

/** Ends the session, at the gateway and in this browser. */
export async function endSession() {
  const response = await fetch(`${BASE}session`, { method: "DELETE" });
  if (!response.ok) throw new Error((await response.json()).detail);
  location.assign(BASE);
}

/** Returns the URL of a run's events for programs, with the ticket of a shared link. */
export function eventsUrl(runId) {
  return location.origin + withTicket(`${BASE}runs/${encodeURIComponent(runId)}/events`);
}

function withTicket(path) {
  if (!ticket || !path.startsWith(sharedPath)) return path;
  return `${path}${path.includes("?") ? "&" : "?"}ticket=${encodeURIComponent(ticket)}`;
}
