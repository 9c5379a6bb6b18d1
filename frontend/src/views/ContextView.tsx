// Along a long context: a map of one head from all of it down to single cells, and its statistics position by position.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { readTensor } from "../data/blocks";
import { topIndices } from "../data/run";
import { Tiles } from "../data/tiles";
import { mapDrawing, margin, type Window } from "../draw/map";
import { palette } from "../draw/palette";
import { curveDrawing } from "../draw/strips";
import { number, percent, short, displayToken } from "../numbers";
import { useLook } from "../state";
import { Heads } from "./Heads";
import { Exports, Picture, useWidth } from "./Picture";

const meanings: Record<string, string> = { entropy: "entropy, nats", distance: "distance, tokens", sink: "weight on the first token", largest: "largest weight", received: "weight received", logsumexp: "log-sum-exp of scores" };

export function ContextView() {
  const look = useLook();
  const attention = look.attention.value;
  const head = look.head.value;
  const ready = look.ready.value;
  const known = look.loaded.value;
  const tiles = useMemo(() => (attention && ready ? new Tiles(look, attention, head) : null), [attention, head, ready, attention?.changes, known]);
  if (!attention || !tiles) return <p class="muted" role="status">Loading the numbers</p>;
  const asked = tiles.overview || tiles.here;
  return (
    <div class="context-view">
      <Heads />
      <section aria-labelledby="context-title">
        <h2 id="context-title">{attention.group} <span class="muted">layer {attention.data.layer} {"\u00b7"} head {head} {"\u00b7"} {attention.queries.toLocaleString("en")} queries {"\u00d7"} {attention.keys.toLocaleString("en")} keys</span></h2>
        {!asked && !tiles.live && <p>This head is not in this file; open the model with <code>qkv look --serve</code> to see it.</p>}
        {!asked && tiles.live && <StatisticsRequest />}
        {(asked || tiles.live) && <Map tiles={tiles} />}
      </section>
    </div>
  );
}

function StatisticsRequest() {
  const look = useLook();
  const ask = async () => {
    const attention = look.attention.value;
    const head = look.head.value;
    if (!attention) return;
    const found = await look.ask({ ask: "statistics", place: attention.place, head }, "Computing the statistics of this head; with 100,000 tokens this takes up to a minute");
    if (!found?.reply.overview) return;
    // The attention keeps one head with its overview and curves.
    const { data, tensors } = attention;
    data.overview_heads = [head];
    data.overview = found.reply.overview;
    data.per_query = undefined;
    tensors.overview = await readTensor(found.reply.overview, found.block);
    for (const [name, block] of Object.entries(found.reply.per_query ?? {})) look.curves.set(`${look.which.value} ${attention.place} ${head} ${name}`, (await readTensor(block, found.block)).data);
    look.loaded.value += 1;
  };
  return <p><button type="button" class="do" onClick={() => void ask()}>Compute this head over the whole context</button></p>;
}

