// Drives the AI SDK against a gateway.
//
//   {"do": "send", "chat": "c", "text": "Hi", "body": {…}}    useChat's send, with the default transport
//   {"do": "resume", "chat": "c"}                             useChat's resume
//   {"do": "torn", "run": "R", "at": 3}                       the workflow transport, torn after that many chunks, once
//   {"do": "workflow", "text": "Hi"}                          the workflow transport's send

import { Chat } from "@ai-sdk/react";
import { WorkflowChatTransport } from "@workflow/ai";
import { DefaultChatTransport, readUIMessageStream } from "ai";

import { serve } from "./commands.mjs";
import { tearFirst } from "./torn.mjs";

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
    const seen = [];
    const transport = new WorkflowChatTransport({ api, fetch: tearFirst(at, seen) });
    const stream = await transport.reconnectToStream({ chatId: run });
    return { message: await lastMessage(stream), requests: seen.map((url) => new URL(url).search) };
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

await serve(COMMANDS);
