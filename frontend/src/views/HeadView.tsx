// One head: its matrix, its lines and its table, which share one choice.
import { useMemo } from "preact/hooks";
import type { Attention, Show } from "../data/attention";
import { topIndices } from "../data/run";
import { cellAt, legendDrawing, layOut, matrixDrawing, cellsPerPixel, plane } from "../draw/matrix";
import { verticalDrawing, lineHeight, type Line } from "../draw/lines";
import { palette } from "../draw/palette";
import { displayTokens, number, percent, displayToken } from "../numbers";
import { useLook, type Cell, type Form } from "../state";
import { AxisImage } from "./AxisImage";
import { EditButtons } from "./Edits";
import { HeadTable } from "./HeadTable";
import { rowLabels } from "./rowLabels";
import { Choice, Exports, Picture, Token, useWidth } from "./Picture";

const shows: Record<Show, string> = {
  weights: "Weights: how the attention of each query is divided among the keys. Colour by square root. A dot: not visible.",
  scores: "Scores: query \u00b7 key, scaled, with all that is added, before the softmax. Blue above 0, brown below.",
  flow: "Flow: the length of weight \u00d7 value \u00d7 W_O, the contribution of each key. A large weight on a small value contributes little.",
};

export function HeadView() {
  const look = useLook();
  const [box, width] = useWidth<HTMLElement>();
  const attention = look.attention.value;
  if (!attention) return <section class="head" ref={box}><h2>This model has no attention to show.</h2></section>;
  const { layer } = attention.data;
  return (
    <section class="head" ref={box} aria-labelledby="head-title">
      <div class="head-top">
        <div>
          <h2 id="head-title">{attention.group} <span class="muted">layer {layer} {"\u00b7"} head {look.head.value}</span></h2>
          {look.ready.value && attention.exact && <p class="story"><Story attention={attention} /></p>}
        </div>
        <div class="controls">
          <Choice name="show" legend="What to show" value={look.show.value} onChoose={(value) => { look.show.value = value; }} options={[["weights", "Weights"], ["scores", "Scores"], ["flow", "Flow"]] as const} />
          <Choice<Form> name="form" legend="How to show it" value={look.form.value} onChoose={(value) => { look.form.value = value; }} options={[["matrix", "Matrix"], ["lines", "Lines"], ["table", "Table"]] as const} />
        </div>
      </div>
      {!look.ready.value ? <p class="muted" role="status">Loading the numbers</p>
        : !attention.exact ? <p>This context is too long for a matrix: see the tab Long context.</p>
          : <>
            <EditButtons />
            <AxisImage attention={attention} width={width} />
            {look.form.value === "matrix" && <MatrixImage attention={attention} width={width} />}
            {look.form.value === "lines" && <LinesImage attention={attention} width={width} />}
            {look.form.value === "table" && <HeadTable attention={attention} />}
          </>}
      {look.ready.value && attention.exact && <p class="unseen" aria-live="polite">{describeCell(look.run.value.queryTokens(attention), look.run.value.keyTokens(attention), look.cell.value, attention, look.head.value)}</p>}
    </section>
  );
}

const describeCell = (queries: string[], keys: string[], { row, column }: Cell, attention: Attention, head: number) => (
  `${queries[row]} attends to ${keys[column]}, weight ${number(attention.row(head, row).weights[column])}`);

function Story({ attention }: { attention: Attention }) {
  const look = useLook();
  const { row } = look.seen.value;
  const { weights } = attention.row(look.head.value, row);
  const run = look.run.value;
  const keys = run.keyTokens(attention);
  const query = <Token text={displayToken(run.queryTokens(attention)[row])} name="query" />;
  const answer = run.answersFor(attention)?.[row];
  const first = topIndices(weights, 3).filter((column) => weights[column] >= 0.05);
  const opening = answer && run.axis("target") ? <>To predict <Token text={displayToken(answer.chosen[0])} /> after {query}, this head attends to </> : <>{query} attends to </>;
  if (!first.length) return <>{opening}no key in particular.</>;
  return <>{opening}{first.map((column, i) => <span key={column}>{i ? (i === first.length - 1 ? " and " : ", ") : ""}<Token text={displayToken(keys[column])} name="key" /> {percent(weights[column])}</span>)}.</>;
}

/** Arrow keys move the choice; Home, End, Page Up and Page Down go to the ends. */
export function moveInMatrix(event: KeyboardEvent, look: ReturnType<typeof useLook>, attention: Attention): void {
  const { queries, keys } = attention;
  const moves: Record<string, [number, number]> = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -keys], End: [0, keys], PageUp: [-queries, 0], PageDown: [queries, 0] };
  const move = moves[event.key];
  if (!move) return;
  event.preventDefault();
  const { row, column } = look.cell.value;
  look.choose({ row: row + move[0], column: column + move[1] });
}