function Map({ tiles }: { tiles: Tiles }) {
  const look = useLook();
  const [box, width] = useWidth<HTMLDivElement>(700);
  const { attention, head } = tiles;
  const size = Math.max(260, Math.min(width - margin.left - (width > 1000 ? 330 : 4), Math.max(360, window.innerHeight - 430)));
  const whole = Math.max(attention.queries, attention.keys) / size;
  const [view, setView] = useState<Window>({ row: 0, column: 0, per: whole });
  useEffect(() => setView({ row: 0, column: 0, per: whole }), [attention, size]);
  const dark = look.dark.value;
  const chosen = look.cell.value;
  void tiles.changed.value;
  const run = look.run.value;
  const drawing = mapDrawing({ tiles, window: view, size, queries: run.queryTokens(attention), keys: run.keyTokens(attention), chosen, colours: palette(dark), dark });
  const nearest = tiles.deep ? 1 / 48 : whole / 4;
  const held = ({ row, column, per }: Window): Window => ({
    per,
    row: Math.max(Math.min(row, attention.queries - size * per), 0),
    column: Math.max(Math.min(column, attention.keys - size * per), 0),
  });
  const zoom = (factor: number, x = size / 2, y = size / 2) => setView((from) => {
    const per = Math.max(nearest, Math.min(whole, from.per * factor));
    return held({ per, row: from.row + y * (from.per - per), column: from.column + x * (from.per - per) });
  });
  const cellAt = (event: MouseEvent) => ({ row: Math.floor(view.row + (event.offsetY - margin.top) * view.per), column: Math.floor(view.column + (event.offsetX - margin.left) * view.per) });
  const dragged = useDrag((dx, dy) => setView((from) => held({ ...from, row: from.row - dy * from.per, column: from.column - dx * from.per })));
  const keys = (event: KeyboardEvent) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (event.key === "+" || event.key === "=") zoom(0.5, (chosen.column - view.column) / view.per, (chosen.row - view.row) / view.per);
    else if (event.key === "-") zoom(2);
    else if (event.key === "0") setView({ row: 0, column: 0, per: whole });
    else if (step) {
      const by = Math.max(1, Math.round(view.per * (event.shiftKey ? 40 : 8)));
      const to = view.per < 1 ? (event.shiftKey ? 8 : 1) : by;
      look.choose({ row: chosen.row + step[0] * to, column: chosen.column + step[1] * to });
      const now = look.cell.value;
      setView((from) => held({ ...from, row: into(now.row, from.row, size * from.per), column: into(now.column, from.column, size * from.per) }));
    } else return;
    event.preventDefault();
    event.stopPropagation();
  };
  // Where no tiles are to be had, the overview's parts are larger than pixels.
  const part = (all: number, parts: number) => Math.max(view.per, tiles.tiled(view.per) || !parts ? 1 : all / parts);
  const finest = [part(attention.queries, tiles.overview?.rows ?? 0), part(attention.keys, tiles.overview?.columns ?? 0)].map(short).join(" \u00d7 ");
  const go = (per: number) => setView(held({ per: Math.min(whole, per), row: chosen.row - (size * per) / 2, column: chosen.column - (size * per) / 2 }));
  return (
    <div class="map-box" ref={box}>
      <div class="map-controls">
        <button type="button" class="small" onClick={() => zoom(0.5)} aria-label="Zoom in">+</button>
        <button type="button" class="small" onClick={() => zoom(2)} aria-label="Zoom out">{"\u2212"}</button>
        <button type="button" class="small" onClick={() => setView({ row: 0, column: 0, per: whole })}>All</button>
        {tiles.deep && <button type="button" class="small" onClick={() => go(1 / 30)}>Zoom to the chosen cell</button>}
        <span class="muted">{view.per >= 1 ? `each pixel shows the largest of ${finest} cells` : "single cells"}{tiles.deep ? "" : "; to zoom in further: qkv look --serve"}; colour by the fourth root of the weight</span>
        <Exports drawing={() => drawing} name={`${attention.place} head ${head} map`} />
      </div>
      <Picture drawing={drawing} class="map" tabIndex={0} role="application" aria-roledescription="map of the attention" aria-label={`Map of ${attention.place}, head ${head}. Plus and minus zoom, arrow keys move the chosen cell, 0 shows all. Chosen: query ${chosen.row}, key ${chosen.column}. The tables below hold the numbers.`}
        onKeyDown={keys} {...dragged.handlers} onWheel={(event: WheelEvent) => { event.preventDefault(); zoom(2 ** (event.deltaY / 300), event.offsetX - margin.left, event.offsetY - margin.top); }}
        onClick={(event: MouseEvent) => { if (!dragged.moved()) look.choose(cellAt(event)); }} />
      <TopKeys tiles={tiles} />
      <Curves tiles={tiles} view={view} size={size} />
    </div>
  );
}

const into = (at: number, from: number, span: number) => (at < from ? at - span * 0.2 : at >= from + span ? at - span * 0.8 : from);

