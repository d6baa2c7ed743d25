// Makes src/schema.ts out of what scripts/schemas.py prints: `python scripts/schemas.py | node scripts/generate.mjs`.

import { text } from "node:stream/consumers";

import { compile } from "json-schema-to-typescript";

const BANNER = "// Made by `make client` out of the gateway's own schemas. Do not edit.\n";
// The API's types that a user of the client meets; what they need comes with them.
const API_ROOTS = ["CreateRun", "ModelList", "Problem", "RunAccepted", "RunList", "RunView", "Stats", "TicketView", "ToolList"];

const { events, api, terminal } = JSON.parse(await text(process.stdin));

const dataTypes = Object.fromEntries(
  Object.entries(events["x-events"]).map(([name, { $ref }]) => [name, `${nameOf($ref)}Data`]),
);
const definitions = {};
const sent = Object.fromEntries(Object.entries(events.$defs).map(([name, schema]) => [name, withDefaultsRequired(schema)]));
for (const [name, schema] of Object.entries({ ...reachable(API_ROOTS, api), ...sent })) {
  definitions[typeName(name)] = rewritten(schema);
}

const types = await compile({ $defs: definitions }, "Unused", {
  additionalProperties: false,
  bannerComment: "",
  ignoreMinAndMaxItems: true, // a tuple type for each bounded list would only be in the way
  style: { printWidth: 120 },
  unreachableDefinitions: true,
});

process.stdout.write(
  [
    BANNER,
    tidied(types),
    "",
    "/** The data of each event, by its name. */",
    "export interface EventDataByName {",
    ...Object.entries(dataTypes).filter(([name]) => name !== "gap").map(([name, type]) => `  ${name}: ${type};`),
    "}",
    "",
    "/** Every event that a log may hold. A plain EventSource gives only those that are asked for by name. */",
    `export const EVENT_NAMES = ${list(Object.keys(dataTypes).filter((name) => name !== "gap"))} as const;`,
    "",
    "/** Those that end a run: one of them, always last. */",
    `export const TERMINAL_NAMES: ReadonlySet<string> = new Set(${list(terminal)});`,
    "",
  ].join("\n"),
);

function tidied(types) {
  return types
    .replace(/^export interface Unused \{[^}]*\}\n/m, "")
    .replace(/(\n \*)?\n \* This interface was referenced by [^\n]*\n \* via the [^\n]*/g, "")
    .replace(/\/\*\*\n\s*\* ([^\n]*)\n\s*\*\//g, "/** $1 */")
    .trim();
}

function list(names) {
  return `[\n${names.map((name) => `  ${JSON.stringify(name)},\n`).join("")}]`;
}

function nameOf(ref) {
  return ref.split("/").at(-1);
}

/** `ErrorData`, since `Error` is taken. */
function typeName(name) {
  return Object.values(dataTypes).includes(`${name}Data`) ? `${name}Data` : name;
}

function reachable(roots, schemas, found = {}) {
  for (const name of roots) {
    if (name in found) continue;
    found[name] = schemas[name];
    const refs = [...JSON.stringify(schemas[name]).matchAll(/"\$ref":"([^"]+)"/g)].map(([, ref]) => nameOf(ref));
    reachable(refs, schemas, found);
  }
  return found;
}

/** A log's events leave out what has no value, but not what has the default one. */
function withDefaultsRequired(schema) {
  const defaulted = Object.entries(schema.properties ?? {}).filter(([, field]) => (field.default ?? null) !== null);
  return { ...schema, required: [...(schema.required ?? []), ...defaulted.map(([name]) => name)] };
}

/** With references to the merged definitions, and without what would make a type of every field. */
function rewritten(schema) {
  if (Array.isArray(schema)) return schema.map(rewritten);
  if (schema === null || typeof schema !== "object") return schema;
  const { title, default: _default, discriminator: _discriminator, ...rest } = schema;
  // Which fields go together is the gateway's to say; a type of it would only be in the way.
  if (rest.properties) delete rest.oneOf;
  if (typeof title === "object") rest.title = title; // a field of that name
  return Object.fromEntries(
    Object.entries(rest).map(([key, value]) => [
      key, key === "$ref" ? `#/$defs/${typeName(nameOf(value))}` : rewritten(value),
    ]),
  );
}
