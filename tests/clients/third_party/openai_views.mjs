// Drives OpenAI's SDK against a gateway: one JSON command per line on stdin, one JSON answer per line on stdout.
//
//   {"do": "stream", "input": "Hi"}     responses.stream, to the response that it assembles
//   {"do": "hop", "id": "resp_…"}       the response's events, each over a connection of its own
//   {"do": "create", "params": {…}}     responses.create, not streamed
//   {"do": "cancel", "id": "resp_…"}    responses.cancel
//   {"do": "chat", "params": {…}}       chat.completions.create, streamed
//   {"do": "models"}                    models.list

import { createInterface } from "node:readline";

import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });

const COMMANDS = {
  async stream({ input }) {
    const stream = client.responses.stream({ model: "demo", input });
    const types = [];
    stream.on("event", (event) => types.push(event.type));
    const response = await stream.finalResponse();
    return { id: response.id, text: response.output_text, types };
  },
  async hop({ id }) {
    const events = [];
    while (events.at(-1)?.type !== "response.completed") {
      const after = events.length ? { starting_after: events.at(-1).sequence_number } : {};
      const stream = await client.responses.retrieve(id, { stream: true, ...after });
      for await (const event of stream) {
        events.push(event);
        break;
      }
    }
    return { events };
  },
  async create({ params }) {
    return client.responses.create(params);
  },
  async cancel({ id }) {
    return client.responses.cancel(id);
  },
  async chat({ params }) {
    const chunks = [];
    for await (const chunk of await client.chat.completions.create({ ...params, stream: true })) chunks.push(chunk);
    return { text: chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.delta.content ?? "")).join("") };
  },
  async models() {
    return { ids: (await client.models.list()).data.map((model) => model.id) };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...command } = JSON.parse(line);
  let answer;
  try {
    answer = await COMMANDS[name](command);
  } catch (error) {
    answer = { thrown: String(error), status: error.status, code: error.code };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
