// Answers commands: one JSON object per line on stdin, one JSON answer per line on stdout.

import { createInterface } from "node:readline";

/** Calls `commands[command.do]` for each command. */
export async function serve(commands) {
  for await (const line of createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    let answer;
    try {
      answer = await commands[command.do](command);
    } catch (error) {
      answer = { thrown: String(error) };
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
}
