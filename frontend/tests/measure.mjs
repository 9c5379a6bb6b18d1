// How long a page takes in a browser, in milliseconds: node tests/measure.mjs FILE.html prints it as JSON.
import { pathToFileURL } from "node:url";
import { open } from "./browser.mjs";

/** Until the first picture of a head is on the screen, until all is drawn and certified, and to switch to each head. */
export async function measure(browser, address, heads = null) {
  const page = await browser.newPage({ viewport: { width: 1400, height: 1000 } });
  await page.addInitScript(() => {
    new MutationObserver((_, observer) => {
      if (document.querySelector("canvas.matrix, canvas.map")) { requestAnimationFrame(() => setTimeout(() => { window.shown = performance.now(); })); observer.disconnect(); }
    }).observe(document, { childList: true, subtree: true });
  });
  // What the page's own thread computes, whatever else the machine does meanwhile.
  const session = await page.context().newCDPSession(page);
  await session.send("Performance.enable", { timeDomain: "threadTicks" });
  const busy = async () => 1000 * (await session.send("Performance.getMetrics")).metrics.find((one) => one.name === "TaskDuration").value;
  await page.goto(address, { timeout: 600_000 });
  const wait = (what) => page.waitForFunction(what, null, { timeout: 600_000 });
  await wait(() => window.shown);
  const shownBusy = await busy();
  await wait(() => document.documentElement.dataset.certified !== undefined && [...document.querySelectorAll(".thumbnail img")].some((one) => one.naturalWidth > 1));
  await wait(() => document.querySelector("canvas.map") || [...document.querySelectorAll(".thumbnail img")].every((one) => one.naturalWidth > 1));
  const pace = await page.evaluate(() => {
    window.done = performance.now();
    // How long the same piece of work takes here; about 25 ms on an idle core of 2020.
    const work = () => { const begin = performance.now(); let sum = 0; for (let i = 0; i < 2e7; i += 1) sum += i * 0.5; return sum && performance.now() - begin; };
    return [work(), work(), work()].sort((a, b) => a - b)[1];
  });
  const doneBusy = await busy();
  const found = await page.evaluate(async (heads) => {
    const all = [...document.querySelectorAll(".thumbnail")];
    const chosen = heads ? heads.map(([at, head]) => document.querySelector(`.thumbnail[data-at="${at}"][data-head="${head}"]`)) : Array.from({ length: 15 }, (_, i) => all[(i * 37 + 11) % all.length]);
    const times = [];
    for (const one of chosen) {
      const begin = performance.now();
      one.click();
      await new Promise((next) => requestAnimationFrame(() => setTimeout(next)));
      times.push(performance.now() - begin);
    }
    times.sort((a, b) => a - b);
    return { shown: window.shown, done: window.done, switched: times[times.length >> 1], times, nodes: document.querySelectorAll("*").length, memory: performance.memory?.usedJSHeapSize ?? 0 };
  }, heads);
  const switchedBusy = ((await busy()) - doneBusy) / found.times.length;
  await page.close();
  return { ...found, pace, busy: { shown: shownBusy, done: doneBusy, switched: switchedBusy } };
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const browser = await open();
  for (const file of process.argv.slice(2)) console.log(JSON.stringify(await measure(browser, pathToFileURL(file).href)));
  await browser.close();
}