function MatrixImage({ attention, width }: { attention: Attention; width: number }) {
  const look = useLook();
  const run = look.run.value;
  const [head, show, dark, changes] = [look.head.value, look.show.value, look.dark.value, attention.changes];
  const { place, rows, columns } = useMemo(() => {
    const names = { rows: rowLabels(look, attention), columns: displayTokens(run.keyTokens(attention)) };
    return { ...names, place: layOut(attention.queries, attention.keys, names.rows, names.columns, Math.max(width, 280), Math.max(340, window.innerHeight - 480)) };
  }, [attention, run, width]);
  const small = Math.min(place.wide, place.high) < 8;
  const [down, across] = cellsPerPixel(place);
  const canvas = useMemo(() => document.createElement("canvas"), []);
  const shownPlane = useMemo(() => plane(attention, head, show, dark, small, [down, across], canvas), [attention, head, show, dark, changes, small, down, across]);
  const [chosen, pointed] = [look.cell.value, look.pointed.value];
  const drawing = useMemo(() => matrixDrawing({ plane: shownPlane, place, rowLabels: rows, columnLabels: columns, chosen, pointed, colours: palette(dark), dark }), [shownPlane, place, chosen, pointed, dark]);
  const legend = useMemo(() => legendDrawing(show, shownPlane.extent, palette(dark), dark), [show, shownPlane, dark]);
  const under = (event: MouseEvent): Cell | null => cellAt(place, attention.queries, attention.keys, event.offsetX, event.offsetY);
  const point = (cell: Cell | null) => {
    const before = look.pointed.value;
    if (cell?.row !== before?.row || cell?.column !== before?.column) look.pointed.value = cell;
  };
  return (
    <>
      <div class="picture">
        <Picture drawing={drawing} class="matrix" tabIndex={0} role="application" aria-roledescription="matrix"
          aria-label={`${attention.place}, head ${head}. ${describeCell(rows, columns, chosen, attention, head)}. Arrow keys move; the table holds the same numbers.`}
          onPointerMove={(event) => point(under(event))} onPointerLeave={() => point(null)}
          onClick={(event) => { const cell = under(event); if (cell) look.choose(cell); }} onKeyDown={(event) => moveInMatrix(event, look, attention)} />
      </div>
      <div class="legend">
        <Picture drawing={legend} aria-hidden="true" />
        <p class="muted">{shows[show]}{down * across > 1 ? ` There are more cells than pixels: of each ${down} \u00d7 ${across} cells, the one farthest from 0 is shown. The table and the tab Long context show them all.` : ""}</p>
        <Exports drawing={() => drawing} name={`${attention.place} head ${head} ${show}`} />
      </div>
    </>
  );
}

const window_ = 120;
const drawnLines = 3000;

function LinesImage({ attention, width }: { attention: Attention; width: number }) {
  const look = useLook();
  const run = look.run.value;
  const [head, dark, changes] = [look.head.value, look.dark.value, attention.changes];
  const { row, column } = look.seen.value;
  const part = (at: number, length: number) => Math.max(0, Math.min(at - window_ / 2, length - window_));
  const [fromRow, fromKey] = [part(look.cell.value.row, attention.queries), part(look.cell.value.column, attention.keys)];
  const [rows, keys] = [Math.min(attention.queries, window_), Math.min(attention.keys, window_)];
  const drawing = useMemo(() => {
    const lines: Line[] = [];
    for (let query = 0; query < rows; query += 1) {
      const { weights } = attention.row(head, fromRow + query);
      const strong = fromRow + query === row;
      const least = strong ? 0.005 : rows * keys > drawnLines ? 0.15 : 0.04;
      for (let key = 0; key < keys; key += 1) if (weights[fromKey + key] > least) lines.push({ query, key, weight: weights[fromKey + key], strong });
    }
    return verticalDrawing({
      queries: rowLabels(look, attention).slice(fromRow, fromRow + rows), keys: displayTokens(run.keyTokens(attention)).slice(fromKey, fromKey + keys), lines,
      chosen: { row: row - fromRow, column: column - fromKey }, colours: palette(dark), room: Math.max(width, 300),
      shares: attention.row(head, row).weights.subarray(fromKey, fromKey + keys),
    });
  }, [attention, head, dark, changes, row, column, fromRow, fromKey, width]);
  const at = (event: MouseEvent) => {
    const line = Math.floor((event.offsetY - 4) / lineHeight);
    if (event.offsetX < drawing.left + 20) return line < rows ? { row: fromRow + line } : null;
    return event.offsetX > drawing.right - 20 && line < keys ? { row, column: fromKey + line } : null;
  };
  return (
    <>
      <div class="picture scrolls">
        <Picture drawing={drawing} class="lines" tabIndex={0} role="application" aria-roledescription="tokens and lines"
          aria-label={`${attention.place}, head ${head}, as lines. Arrow keys move; the table holds the same numbers.`}
          onClick={(event) => { const found = at(event); if (found) look.choose(found); }} onKeyDown={(event) => moveInMatrix(event, look, attention)} />
      </div>
      <div class="legend">
        <p class="muted">Left: queries. Right: keys, with a bar for the weights of the chosen query. Choose a token on either side.{attention.queries > window_ || attention.keys > window_ ? ` ${window_} tokens around the choice are shown.` : ""}</p>
        <Exports drawing={() => drawing} name={`${attention.place} head ${head} lines`} />
      </div>
    </>
  );
}
