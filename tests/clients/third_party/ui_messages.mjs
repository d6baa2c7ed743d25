// Drives the AI SDK against a gateway: one JSON command per line on stdin, one JSON answer per line on stdout.
//
//   {"do": "send", "chat": "c", "text": "Hi", "body": {…}}    useChat's send, with the default transport
//   {"do": "resume", "chat": "c"}                             useChat's resume
//   {"do": "torn", "run": "R", "at": 3}                       the workflow transport, torn after that many chunks, once
//   {"do": "workflow", "text": "Hi"}                          the workflow transport's send

import { createInterface } from "node:readline";

import { Chat } from "@ai-sdk/react";
import { WorkflowChatTransport } from "@workflow/ai";
import { DefaultChatTransport, readUIMessageStream } from "ai";

const api = `${process.argv[2]}/api/chat`;
console.error = () => undefined; // the workflow transport reports each torn connection

const COMMANDS = {
  async send({ chat, text, body }) {
    return withChat(chat, (opened) => opened.sendMessage({ text }, { body }));
  },
  async resume({ chat }) {
    return withChat(chat, (opened) => opened.resumeStream());
  },
  async torn({ run, at }) {
    let torn = false;
    const requests = [];
    const transport = new WorkflowChatTransport({
      api,
      fetch: async (url, init) => {
        requests.push(new URL(url).search);
        const response = await fetch(url, init);
        if (torn) return response;
        torn = true;
        return new Response(response.body.pipeThrough(tearAfter(at)), { status: response.status, headers: response.headers });
      },
    });
    const stream = await transport.reconnectToStream({ chatId: run });
    return { message: await lastMessage(stream), requests };
  },
  async workflow({ text }) {
    const transport = new WorkflowChatTransport({ api });
    const messages = [{ id: "u", role: "user", parts: [{ type: "text", text }] }];
    const stream = await transport.sendMessages({ chatId: "w", messages, trigger: "submit-message" });
    return { message: await lastMessage(stream) };
  },
};

async function withChat(id, action) {
  let finished = null;
  let data = [];
  const chat = new Chat({
    id,
    transport: new DefaultChatTransport({ api }),
    onFinish: (event) => (finished = event),
    onData: (part) => data.push(part),
  });
  await action(chat);
  const { isAbort, isError, isDisconnect, finishReason } = finished ?? {};
  return { messages: chat.messages, status: chat.status, error: chat.error?.message ?? null, isAbort, isError, isDisconnect, finishReason };
}

async function lastMessage(stream) {
  let last = null;
  for await (const message of readUIMessageStream({ stream })) last = message;
  return last;
}

/** Fails after that many frames, as a connection that breaks. */
function tearAfter(count) {
  const decoder = new TextDecoder();
  let text = "";
  let frames = 0;
  return new TransformStream({
    transform(bytes, controller) {
      text += decoder.decode(bytes, { stream: true });
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const frame = text.slice(0, end + 2);
        text = text.slice(end + 2);
        if (frame.startsWith("data:") && frames++ === count) return controller.error(new Error("torn"));
        controller.enqueue(new TextEncoder().encode(frame));
      }
    },
  });
}

for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...command } = JSON.parse(line);
  let answer;
  try {
    answer = await COMMANDS[name](command);
  } catch (error) {
    answer = { thrown: String(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
