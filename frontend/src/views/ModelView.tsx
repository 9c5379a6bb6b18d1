// The whole model: every head at once, and its statistics as a table.
import { short } from "../numbers";
import { saveText } from "../draw/svg";
import { useLook } from "../state";
import { descriptions, Heads, sortHeads } from "./Heads";

export function ModelView() {
  const look = useLook();
  const run = look.run.value;
  const list = sortHeads(run.attentions, look.kinds.value, look.sort.value);
  const names = [...new Set(run.attentions.flatMap((one) => Object.keys(one.data.statistics ?? {})))];
  const csv = () => [["place", "head", ...names].join(","), ...list.map(({ attention, head }) => [attention.place, head, ...names.map((name) => attention.data.statistics?.[name]?.[head] ?? "")].join(","))].join("\n");
  return (
    <div class="model-view">
      <div>
        {run.data.summary?.length ? <details class="summary"><summary>About {run.data.name || "the model"}</summary><ul>{run.data.summary.map((one) => <li key={one}>{one}</li>)}</ul></details> : null}
        <Heads size={72} />
      </div>
      {names.length > 0 && (
        <section>
          <h2>Statistics of every head <button type="button" class="small" onClick={() => saveText(csv(), "text/csv", "heads.csv")}>CSV</button></h2>
          <p class="muted">Means over the queries of this run. Choose a column to sort by it; choose a head to see it.</p>
          <div class="table-box tall" tabIndex={0} role="region" aria-label="Statistics of heads">
            <table>
              <thead><tr><th scope="col">head</th>{names.map((name) => (
                <th scope="col" key={name} aria-sort={look.sort.value === name ? "descending" : undefined}>
                  <button type="button" class="column" title={descriptions[name]} onClick={() => { look.sort.value = look.sort.value === name ? "place" : name; }}>{name}{look.sort.value === name ? " \u2193" : ""}</button>
                </th>))}</tr></thead>
              <tbody>{list.map(({ at, head, attention }) => (
                <tr key={`${at} ${head}`} class={at === look.at.value && head === look.head.value ? "chosen" : ""}>
                  <th scope="row"><button type="button" class="column" onClick={() => { look.choose({ at, head }); look.tab.value = run.long ? "context" : "heads"; }}>{attention.place} {head}</button></th>
                  {names.map((name) => <td key={name}>{short(attention.data.statistics?.[name]?.[head])}</td>)}
                </tr>))}
              </tbody>
            </table>
          </div>
        </section>
      )}
    </div>
  );
}
