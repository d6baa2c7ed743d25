// The chat's id stands in the address, so a reload or a copied link finds it. Its messages are kept by this browser; the
// answer that is being written comes from the gateway, which has all of it.

/** Returns the id of the chat in the address, or starts a new chat. */
export function openChat() {
  const id = location.hash.slice(1) || crypto.randomUUID();
  history.replaceState(null, "", `#${id}`);
  return id;
}

export function loadMessages(id) {
  return JSON.parse(localStorage.getItem(`chat:${id}`) ?? "[]");
}

export function saveMessages(id, messages) {
  localStorage.setItem(`chat:${id}`, JSON.stringify(messages));
}
