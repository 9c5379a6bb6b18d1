// The page: the input and the answer at the top, then one view at a time.
import { effect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { colourRules } from "../draw/palette";
import style from "../style.css";
import { useLook, type Look, type Tab } from "../state";
import { AlignmentView } from "./AlignmentView";
import { CellView } from "./CellView";
import { Certificate } from "./Certificate";
import { CompareView } from "./CompareView";
import { ContextView } from "./ContextView";
import { EditsPanel } from "./Edits";
import { Exchange } from "./Exchange";
import { Glance } from "./Glance";
import { Heads } from "./Heads";
import { HeadView } from "./HeadView";
import { ModelView } from "./ModelView";
import { StoryView } from "./StoryView";

const names: Record<Tab, string> = { heads: "Heads", story: "A token\u2019s story", model: "Whole model", alignment: "Alignment", context: "Long context", compare: "Side by side" };

function tabs(look: Look): Tab[] {
  const run = look.run.value;
  if (!run.attentions.length) return look.runs.length > 1 ? ["compare"] : [];
  const found: Tab[] = run.long ? [] : ["heads"];
  if (run.data.answers.length && !run.long) found.push("story");
  if (run.data.alignment || run.data.hypotheses?.length) found.push("alignment");
  if (run.long || run.attentions.some((one) => one.queries >= 64)) found.push("context");
  found.push("model");
  if (look.runs.length > 1) found.push("compare");
  return found;
}

export function App() {
  const look = useLook();
  const root = useRef<HTMLDivElement>(null);
  const { title, note } = look.host.document;
  const run = look.run.value;
  const found = tabs(look);
  const tab = found.includes(look.tab.value) ? look.tab.value : found[0];
  useEffect(() => effect(() => { root.current?.setAttribute("data-theme", look.dark.value ? "dark" : "light"); }), []);
  const keys = (event: KeyboardEvent) => {
    const typing = (event.target as HTMLElement).closest("input, select, textarea, pre");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && look.pointed.value) look.pointed.value = null;
    const at = Number(event.key) - 1;
    if (found[at]) {
      event.preventDefault();
      look.tab.value = found[at];
      root.current?.querySelector<HTMLElement>(`[data-tab=${found[at]}]`)?.focus();
    }
    const step = { "[": -1, "]": 1 }[event.key];
    if (step) look.choose({ row: look.cell.value.row + step });
  };
  return (
    <div class="qkv" ref={root} data-theme={look.dark.value ? "dark" : "light"} onKeyDown={keys}>
      <style>{colourRules + style}</style>
      <header class="top">
        <div class="heading">
          <p class="kicker"><span class="query">query</span> <span class="key">key</span> <span class="value">value</span></p>
          <h1 class={title.length > 24 ? "long" : ""} dir="auto">{title || "query, key, value"}</h1>
          <p class="note muted" dir="auto" title={look.runs.map((one) => one.data.path).filter(Boolean).join("\n") || undefined}>{note}</p>
          {look.runs.length > 1 && <RunChoice />}
        </div>
        <Exchange />
        <button type="button" class="quiet theme" onClick={() => { look.dark.value = !look.dark.value; }}>{look.dark.value ? "Light" : "Dark"}</button>
      </header>
      {!run.long && <Glance />}
      {look.error.value && <p class="problem" role="alert">{look.error.value} <button type="button" class="small" onClick={() => { look.error.value = ""; }}>Close</button></p>}
      <p class="busy" role="status">{look.busy.value && <>{look.busy.value}<span class="dots" aria-hidden="true" /></>}</p>
      <EditsPanel />
      <main>
        {found.length > 1 && <Tabs found={found} tab={tab} />}
        <div id="qkv-view" role={found.length > 1 ? "tabpanel" : undefined} aria-labelledby={found.length > 1 ? `qkv-tab-${tab}` : undefined} class={`view of-${tab}`}>
        {tab === "heads" && <><Heads /><HeadView /><CellView /></>}
        {tab === "story" && <><Heads /><StoryView /></>}
        {tab === "model" && <ModelView />}
        {tab === "alignment" && <AlignmentView />}
        {tab === "context" && <ContextView />}
        {tab === "compare" && <CompareView />}
        {!found.length && <h2>This model has no attention to show.</h2>}
        </div>
      </main>
      <footer><Certificate /><Help count={found.length} /></footer>
    </div>
  );
}

function RunChoice() {
  const look = useLook();
  return (
    <div class="runs" role="group" aria-label="Which run">
      {look.runs.map((run, which) => <button type="button" class="small" key={which} title={run.data.path} aria-pressed={look.which.value === which} onClick={() => look.switchRun(which)}>{run.data.name || `run ${which + 1}`}</button>)}
    </div>
  );
}

function Tabs({ found, tab }: { found: Tab[]; tab: Tab }) {
  const look = useLook();
  const move = (event: KeyboardEvent) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = found[(found.indexOf(tab) + step + found.length) % found.length];
    look.tab.value = next;
    (event.currentTarget as HTMLElement).querySelector<HTMLElement>(`[data-tab="${next}"]`)?.focus();
  };
  return (
    <div class="tabs" role="tablist" aria-label="Views" onKeyDown={move}>
      {found.map((one) => (
        <button type="button" role="tab" key={one} id={`qkv-tab-${one}`} data-tab={one} aria-selected={one === tab} aria-controls="qkv-view" tabIndex={one === tab ? 0 : -1} onClick={() => { look.tab.value = one; }}>{names[one]}</button>
      ))}
    </div>
  );
}

function Help({ count }: { count: number }) {
  return (
    <details class="help"><summary>Keyboard</summary>
      <p>Tab moves between the parts of the page. Arrow keys move between heads, cells and tokens. Home, End, Page Up and Page Down go to the edges of a matrix. [ and ] choose the previous and the next token.{count > 1 ? ` 1 to ${count} choose a view.` : ""} In the long context, + and {"\u2212"} zoom, arrow keys move, and 0 shows everything.</p>
    </details>
  );
}
