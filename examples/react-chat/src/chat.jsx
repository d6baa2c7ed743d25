import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";
import { useEffect, useState } from "react";

import { ToolCard } from "./tool_card.jsx";
import { saveMessages } from "./chat_store.js";

const transport = new DefaultChatTransport({ api: "/api/chat" });

export function Chat({ id, initialMessages }) {
  // `resume` asks the gateway for a run of this chat that may still be writing; after its end, it replays the whole answer.
  const { messages, sendMessage, status, error } = useChat({ id, messages: initialMessages, resume: true, transport });
  const [draft, setDraft] = useState("");
  const isBusy = status === "submitted" || status === "streaming";

  useEffect(() => saveMessages(id, messages), [id, messages]);

  function send(event) {
    event.preventDefault();
    if (draft.trim() === "") return;
    sendMessage({ text: draft });
    setDraft("");
  }

  // Not `stop` of useChat, which only stops reading: the run would go on.
  const stop = () => fetch(`/api/chat/${encodeURIComponent(id)}/stop`, { method: "POST" });

  return (
    <main data-status={status}>
      <ol aria-live="polite">
        {messages.map((message) => (
          <Message key={message.id} message={message} />
        ))}
      </ol>
      {error && <p role="alert">{error.message}</p>}
      <form onSubmit={send}>
        <input aria-label="Message" value={draft} onChange={(event) => setDraft(event.target.value)} />
        {isBusy ? (
          <button type="button" onClick={stop}>
            Stop
          </button>
        ) : (
          <button>Send</button>
        )}
      </form>
    </main>
  );
}

function Message({ message }) {
  return (
    <li data-role={message.role}>
      {message.parts.map((part, index) => {
        if (part.type === "text") return <p key={index}>{part.text}</p>;
        if (part.type === "dynamic-tool") return <ToolCard key={part.toolCallId} runId={message.metadata.runId} call={part} />;
        return null;
      })}
    </li>
  );
}
