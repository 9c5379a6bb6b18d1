// Two runs side by side: their answers, one head of each over their tokens, and where the two differ.
import { useMemo, useState } from "preact/hooks";
import type { Attention } from "../data/attention";
import { topIndices, type Run } from "../data/run";
import { poolExtremes, layOut, matrixDrawing, cellsPerPixel, pixels, plane, type Plane } from "../draw/matrix";
import { palette } from "../draw/palette";
import { displayTokens, largest, percent, short, displayToken } from "../numbers";
import { useLook, type Cell } from "../state";
import { rowLabels } from "./rowLabels";
import { Exports, Picture, useWidth } from "./Picture";

interface Chosen { run: Run; attention: Attention; head: number }

export function CompareView() {
  const look = useLook();
  const [chosen, setChosen] = useState(() => look.runs.map((run) => run.findSharpestHead()));
  const [cell, setCell] = useState<Cell>({ row: 1, column: 0 });
  void look.loaded.value;
  const both: Chosen[] = look.runs.map((run, i) => ({ run, attention: run.attentions[chosen[i].at], head: chosen[i].head }));
  const here = both.filter((one) => one.attention?.ready && one.attention.exact);
  const [a, b] = both;
  const alike = here.length === 2 && a.attention.queries === b.attention.queries && a.attention.keys === b.attention.keys
    && a.run.keyTokens(a.attention).join("\n") === b.run.keyTokens(b.attention).join("\n");
  const choose = (i: number, at: number, head: number) => setChosen(chosen.map((one, which) => (which === i ? { ...one, at, head } : one)));
  return (
    <div class="compare">
      <Answers />
      {both.map((one, i) => (
        <section key={i} aria-label={name(one.run, i)}>
          <h2 title={one.run.data.path}>{name(one.run, i)}</h2>
          {one.attention ? (
            <>
              <label class="pick">Head <select value={`${chosen[i].at} ${one.head}`} onChange={(event) => { const [at, head] = event.currentTarget.value.split(" ").map(Number); choose(i, at, head); }}>
                {one.run.attentions.map((attention, at) => Array.from({ length: attention.heads }, (_, head) => <option value={`${at} ${head}`} key={`${at} ${head}`}>{attention.place} {head}</option>))}
              </select></label>
              {one.attention.ready && one.attention.exact && <Side one={one} cell={cell} onChoose={setCell} title={name(one.run, i)} />}
            </>
          ) : <p>This run has no attention to show: the model keeps everything in one state.</p>}
        </section>
      ))}
      {alike && <Difference both={here} cell={cell} onChoose={setCell} />}
      <Statistics both={both} />
    </div>
  );
}

const name = (run: Run, i: number) => run.data.name || `run ${i + 1}`;

