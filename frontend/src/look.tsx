// Where the page begins: mounted by a file, by a server, or by a notebook.
import { effect } from "@preact/signals";
import { render as draw } from "preact";
import type { Host } from "./protocol";
import { fileHost } from "./hosts/file";
import { serveHost } from "./hosts/serve";
import { widgetHost, type WidgetModel } from "./hosts/widget";
import { Look, Provide, type Tab } from "./state";
import { App } from "./views/App";

/** Show a document in an element; returns the function that removes it. */
export function mount(element: Element | ShadowRoot, host: Host): () => void {
  const look = new Look(host);
  const preference = matchMedia("(prefers-color-scheme: dark)");
  const follow = () => { look.dark.value = preference.matches; };
  follow();
  preference.addEventListener("change", follow);
  const stop: (() => void)[] = [() => preference.removeEventListener("change", follow), usePrintColors(look)];
  start(look);
  // A page in a notebook's iframe (srcdoc) has no address of its own.
  if (host.address && location.protocol !== "about:") stop.push(syncAddress(look));
  draw(<Provide value={look}><App /></Provide>, element as Element);
  return () => { for (const one of stop) one(); draw(null, element as Element); };
}

/** Print in light colours, whatever the screen shows. */
function usePrintColors(look: Look): () => void {
  let dark = false;
  const before = () => { dark = look.dark.value; look.dark.value = false; };
  const after = () => { look.dark.value = dark; };
  addEventListener("beforeprint", before);
  addEventListener("afterprint", after);
  return () => { removeEventListener("beforeprint", before); removeEventListener("afterprint", after); };
}

function start(look: Look): void {
  const run = look.base.value;
  const requested = look.host.address ? location.hash : "";
  const choose = () => {
    if (requested && applyAddress(look, requested)) return;
    const { at, head } = run.findSharpestHead();
    // Begin with the last token of a long text, and with the second of a short one.
    const attention = run.attentions[at];
    const queries = attention?.queries ?? 0;
    // An agent chose its last action at its last state, the position before that action.
    const acting = attention && run.axis(attention.data.queries)?.trajectory;
    look.choose({ at, head, row: acting ? queries - 2 : queries > 64 ? queries - 1 : 1 });
  };
  const loading = Promise.all(look.runs.map((one) => look.load(one)));
  loading.catch((problem: Error) => { look.error.value = problem.message; });
  if (run.attentions.every((one) => one.ready)) choose();
  else void loading.then(choose);
}

/** Keep what is chosen in the page's address, and go where the address says. */
function syncAddress(look: Look): () => void {
  let timer: ReturnType<typeof setTimeout>;
  const stop = effect(() => {
    const attention = look.attention.value;
    const { row, column } = look.cell.value;
    const address = attention && `#${attention.place}/${look.head.value}/${row}/${column}/${look.tab.value}`;
    clearTimeout(timer);
    timer = setTimeout(() => { if (address) history.replaceState(null, "", address); }, 150);
  });
  const onHashChange = () => { applyAddress(look, location.hash); };
  addEventListener("hashchange", onHashChange);
  return () => { stop(); clearTimeout(timer); removeEventListener("hashchange", onHashChange); };
}

function applyAddress(look: Look, address: string): boolean {
  const [place, head, row, column, tab] = decodeURIComponent(address.slice(1)).split("/");
  const at = look.run.value.places.indexOf(place);
  if (at < 0) return false;
  if (tab) look.tab.value = tab as Tab;
  look.choose({ at, head: Number(head) || 0, row: Number(row) || 0, column: Number(column) || 0 });
  return true;
}

/** What anywidget calls. */
function render({ model, el }: { model: WidgetModel; el: HTMLElement }): () => void {
  const { host, close } = widgetHost(model);
  const root = document.createElement("div");
  // Keys pressed on the page must not be commands of the notebook: in JupyterLab, d twice deletes a cell.
  root.dataset.lmSuppressShortcuts = "true";
  root.addEventListener("keydown", (event) => event.stopPropagation());
  el.append(root);
  const unmount = mount(root.attachShadow({ mode: "open" }), host);
  return () => { close(); unmount(); root.remove(); };
}

export default { render };

async function begin(): Promise<void> {
  const element = document.querySelector<HTMLElement>("[data-qkv-host]");
  if (!element) return;
  try {
    mount(element, element.dataset.qkvHost === "serve" ? await serveHost(element.dataset.token ?? "") : await fileHost());
  } catch (problem) {
    element.textContent = `This page could not be shown: ${problem instanceof Error ? problem.message : String(problem)}`;
  }
}

void begin();
