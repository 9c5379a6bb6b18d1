// Builds src/qkv/view/look.js; with --check only says whether it is what the sources give.
import { build } from "esbuild";
import { readFile, writeFile } from "node:fs/promises";

const target = new URL("../src/qkv/view/look.js", import.meta.url);
const made = await build({
  entryPoints: [new URL("src/look.tsx", import.meta.url).pathname],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "ascii",
  legalComments: "none",
  jsx: "automatic",
  jsxImportSource: "preact",
  loader: { ".css": "text" },
  plugins: [{
    name: "small-css",
    setup(builder) {
      builder.onLoad({ filter: /\.css$/ }, async ({ path }) => {
        const css = await readFile(path, "utf8");
        return { contents: css.replace(/\/\*[^]*?\*\//g, "").replace(/\s+/g, " ").replace(/ ?([{};,]) ?/g, "$1"), loader: "text" };
      });
    },
  }],
  write: false,
});
const text = "// Built by scripts/frontend from frontend/; do not edit.\n" + made.outputFiles[0].text;

if (process.argv.includes("--check")) {
  const kept = await readFile(target, "utf8").catch(() => "");
  if (kept !== text) {
    console.error("src/qkv/view/look.js is not what frontend/ gives: run scripts/frontend and commit it");
    process.exit(1);
  }
  console.log(`src/qkv/view/look.js is fresh: ${(text.length / 1000).toFixed(0)} kB`);
} else {
  await writeFile(target, text);
  console.log(`src/qkv/view/look.js: ${(text.length / 1000).toFixed(0)} kB`);
}
