// Makes the vendored files of the gateway's pages: `node scripts/bundle.mjs [folder]`. The output is reproducible.
//
//   stagebus-client.js   this client
//   marked.js            the Markdown lexer; the page builds DOM elements from its tokens and never inserts HTML
//   swagger-ui/          the API reference at /docs, with the icons as files: the page's policy allows no data: URLs

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const ROOT = new URL("..", import.meta.url);
const folder = process.argv[2] ?? fileURLToPath(new URL("../../gateway/static/vendor", ROOT));
const options = {
  absWorkingDir: fileURLToPath(ROOT), bundle: true, format: "esm", target: "es2022", minify: true, keepNames: false,
};

const names = ["eventsource-parser", "partial-json", "marked", "swagger-ui-dist"];
const [parser, partial, marked, swagger] = await Promise.all(names.map(packageOf));
await build({
  ...options,
  entryPoints: ["src/index.ts"],
  outfile: `${folder}/stagebus-client.js`,
  banner: { js: `// @stagebus/client, made by \`make client\`. With ${parser.title} and ${partial.title}: see LICENSES.txt.` },
});
await build({
  ...options,
  stdin: { contents: 'export { Lexer } from "marked";', resolveDir: fileURLToPath(ROOT) },
  outfile: `${folder}/marked.js`,
  banner: { js: `// The lexer of ${marked.title}: see LICENSES.txt.` },
});
await mkdir(`${folder}/swagger-ui`, { recursive: true });
const note = `/* ${swagger.title}: see LICENSES.txt. */\n`;
const script = await read("swagger-ui-dist", "swagger-ui-bundle.js");
await writeFile(`${folder}/swagger-ui/swagger-ui.js`, note + script.replace(/^\/\*! For license information .*\n/, "") + "\n");
const icons = [];
const style = (await read("swagger-ui-dist", "swagger-ui.css"))
  .replace(/\n\/\*# sourceMappingURL=.*/, "")
  .replace(/url\("data:image\/svg\+xml;charset=utf-8,((?:[^"\\]|\\.)*)"\)/g, (_, icon) => {
    if (!icons.includes(icon)) icons.push(icon);
    return `url(icon-${icons.indexOf(icon) + 1}.svg)`;
  });
await writeFile(`${folder}/swagger-ui/swagger-ui.css`, note + style);
for (const [at, icon] of icons.entries()) {
  await writeFile(`${folder}/swagger-ui/icon-${at + 1}.svg`, `${decodeURIComponent(icon.replaceAll('\\"', '"'))}\n`);
}
const notices = [await read("swagger-ui-dist", "NOTICE"), await read("swagger-ui-dist", "swagger-ui-bundle.js.LICENSE.txt")];
swagger.licence = [swagger.licence.trim(), ...notices.map((notice) => notice.trim())].join("\n\n");
await writeFile(
  `${folder}/LICENSES.txt`,
  [parser, partial, marked, swagger].map(({ title, licence }) => `${title}\n\n${licence.trim()}\n`).join("\n\n"),
);

function read(name, file) {
  return readFile(new URL(`node_modules/${name}/${file}`, ROOT), "utf8");
}

async function packageOf(name) {
  const { version } = JSON.parse(await read(name, "package.json"));
  const licence = await read(name, "LICENSE").catch(() => read(name, "LICENSE.md"));
  return { title: `${name} ${version}`, licence };
}
