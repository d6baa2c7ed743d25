// A fake gateway that answers connections one after the other with scripted bytes.

import { createServer } from "node:net";

/** Encodes an event as a frame. */
export function frame(id, name = "tool_completion_chunk", data = { stage_id: "extraction" }) {
  return `id: ${id}\nevent: ${name}\ndata: ${JSON.stringify(data)}\n\n`;
}

export const RETRY = "retry: 0\n\n";
export const chunks = (...ids) => ids.map((id) => frame(id)).join("");
export const DONE = (id) => frame(id, "done", { stage_id: "run", usage: {} });

/** An event stream. `pieces` are sent one by one; promises among them are awaited first. */
export function stream(body, { headers = "", isLeftOpen = false, pieces = [body] } = {}) {
  const head = `HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n${headers}\r\n`;
  return { head, pieces: [...pieces.map((piece) => (piece.then ? piece.then(chunk) : chunk(piece))), ...(isLeftOpen ? [] : [LAST_CHUNK])], isLeftOpen };
}

const LAST_CHUNK = "0\r\n\r\n";

function chunk(piece) {
  const bytes = Buffer.from(piece);
  return bytes.length === 0 ? "" : Buffer.concat([Buffer.from(`${bytes.length.toString(16)}\r\n`), bytes, Buffer.from("\r\n")]);
}

/** Any other response. */
export function answer(status, body = "", headers = "content-type: application/problem+json\r\n") {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  const length = status === 204 ? "" : `content-length: ${Buffer.byteLength(text)}\r\n`;
  return { head: `HTTP/1.1 ${status} X\r\nconnection: close\r\n${headers}${length}\r\n`, pieces: [text] };
}

/** Resets the connection instead of answering. */
export const RESET = { isReset: true };

/**
 * Serves the answers in order, and repeats the last one, until the test `t` ends.
 *
 * `asked` has each request: method, path, headers, body.
 */
export async function serve(t, ...answers) {
  const asked = [];
  const sockets = new Set();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => undefined);
    let received = "";
    socket.on("data", (data) => {
      received += data;
      const request = parse(received);
      if (!request) return;
      received = "";
      asked.push(request);
      void reply(socket, answers[Math.min(asked.length, answers.length) - 1]);
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    asked,
    cursors: () => asked.map(({ headers }) => headers["last-event-id"] ?? ""),
    openSockets: () => sockets.size,
    /** Resets every connection. */
    cut: () => sockets.forEach((socket) => socket.resetAndDestroy()),
  };
}

async function reply(socket, { head, pieces, isLeftOpen, isReset }) {
  if (isReset) return socket.resetAndDestroy();
  socket.setNoDelay(true);
  socket.write(head);
  for (const promised of pieces) {
    const piece = await promised;
    if (piece.length > 0) socket.write(piece);
    if (pieces.length > 1) await new Promise(setImmediate);
  }
  if (!isLeftOpen) socket.end();
}

function parse(received) {
  const end = received.indexOf("\r\n\r\n");
  if (end < 0) return null;
  const [first, ...lines] = received.slice(0, end).split("\r\n");
  const headers = Object.fromEntries(lines.map((line) => line.toLowerCase().split(": ", 1).concat(line.slice(line.indexOf(": ") + 2))));
  const body = received.slice(end + 4);
  if (Buffer.byteLength(body) < Number(headers["content-length"] ?? 0)) return null;
  const [method, path] = first.split(" ");
  return { method, path, headers, body };
}
