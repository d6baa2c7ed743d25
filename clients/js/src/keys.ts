// Keys for requests that are safe to repeat.

/** Returns a new key. randomUUID exists only in secure contexts, and a local gateway may use plain HTTP. */
export function newKey(): string {
  return crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint32Array(4))).join("-");
}
