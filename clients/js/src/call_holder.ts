// The names under which this client claims calls.

const STORED = "stagebus-holder";
const DIGITS = 36;

/** This page, or process: another name after each load, so that a call that runs once is never run by two loads. */
export const PAGE_HOLDER = newName();

/** This tab: the same name after a reload, so that the page need not wait for the end of its own claim. */
export function tabHolder(): string {
  if (typeof document === "undefined") return PAGE_HOLDER;
  try {
    const stored = sessionStorage.getItem(STORED);
    if (stored) return stored;
    sessionStorage.setItem(STORED, PAGE_HOLDER);
  } catch {
    // The page may not store anything.
  }
  return PAGE_HOLDER;
}

function newName(): string {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (number) => number.toString(DIGITS)).join("");
}
