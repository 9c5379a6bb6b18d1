// The model: layers x heads as thumbnails, by layer or sorted by a statistic.
import { useComputed } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Attention } from "../data/attention";
import { shrink } from "../data/pooling";
import { pixels } from "../draw/matrix";
import { short } from "../numbers";
import { useLook } from "../state";

export const descriptions: Record<string, string> = {
  previous: "weight on the previous token", sink: "weight on the first token", entropy: "how spread out the weights are, in nats",
  distance: "mean distance of the keys, in tokens", positional: "how much of the attention depends on distance alone", duplicate: "weight on earlier tokens that equal the query's",
  induction: "weight on the tokens that followed those", share: "share of the layer's output that comes from this head", largest: "mean largest weight", diagonal: "weight on the same position",
};

export interface HeadAt { at: number; head: number; attention: Attention; value: number | null }

/** Every head, those of one kind if asked, by layer or by a statistic, the largest first. */
export function sortHeads(attentions: Attention[], kinds: string, sort: string): HeadAt[] {
  const found: HeadAt[] = [];
  attentions.forEach((attention, at) => {
    if (kinds !== "all" && attention.data.kind !== kinds) return;
    for (let head = 0; head < attention.heads; head += 1) found.push({ at, head, attention, value: attention.data.statistics?.[sort]?.[head] ?? null });
  });
  return sort === "place" ? found : found.sort((a, b) => (b.value ?? -Infinity) - (a.value ?? -Infinity));
}

export function Controls() {
  const look = useLook();
  const { attentions } = look.run.value;
  const names = [...new Set(attentions.flatMap((one) => Object.entries(one.data.statistics ?? {}).filter(([, values]) => values.some((value) => value !== null)).map(([name]) => name)))];
  const both = new Set(attentions.map((one) => one.data.kind)).size > 1;
  return (
    <div class="heads-controls">
      <label>Sort <select value={look.sort.value} onChange={(event) => { look.sort.value = event.currentTarget.value; }}>
        <option value="place">by layer</option>
        {names.map((name) => <option value={name} key={name}>by {name}</option>)}
      </select></label>
      {both && <label>Show <select value={look.kinds.value} onChange={(event) => { look.kinds.value = event.currentTarget.value; }}>
        <option value="all">all</option><option value="self">self</option><option value="cross">cross</option>
      </select></label>}
    </div>
  );
}

export function Heads({ size: wanted }: { size?: number }) {
  const look = useLook();
  const box = useRef<HTMLElement>(null);
  const run = look.run.value;
  const size = wanted ?? (run.attentions.some((one) => one.heads > 8) ? 32 : 48);
  const list = sortHeads(run.attentions, look.kinds.value, look.sort.value);
  const move = (event: KeyboardEvent) => moveFocus(event, box.current as HTMLElement);
  const groups = look.sort.value === "place" ? [...new Set(list.map((one) => one.attention.group))] : [];
  return (
    <nav class="heads" ref={box} aria-label="Attention heads" onKeyDown={move}>
      <Controls />
      {describePooling(run.attentions, size) && <p class="muted small-text">{describePooling(run.attentions, size)}</p>}
      {look.sort.value !== "place" && <p class="muted small-text">{descriptions[look.sort.value] ?? ""}, the largest first</p>}
      {look.sort.value !== "place" && <div class="ranked">{list.map((one) => <Thumbnail key={`${one.at} ${one.head}`} {...one} size={size} named />)}</div>}
      {groups.map((group) => <Group key={group} group={group} list={list.filter((one) => one.attention.group === group)} size={size} />)}
    </nav>
  );
}

/** What the thumbnails leave out, in words. */
function describePooling(attentions: Attention[], size: number): string {
  if (attentions.some((one) => !one.exact && one.data.overview)) return `Thumbnails are max-pooled to ${size} \u00d7 ${size}.`;
  if (!attentions.some((one) => one.exact && (one.queries > size || one.keys > size))) return "";
  return `Thumbnails show ${size} evenly spaced queries; their keys are max-pooled to ${size}.`;
}