function Answers() {
  const look = useLook();
  const [a, b] = look.runs.map((run) => run.data.answers);
  const length = Math.max(a.length, b?.length ?? 0);
  return (
    <section class="wide">
      <h2>The two answers</h2>
      <div class="table-box" tabIndex={0} role="region" aria-label="Answers of both runs">
        <table>
          <tbody>{look.runs.map((run, i) => (
            <tr key={i}><th scope="row" title={run.data.path}>{name(run, i)}</th>{Array.from({ length }, (_, at) => {
              const answer = run.data.answers[at];
              const other = (i ? a : b)?.[at];
              return <td key={at} class={answer && other && answer.chosen[0] !== other.chosen[0] ? "bad" : ""}>{answer ? <><b dir="auto">{displayToken(answer.chosen[0])}</b> <span class="muted">{percent(answer.chosen[1])}</span></> : ""}</td>;
            })}</tr>))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

interface MatrixProps { rows: string[]; columns: string[]; plane: Plane; title: string; cell: Cell; onChoose: (cell: Cell) => void }

function Matrix({ rows, columns, plane: values, title, cell, onChoose }: MatrixProps) {
  const look = useLook();
  const dark = look.dark.value;
  const [box, width] = useWidth<HTMLDivElement>(500);
  const place = layOut(rows.length, columns.length, rows, columns, Math.max(width, 260), 460);
  const pooled = cellsPerPixel(place);
  const shownPlane = Math.min(place.wide, place.high) < 8 ? { ...values, pooled, image: pixels({ ...values, ...poolExtremes(values.rows, values.columns, values.values, pooled) }, dark) } : values;
  const drawing = matrixDrawing({ plane: shownPlane, place, rowLabels: rows, columnLabels: columns, chosen: cell, pointed: null, colours: palette(dark), dark });
  const clamp = (at: Cell) => onChoose({ row: Math.max(0, Math.min(rows.length - 1, at.row)), column: Math.max(0, Math.min(columns.length - 1, at.column)) });
  const keys = (event: KeyboardEvent) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    clamp({ row: cell.row + step[0], column: cell.column + step[1] });
  };
  const value = values.values[cell.row * columns.length + cell.column];
  return (
    <div ref={box}>
      <div class="picture"><Picture drawing={drawing} class="matrix" tabIndex={0} role="application" aria-roledescription="matrix" aria-label={`${title}. ${rows[cell.row]} to ${columns[cell.column]}: ${short(value)}. Arrow keys move.`} onKeyDown={keys}
        onClick={(event: MouseEvent) => clamp({ row: Math.floor((event.offsetY - place.top) / place.high), column: Math.floor((event.offsetX - place.left) / place.wide) })} /></div>
      <p class="legend"><span><b class="query" dir="auto">{rows[cell.row]}</b> {"\u2192"} <b class="key" dir="auto">{columns[cell.column]}</b>: {short(value)}</span> <Exports drawing={() => drawing} name={title} /></p>
      <details><summary>As a table</summary><Numbers rows={rows} columns={columns} values={values.values} title={title} row={cell.row} /></details>
    </div>
  );
}

const cells = 2500;

/** All numbers of a small matrix; of a large one, the chosen query's that are farthest from 0. */
function Numbers({ rows, columns, values, title, row: chosen }: { rows: string[]; columns: string[]; values: Float32Array; title: string; row: number }) {
  const whole = rows.length * columns.length <= cells;
  const of = (row: number) => values.subarray(row * columns.length, (row + 1) * columns.length);
  const keys = whole ? [...columns.keys()] : topIndices(of(chosen).map(Math.abs), 20);
  return (
    <div class="table-box" tabIndex={0} role="region" aria-label={`${title}, as a table`}>
      <table>
        <thead><tr><td />{keys.map((column) => <th scope="col" key={column} dir="auto">{columns[column]}</th>)}</tr></thead>
        <tbody>{(whole ? [...rows.keys()] : [chosen]).map((row) => (
          <tr key={row}><th scope="row" dir="auto">{rows[row]}</th>{keys.map((column) => <td key={column}>{Number.isNaN(of(row)[column]) ? "\u00b7" : short(of(row)[column])}</td>)}</tr>))}
        </tbody>
      </table>
    </div>
  );
}

function Side({ one: { run, attention, head }, cell, onChoose, title }: { one: Chosen; cell: Cell; onChoose: (cell: Cell) => void; title: string }) {
  const look = useLook();
  const dark = look.dark.value;
  const values = useMemo(() => plane(attention, head, "weights", dark, false), [attention, head, dark]);
  return <Matrix rows={rowLabels(look, attention, run)} columns={displayTokens(run.keyTokens(attention))} plane={values} title={`${title}, ${attention.place} head ${head}`} cell={cell} onChoose={onChoose} />;
}

function Difference({ both: [a, b], cell, onChoose }: { both: Chosen[]; cell: Cell; onChoose: (cell: Cell) => void }) {
  const values = useMemo((): Plane => {
    const [one, other] = [a, b].map(({ attention, head }) => attention.matrix(head).weights);
    const difference = one.map((weight, at) => weight - other[at]);
    return { rows: a.attention.queries, columns: a.attention.keys, values: difference, extent: largest(difference), show: "scores", image: null, pooled: [1, 1] };
  }, [a.attention, a.head, b.attention, b.head]);
  return (
    <section class="wide">
      <h2>Where they differ <span class="muted">weights of the first minus those of the second: blue where the first attends more</span></h2>
      <Matrix rows={a.run.queryTokens(a.attention).map(displayToken)} columns={a.run.keyTokens(a.attention).map(displayToken)} plane={values} title="difference" cell={cell} onChoose={onChoose} />
    </section>
  );
}

function Statistics({ both }: { both: Chosen[] }) {
  const names = [...new Set(both.flatMap((one) => Object.keys(one.attention?.data.statistics ?? {})))];
  if (!names.length) return null;
  return (
    <section class="wide">
      <h2>Statistics of the two heads</h2>
      <div class="table-box" tabIndex={0} role="region" aria-label="Statistics of the two heads">
        <table>
          <thead><tr><th scope="col">head</th>{names.map((one) => <th scope="col" key={one}>{one}</th>)}</tr></thead>
          <tbody>{both.map(({ run, attention, head }, i) => attention && (
            <tr key={i}><th scope="row">{name(run, i)}: {attention.place} {head}</th>{names.map((one) => <td key={one}>{short(attention.data.statistics?.[one]?.[head])}</td>)}</tr>))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
