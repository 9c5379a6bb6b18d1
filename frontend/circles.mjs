// Fails if modules of src/ import each other in a circle, and names the circle.
import { readdir, readFile } from "node:fs/promises";
import { dirname, join, relative } from "node:path";

const root = new URL("src/", import.meta.url).pathname;
const files = (await readdir(root, { recursive: true })).filter((name) => /\.tsx?$/.test(name));
const imports = new Map();
for (const name of files) {
  const text = await readFile(join(root, name), "utf8");
  const found = [...text.matchAll(/from "(\.[^"]+)"/g)].map(([, path]) => relative(root, join(root, dirname(name), path)));
  imports.set(name, found.flatMap((path) => [path, `${path}.ts`, `${path}.tsx`].filter((one) => files.includes(one))));
}
const done = new Set();
function visit(name, path) {
  if (path.includes(name)) {
    console.error(`frontend: modules import each other: ${[...path.slice(path.indexOf(name)), name].join(" -> ")}`);
    process.exit(1);
  }
  if (done.has(name)) return;
  for (const next of imports.get(name)) visit(next, [...path, name]);
  done.add(name);
}
for (const name of files) visit(name, []);
