// Connections that break, for clients that take their own `fetch`.

/** Returns a fetch whose first event stream fails after that many frames; it counts the requests' addresses in `seen`. */
export function tearFirst(count, seen = []) {
  let isTorn = false;
  return async (url, init) => {
    seen.push(String(url));
    const response = await fetch(url, init);
    if (isTorn || !response.headers.get("content-type")?.startsWith("text/event-stream")) return response;
    isTorn = true;
    const { status, headers } = response;
    return new Response(response.body.pipeThrough(tearAfter(count)), { status, headers });
  };
}

function tearAfter(count) {
  const decoder = new TextDecoder();
  const encoder = new TextEncoder();
  let text = "";
  let frames = 0;
  return new TransformStream({
    transform(bytes, controller) {
      text += decoder.decode(bytes, { stream: true });
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const frame = text.slice(0, end + 2);
        text = text.slice(end + 2);
        if (/^data:/m.test(frame) && frames++ === count) return controller.error(new Error("torn"));
        controller.enqueue(encoder.encode(frame));
      }
    },
  });
}