function Group({ group, list, size }: { group: string; list: HeadAt[]; size: number }) {
  const most = Math.max(...list.map((one) => one.head)) + 1;
  const layers = [...new Set(list.map((one) => one.at))];
  return (
    <section class="group">
      <h3>{group}</h3>
      <div class="grid" style={{ "--heads": most, "--most": `${size + 10}px` }}>
        <span class="count corner">{layers.length > 1 || most > 1 ? "" : ""}</span>
        {Array.from({ length: most }, (_, head) => <span class="count" key={head}>{head}</span>)}
        {layers.map((at) => {
          const own = list.filter((one) => one.at === at);
          return [<span class="count layer" key={`layer ${at}`}>{own[0].attention.data.layer}</span>,
            ...Array.from({ length: most }, (_, head) => (own[head] ? <Thumbnail key={`${at} ${head}`} {...own[head]} size={size} /> : <span key={`${at} ${head}`} />))];
        })}
      </div>
    </section>
  );
}

function Thumbnail({ at, head, attention, value, size, named }: HeadAt & { size: number; named?: boolean }) {
  const look = useLook();
  // Only the two thumbnails that a choice concerns are rendered again.
  const chosen = useComputed(() => look.at.value === at && look.head.value === head).value;
  const { layer, stack, kind } = attention.data;
  const figure = value === null ? "" : short(value);
  return (
    <button type="button" class="thumbnail" tabIndex={chosen ? 0 : -1} aria-pressed={chosen} data-at={at} data-head={head}
      aria-label={`${attention.group}, layer ${layer}, head ${head}${figure ? `, ${look.sort.value} ${figure}` : ""}`}
      title={`${stack} ${kind} ${layer}.${head}`} onClick={() => look.choose({ at, head })}>
      <Small attention={attention} head={head} size={size} />
      {named && <span class="thumbnail-name">{kind === "cross" ? "x" : stack[0]}{layer}.{head} <b>{figure}</b></span>}
    </button>
  );
}

function Small({ attention, head, size }: { attention: Attention; head: number; size: number }) {
  const look = useLook();
  const image = useRef<HTMLImageElement>(null);
  const dark = look.dark.value;
  const changed = attention.changes;
  void look.loaded.value;
  const { ready } = attention;
  useEffect(() => {
    if (!ready || !image.current) return;
    const cancel = schedule(() => {
      const { rows, columns, data } = shrink(attention, head, size);
      if (!image.current || !rows) return;
      image.current.src = pixels({ rows, columns, values: data, extent: 1, show: "weights" }, dark, easel).toDataURL();
    });
    return cancel;
  }, [attention, head, size, dark, ready, changed]);
  return <img ref={image} src={nothing} alt="" />;
}

// Images, because a browser composites every canvas as a layer of its own in every frame.
const easel = document.createElement("canvas");
const nothing = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";

// Thumbnails are drawn in slices of a few milliseconds, so that the page stays responsive.
const waiting = new Set<() => void>();
let running = false;

function schedule(draw: () => void): () => void {
  waiting.add(draw);
  if (!running) {
    running = true;
    setTimeout(drawWaiting, 0);
  }
  return () => waiting.delete(draw);
}

function drawWaiting(): void {
  const end = performance.now() + 12;
  for (const draw of waiting) {
    waiting.delete(draw);
    draw();
    if (performance.now() > end) break;
  }
  running = waiting.size > 0;
  if (running) setTimeout(drawWaiting, 0);
}

const steps: Record<string, [number, number]> = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/** Arrow keys go to the nearest thumbnail in their direction. */
function moveFocus(event: KeyboardEvent, box: HTMLElement): void {
  const button = (event.target as HTMLElement).closest<HTMLElement>(".thumbnail");
  const step = steps[event.key];
  if (!button || !step) return;
  event.preventDefault();
  const middle = (one: HTMLElement) => { const rect = one.getBoundingClientRect(); return [rect.top + rect.height / 2, rect.left + rect.width / 2]; };
  const [top, left] = middle(button);
  const ahead = [...box.querySelectorAll<HTMLElement>(".thumbnail")].map((one) => [one, ...middle(one)] as [HTMLElement, number, number])
    .filter(([, y, x]) => (step[0] ? (y - top) * step[0] > 4 : Math.abs(y - top) < 4 && (x - left) * step[1] > 4))
    .sort((a, b) => Math.hypot(a[1] - top, a[2] - left) - Math.hypot(b[1] - top, b[2] - left));
  if (!ahead.length) return;
  ahead[0][0].click();
  ahead[0][0].focus();
}
