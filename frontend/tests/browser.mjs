// A browser that reaches nothing but what a test gives it: a file, or a server that answers from a document.
import { deflateSync } from "node:zlib";
import { createServer } from "node:http";
import { mkdtemp, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const script = await readFile(new URL("../../src/qkv/view/look.js", import.meta.url), "utf8");
export const axe = await readFile(new URL("../node_modules/axe-core/axe.min.js", import.meta.url), "utf8");
const folder = await mkdtemp(join(tmpdir(), "qkv-look-"));
const policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:";
const safe = (value) => JSON.stringify(value).replace(/[<>&\u007f-\uffff]/g, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);

export const open = () => chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
});

/** The file of a document. */
export async function written(name, { document, blocks }) {
  const raw = deflateSync(blocks.bytes(), { level: 1 }).toString("base64");
  const html = `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="${policy}"><title>look</title></head><body style="margin:0">`
    + `<div id="look" data-qkv-host="file"></div><script type="application/json" id="document">${safe(document)}</script>`
    + `<script type="application/octet-stream" id="blocks" data-encoding="deflate">${raw}</script><script type="module">${script}</script></body></html>`;
  const path = join(folder, `${name}.html`);
  await writeFile(path, html);
  return { address: pathToFileURL(path).href, bytes: html.length };
}

/** A server as `qkv look --serve` is one; `answer` says what is replied to a request. */
export async function served({ document, blocks }, answer) {
  const bytes = blocks.bytes();
  const asked = [];
  const server = createServer(async (request, response) => {
    const { pathname, searchParams } = new URL(request.url, "http://127.0.0.1");
    if (request.method === "POST") {
      let body = "";
      for await (const part of request) body += part;
      asked.push({ ...JSON.parse(body), token: request.headers["x-qkv-token"] });
      return response.end(JSON.stringify(answer(JSON.parse(body))));
    }
    if (pathname === "/") return response.setHeader("Content-Type", "text/html").end(`<!doctype html><html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,"><title>look</title></head><body style="margin:0"><div data-qkv-host="serve" data-token="secret"></div><script type="module" src="/look.js?token=secret"></script></body></html>`);
    if (searchParams.get("token") !== "secret") { response.statusCode = 403; return response.end("no"); }
    if (pathname === "/look.js") return response.setHeader("Content-Type", "text/javascript").end(script);
    if (pathname === "/document") return response.end(safe(document));
    const at = Number(pathname.split("/").at(-1));
    return response.end(bytes.subarray(at, at + Number(searchParams.get("size"))));
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return { address: `http://127.0.0.1:${server.address().port}/`, asked, close: () => { server.closeAllConnections(); server.close(); } };
}

/** A page that remembers everything that went wrong, and every address that was asked for. */
export async function visit(browser, address, options = {}) {
  const page = await browser.newPage({ viewport: { width: 1400, height: 1000 }, ...options });
  page.wrong = [];
  page.asked = [];
  page.on("pageerror", (error) => page.wrong.push(String(error.stack)));
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) page.wrong.push(`${message.text()} ${message.location().url}`); });
  page.on("request", (request) => page.asked.push(request.url()));
  await page.goto(address);
  await page.locator(".qkv").waitFor();
  return page;
}

export { script };
