// A browser that reaches nothing but what a test gives it: a file, or a server that answers from a document.
import assert from "node:assert/strict";
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
/** What a machine with much else to do may take, in milliseconds. */
export const patience = 60_000;
const policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:";
const safe = (value) => JSON.stringify(value).replace(/[<>&\u007f-\uffff]/g, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);

export const open = () => chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
});

/** The file of a document. */
export async function writePage(name, { document, blocks }) {
  const raw = deflateSync(blocks.bytes(), { level: 1 }).toString("base64");
  const html = `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="${policy}"><title>look</title></head><body style="margin:0">`
    + `<div id="look" data-qkv-host="file"></div><script type="application/json" id="document">${safe(document)}</script>`
    + `<script type="application/octet-stream" id="blocks" data-encoding="deflate">${raw}</script><script type="module">${script}</script></body></html>`;
  return { address: await writeHtml(name, html), bytes: html.length, html };
}

/** Write a file, and return its address. */
export async function writeHtml(name, html) {
  const path = join(folder, `${name}.html`);
  await writeFile(path, html);
  return pathToFileURL(path).href;
}

/** A server as `qkv look --serve` is one; `answer` says what is replied to a request. */
export async function servePage({ document, blocks }, answer) {
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
  page.setDefaultTimeout(patience);
  page.wrong = [];
  page.asked = [];
  page.on("pageerror", (error) => page.wrong.push(String(error.stack)));
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) page.wrong.push(`${message.text()} ${message.location().url}`); });
  page.on("request", (request) => page.asked.push(request.url()));
  await page.goto(address);
  await page.locator(".qkv").waitFor();
  return page;
}

/** Try a check until it holds: what a click changes is drawn a moment after it, on a busy machine a long moment. */
export async function until(check, limit = patience) {
  const end = performance.now() + limit;
  for (;;) {
    try {
      return await check();
    } catch (problem) {
      if (performance.now() > end) throw problem;
      await new Promise((next) => setTimeout(next, 25));
    }
  }
}

const now = (locator) => locator.evaluateAll((found) => (found[0]?.innerText ?? found[0]?.textContent ?? "").replace(/\s+/g, " ").trim());

/** Wait until the first element of a kind says what is expected. */
export const says = (page, selector, expected) => until(async () => assert.match(await now(page.locator(selector)), expected, selector));

/** Wait until there are so many elements of a kind. */
export const counts = (page, selector, expected) => until(async () => assert.equal(await page.locator(selector).count(), expected, selector));

/** Wait until an element's attribute is what is expected. */
export const has = (locator, name, expected) => until(async () => assert.match((await locator.getAttribute(name)) ?? "", expected, name));

/** The place of an element that has stopped moving: the same in three frames, one after the other. */
export const settled = (page, selector) => until(async () => {
  const places = [];
  for (let i = 0; i < 3; i += 1) {
    places.push(await page.locator(selector).first().boundingBox());
    await page.evaluate(() => new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next))));
  }
  assert.deepEqual(places[1], places[0]);
  assert.deepEqual(places[2], places[0]);
  assert.ok(places[0]);
  return places[0];
});

/** Open a view and wait until it is there. */
export async function turn(page, tab) {
  await page.locator(`[data-tab=${tab}]`).click();
  await page.locator(`.view.of-${tab}`).waitFor();
  await settled(page, "main");
}

export { script };