function useDrag(move: (dx: number, dy: number) => void) {
  const state = useRef({ x: 0, y: 0, down: false, far: 0 });
  const now = state.current;
  return {
    moved: () => now.far > 4,
    handlers: {
      onPointerDown: (event: PointerEvent) => { Object.assign(now, { x: event.clientX, y: event.clientY, down: true, far: 0 }); (event.currentTarget as HTMLElement).setPointerCapture(event.pointerId); },
      onPointerMove: (event: PointerEvent) => {
        if (!now.down) return;
        const [dx, dy] = [event.clientX - now.x, event.clientY - now.y];
        Object.assign(now, { x: event.clientX, y: event.clientY, far: now.far + Math.abs(dx) + Math.abs(dy) });
        move(dx, dy);
      },
      onPointerUp: () => { now.down = false; },
    },
  };
}

function Curves({ tiles, view, size }: { tiles: Tiles; view: Window; size: number }) {
  const look = useLook();
  const { attention, head } = tiles;
  const colours = palette(look.dark.value);
  const chosen = look.cell.value;
  const names = Object.keys(meanings).map((name) => [name, tiles.curves[name] ?? look.curves.get(`${look.which.value} ${attention.place} ${head} ${name}`)] as const).filter(([, values]) => values?.length);
  return (
    <div class="curves">
      {names.map(([name, values]) => {
        const byKey = name === "received";
        const [from, count, at] = byKey ? [view.column, attention.keys, chosen.column] : [view.row, attention.queries, chosen.row];
        const to = Math.min(count, from + size * view.per);
        return [
          <span key={`${name} name`}>{meanings[name]}</span>,
          <Picture key={name} drawing={curveDrawing(values as ArrayLike<number>, Math.floor(from), Math.ceil(to), Math.max(120, size - 130), 34, byKey ? colours.key : colours.query, colours, at)} role="img" aria-label={`${meanings[name]} along the ${byKey ? "keys" : "queries"} ${Math.floor(from)} to ${Math.ceil(to)}`} />,
          <b key={`${name} value`}>{short((values as ArrayLike<number>)[at])}</b>,
        ];
      })}
    </div>
  );
}

/** The keys that the chosen query attends to most: a table beside the map. */
function TopKeys({ tiles }: { tiles: Tiles }) {
  const look = useLook();
  const { attention, head } = tiles;
  const { row, column } = look.cell.value;
  const [weights, setWeights] = useState<ArrayLike<number> | null>(null);
  useEffect(() => {
    setWeights(null);
    if (attention.exact) { setWeights(attention.row(head, row).weights); return; }
    let stale = false;
    const timer = setTimeout(() => void look.fetch({ ask: "row", place: attention.place, head, query: row }).then(async (found) => {
      if (found?.reply.row && !stale) setWeights((await readTensor(found.reply.row, found.block)).data);
    }), 120);
    return () => { stale = true; clearTimeout(timer); };
  }, [tiles, row]);
  const run = look.run.value;
  const keys = run.keyTokens(attention);
  return (
    <section class="top-keys">
      <h3>Query {row.toLocaleString("en")} <b class="query" dir="auto">{displayToken(run.queryTokens(attention)[row] ?? "")}</b>: where it looks</h3>
      {!weights ? <p class="muted">{tiles.live ? "Loading its weights" : "Its weights are not in this file; qkv look --serve computes them."}</p> : (
        <div class="table-box" tabIndex={0} role="region" aria-label="Strongest keys of the chosen query">
          <table>
            <thead><tr><th scope="col">position</th><th scope="col">key</th><th scope="col">weight</th></tr></thead>
            <tbody>{[...new Set([...topIndices(weights, 8), column])].map((at) => (
              <tr key={at} class={at === column ? "chosen" : ""}><th scope="row"><button type="button" class="column" onClick={() => look.choose({ row, column: at })}>{at}</button></th><td dir="auto">{displayToken(keys[at] ?? "")}</td><td>{number(weights[at], 4)} {percent(weights[at])}</td></tr>))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}
