// The client as one file for the gateway's own page: `node scripts/bundle.mjs [folder]`. The same source gives the same bytes.

import { readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const ROOT = new URL("..", import.meta.url);
const folder = process.argv[2] ?? fileURLToPath(new URL("../../gateway/static/vendor", ROOT));

const parser = JSON.parse(await readFile(new URL("node_modules/eventsource-parser/package.json", ROOT)));
await build({
  absWorkingDir: fileURLToPath(ROOT),
  entryPoints: ["src/index.ts"],
  outfile: `${folder}/stagebus-client.js`,
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  keepNames: false,
  banner: { js: `// @stagebus/client, made by \`make client\`. With eventsource-parser ${parser.version}: see LICENSES.txt.` },
});
const licence = await readFile(new URL("node_modules/eventsource-parser/LICENSE", ROOT), "utf8");
await writeFile(`${folder}/LICENSES.txt`, `eventsource-parser ${parser.version}\n\n${licence}`);
