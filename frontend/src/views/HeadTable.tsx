// The same numbers as a table: all of a small matrix; of a large one, the strongest keys of each query.
import type { Attention } from "../data/attention";
import { topIndices } from "../data/run";
import { along, css, readable, rgb } from "../draw/ramp";
import { plane } from "../draw/matrix";
import { displayTokens, number, percent } from "../numbers";
import { saveText } from "../draw/svg";
import { useLook } from "../state";
import { rowLabels } from "./rowLabels";

const cells = 2500;
const page = 60;

export function HeadTable({ attention }: { attention: Attention }) {
  const look = useLook();
  const keys = displayTokens(look.run.value.keyTokens(attention));
  const labels = rowLabels(look, attention);
  const csv = () => {
    const { values } = plane(attention, look.head.value, look.show.value, false, false);
    const quoted = (text: string) => `"${text.replaceAll('"', '""')}"`;
    return [["", ...keys].map(quoted).join(","), ...labels.map((label, row) => [quoted(label), ...values.subarray(row * keys.length, (row + 1) * keys.length)].join(","))].join("\n");
  };
  return (
    <>
      <div class="table-box" tabIndex={0} role="region" aria-label="The matrix as a table">
        {attention.queries * attention.keys <= cells ? <Whole attention={attention} keys={keys} labels={labels} /> : <Strongest attention={attention} keys={keys} labels={labels} />}
      </div>
      <p class="legend"><button type="button" class="small" onClick={() => saveText(csv(), "text/csv", `${attention.place}-head-${look.head.value}-${look.show.value}.csv`)}>CSV</button></p>
    </>
  );
}

interface Props { attention: Attention; keys: string[]; labels: string[] }

function Whole({ attention, keys, labels }: Props) {
  const look = useLook();
  const [show, dark, chosen] = [look.show.value, look.dark.value, look.cell.value];
  const { values, extent } = plane(attention, look.head.value, show, dark, false);
  return (
    <table>
      <thead><tr><td />{keys.map((text, column) => <th scope="col" key={column} dir="auto">{text}</th>)}</tr></thead>
      <tbody>{labels.map((label, row) => (
        <tr key={row}><th scope="row" dir="auto">{label}</th>{keys.map((_, column) => {
          const value = values[row * keys.length + column];
          const parts = Number.isNaN(value) ? null : rgb(along(show, value, extent), dark);
          return (
            <td key={column} data-row={row} data-column={column} class={row === chosen.row && column === chosen.column ? "chosen" : ""} style={parts ? { background: css(parts), color: readable(parts) } : {}}
              onClick={() => look.choose({ row, column })}>{parts ? number(value) : "\u00b7"}</td>
          );
        })}</tr>))}
      </tbody>
    </table>
  );
}

function Strongest({ attention, keys, labels }: Props) {
  const look = useLook();
  const { row: at } = look.cell.value;
  const from = Math.max(0, Math.min(at - page / 2, attention.queries - page));
  return (
    <table>
      <caption>Queries {from} to {Math.min(from + page, attention.queries) - 1} of {attention.queries}: the five strongest keys of each</caption>
      <thead><tr><th scope="col">query</th>{[1, 2, 3, 4, 5].map((rank) => <th scope="col" key={rank}>key {rank}</th>)}</tr></thead>
      <tbody>{labels.slice(from, from + page).map((label, i) => {
        const { weights } = attention.row(look.head.value, from + i);
        return (
          <tr key={from + i} class={from + i === at ? "chosen" : ""}><th scope="row" dir="auto">{from + i} {label}</th>{topIndices(weights, 5).map((column) => (
            <td key={column}><button type="button" class="column" onClick={() => look.choose({ row: from + i, column })}><bdi>{keys[column]}</bdi> <span class="muted">{column}</span> {percent(weights[column])}</button></td>
          ))}</tr>
        );
      })}</tbody>
    </table>
  );
}
