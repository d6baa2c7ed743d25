// The gateway that serves this page.

import { Stagebus } from "./vendor/stagebus-client.js";

// The path of the page: `/`, or the prefix below which the gateway is mounted.
const BASE = new URL("..", import.meta.url).pathname;

// A shared link has a ticket for its one run behind the #, which browsers send to nobody.
const ticket = new URLSearchParams(location.hash.slice(1)).get("ticket");
const sharedPath = `${BASE}runs/${encodeURIComponent(new URLSearchParams(location.search).get("run"))}`;

/** Whether the address is such a link: it shows one run, and may do nothing. */
export const isGuest = ticket !== null;

export const client = new Stagebus({ baseUrl: BASE, fetch: (path, init) => fetch(withTicket(path), init) });

/** The page's address for a run. */
export function runAddress(id) {
  return `${BASE}?run=${encodeURIComponent(id)}`;
}

/** Whether an error says that the gateway wants to know who asks. */
export function isSignInNeeded(error) {
  return error?.code === "unauthenticated" && !ticket;
}

/** Let this browser's pages in: the key goes out once and comes back as a cookie that no script can read. */
export async function signIn(key) {
  const response = await fetch(`${BASE}session`, { method: "POST", headers: { Authorization: `Bearer ${key}` } });
  if (!response.ok) throw new Error((await response.json()).detail);
}

function withTicket(path) {
  if (!ticket || !path.startsWith(sharedPath)) return path;
  return `${path}${path.includes("?") ? "&" : "?"}ticket=${encodeURIComponent(ticket)}`;
}
