import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// The gateway, for example `make up`. The browser only talks to this server, so there is no other origin.
const gateway = process.env.STAGEBUS_URL ?? "http://127.0.0.1:8000";
const proxy = { "/api": gateway, "/runs": gateway };

export default defineConfig({ plugins: [react()], server: { proxy }, preview: { proxy } });
