// What a host that holds the model adds: new answers, reasons, and tiles of a long context.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { counts, open, says, servePage, turn, until, visit } from "./browser.mjs";
import { Blocks, long, translation } from "./documents.mjs";

let browser;
before(async () => { browser = await open(); });
after(() => browser.close());

test("a change asks the model again; its answer and its Python are shown", async (t) => {
  const changed = translation({ seed: 11, answer: ["Der", "Hund", "sa\u00df", "</s>"] });
  const server = await servePage(translation({ live: true }), ({ ask, edits, position }) => {
    if (ask === "explain") return { explanation: { position, token: "Katze", p: 0.8, effects: [{ side: "source", key: 1, p_without: 0.05, by_match: 0.3, by_content: 0.2, heads: [] }] } };
    if (edits.length > 1) return { error: "edits: that is one too many" };
    return { run: { ...changed.document.runs[0], edits, code: "trace = qkv.look(model, 42)" }, blocks: changed.blocks.bytes().toString("base64") };
  });
  t.after(server.close);
  const page = await visit(browser, server.address);
  await page.locator(".answer").nth(1).click();
  await turn(page, "story");
  await page.locator("button.do").click();
  await page.locator(".change").waitFor();
  await says(page, ".story-table tbody", /80% \u2192 5\.0%/);
  await turn(page, "heads");
  await page.locator(".edits-bar button", { hasText: "hide it from every head" }).click();
  await page.locator(".edits pre", { hasText: "qkv.look(model, 42)" }).waitFor();
  await says(page, ".edits", /before Die Katze sa\u00df <\/s> after Der Hund sa\u00df <\/s>/);
  await says(page, ".said", /was Katze/);
  assert.equal(server.asked.at(-1).token, "secret");
  assert.equal(server.asked.at(-1).edits[0].kind, "knock_out");
  assert.equal(server.asked.at(-1).edits[0].place, undefined);
  await page.locator(".edits-bar button", { hasText: "switch this head off" }).click();
  await page.locator("[role=alert]").waitFor();
  await says(page, "[role=alert]", /one too many/);
  await page.locator("button", { hasText: "Undo all" }).click();
  await says(page, ".said", /Katze/);
  await counts(page, ".was", 0);
  assert.deepEqual(page.wrong, []);
  await page.close();
});

test("100,000 tokens: from the whole down to single cells, tile by tile", async (t) => {
  const server = await servePage(long(), ({ ask, rows, columns, size }) => {
    const blocks = new Blocks();
    const reply = () => blocks.bytes().toString("base64");
    if (ask === "row") return { row: blocks.add(Float32Array.from({ length: 100_000 }, (_, i) => (i === 5 ? 0.5 : 0)), [100_000]), blocks: reply() };
    if (ask === "statistics") return { head: 1, overview: blocks.add(new Float32Array(64 * 64).fill(0.2), [1, 64, 64]), per_query: { entropy: blocks.add(new Float32Array(100_000).fill(1.5), [1, 100_000]) }, blocks: reply() };
    const high = Math.min(size, rows[1] - rows[0]);
    const wide = Math.min(size, columns[1] - columns[0]);
    return { tile: blocks.add(new Float32Array(high * wide).fill(0.25), [high, wide]), rows, columns, pooled: [(rows[1] - rows[0]) / high, (columns[1] - columns[0]) / wide], blocks: reply() };
  });
  t.after(server.close);
  const page = await visit(browser, server.address);
  await page.locator("canvas.map").waitFor();
  await says(page, ".map-controls", /each pixel shows the largest of/);
  assert.equal(server.asked.filter((one) => one.ask === "tile").length, 0, "the overview is enough from afar");
  await page.locator("button", { hasText: "Zoom to the chosen cell" }).click();
  await page.waitForFunction(() => /single cells/.test(document.querySelector(".map-controls").innerText));
  await until(() => assert.ok(server.asked.some((one) => one.ask === "tile")));
  const tile = server.asked.find((one) => one.ask === "tile");
  assert.equal(tile.rows[1] - tile.rows[0], Math.min(256, 100_000 - tile.rows[0]));
  await page.locator("canvas.map").focus();
  const before = await page.locator("canvas.map").getAttribute("aria-label");
  await page.keyboard.press("ArrowUp");
  await until(async () => assert.notEqual(await page.locator("canvas.map").getAttribute("aria-label"), before));
  await page.keyboard.press("0");
  await page.locator(".table-box", { hasText: "w5" }).waitFor();
  await page.locator('.thumbnail[data-head="1"]').click();
  await page.locator("button.do").click();
  await page.locator(".curves").waitFor();
  await says(page, ".curves", /1\.50/);
  assert.deepEqual(page.wrong, []);
  await page.close();
});
