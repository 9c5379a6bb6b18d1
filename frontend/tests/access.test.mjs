// Nothing that axe-core finds fault with, in any view, light and dark.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { axe, open, turn, visit, writePage } from "./browser.mjs";
import { large, pair, nonTextRun } from "./documents.mjs";

let browser;
before(async () => { browser = await open(); });
after(() => browser.close());

async function check(page, what, all) {
  const found = await page.evaluate(async () => (await window.axe.run(document, { resultTypes: ["violations"] })).violations.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => `${node.html.slice(0, 160)} ${node.failureSummary}`).join(" | ")}`));
  all.push(...found.map((one) => `${what}: ${one}`));
}

for (const colorScheme of ["light", "dark"]) {
  test(`all views, ${colorScheme}`, async () => {
    const page = await visit(browser, (await writePage("access", pair())).address, { colorScheme });
    await page.evaluate(axe);
    const all = [];
    for (const tab of await page.locator("[role=tab]").all()) {
      await turn(page, await tab.getAttribute("data-tab"));
      await check(page, `${await tab.innerText()}, ${colorScheme}`, all);
    }
    await turn(page, "heads");
    await page.locator(".edits-bar button").first().click();
    await page.locator(".edits pre").waitFor();
    await page.locator(".cell summary").click();
    await page.locator(".cell details tbody").waitFor();
    for (const [form, there] of [["Lines", "canvas.lines"], ["Table", ".head .table-box"]]) {
      await page.locator("label", { hasText: form }).click();
      await page.locator(there).waitFor();
      await check(page, `${form}, with a change, ${colorScheme}`, all);
    }
    assert.deepEqual(all, []);
    await page.close();
  });

  test(`pictures and long texts, ${colorScheme}`, async () => {
    const all = [];
    for (const [name, made] of [["access-image", nonTextRun("image")], ["access-audio", nonTextRun("audio")], ["access-trajectory", nonTextRun("trajectory")], ["access-long", large(96, 2, 2, 8)]]) {
      const page = await visit(browser, (await writePage(name, made)).address, { colorScheme });
      await page.evaluate(axe);
      for (const tab of await page.locator("[role=tab]").all()) {
        await turn(page, await tab.getAttribute("data-tab"));
        await check(page, `${name}, ${await tab.innerText()}`, all);
      }
      await page.close();
    }
    assert.deepEqual(all, []);
  });
}
