import { createRoot } from "react-dom/client";

import { Chat } from "./chat.jsx";
import { loadMessages, openChat } from "./chat_store.js";
import "./chat.css";

const chatId = openChat();
createRoot(document.getElementById("root")).render(<Chat id={chatId} initialMessages={loadMessages(chatId)} />);
