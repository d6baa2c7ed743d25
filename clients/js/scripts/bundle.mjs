// What the gateway's own page is built on, a file each: `node scripts/bundle.mjs [folder]`. The same source gives the same bytes.
//
//   stagebus-client.js   this client
//   marked.js            what reads Markdown; the page makes the elements itself, so no HTML comes of it

import { readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const ROOT = new URL("..", import.meta.url);
const folder = process.argv[2] ?? fileURLToPath(new URL("../../gateway/static/vendor", ROOT));
const options = {
  absWorkingDir: fileURLToPath(ROOT), bundle: true, format: "esm", target: "es2022", minify: true, keepNames: false,
};

const [parser, marked] = await Promise.all(["eventsource-parser", "marked"].map(packageOf));
await build({
  ...options,
  entryPoints: ["src/index.ts"],
  outfile: `${folder}/stagebus-client.js`,
  banner: { js: `// @stagebus/client, made by \`make client\`. With ${parser.title}: see LICENSES.txt.` },
});
await build({
  ...options,
  stdin: { contents: 'export { Lexer } from "marked";', resolveDir: fileURLToPath(ROOT) },
  outfile: `${folder}/marked.js`,
  banner: { js: `// The lexer of ${marked.title}: see LICENSES.txt.` },
});
await writeFile(`${folder}/LICENSES.txt`, [parser, marked].map(({ title, licence }) => `${title}\n\n${licence.trim()}\n`).join("\n\n"));

async function packageOf(name) {
  const read = (file) => readFile(new URL(`node_modules/${name}/${file}`, ROOT), "utf8");
  const { version } = JSON.parse(await read("package.json"));
  const licence = await read("LICENSE").catch(() => read("LICENSE.md"));
  return { title: `${name} ${version}`, licence };
}
