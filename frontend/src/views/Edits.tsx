// Changes made on the page: hide a key, swap two values, switch off a head; the answer after them, and the same in Python.
import { useState } from "preact/hooks";
import type { Edit } from "../protocol";
import { toPython, everywhere, fits, describeEdit } from "../data/changes";
import { long, number, percent, displayToken } from "../numbers";
import { useLook, type Look } from "../state";

/** The changes that can be made at the chosen cell. */
export function EditButtons() {
  const look = useLook();
  const [swapping, setSwapping] = useState<number | null>(null);
  const attention = look.attention.value;
  if (!attention) return null;
  const run = look.run.value;
  const keys = run.keyTokens(attention);
  const { column } = look.cell.value;
  const [place, head] = [attention.place, look.head.value];
  const key = displayToken(keys[column]);
  const has = look.edits.value.some((edit) => edit.kind === "ablate" && edit.place === place && edit.head === head);
  return (
    <div class="edits-bar" role="group" aria-label="Change the model">
      <span class="muted">What if you</span>
      <button type="button" class="small" onClick={() => add(look, { kind: "knock_out", keys: [column], place, head })}>hide <bdi>{key}</bdi> from this head</button>
      <button type="button" class="small" onClick={() => add(look, { kind: "knock_out", keys: [column], place: run.towers ? everywhere([place]) : undefined })}>hide it from every head</button>
      {swapping === null ? <button type="button" class="small" onClick={() => setSwapping(column)}>swap its value with {"\u2026"}</button>
        : swapping === column ? <button type="button" class="small" aria-live="polite" onClick={() => setSwapping(null)}>now choose another key ({"\u00d7"})</button>
          : <button type="button" class="small" onClick={() => { add(look, { kind: "swap_values", place, key: swapping, with: column, head }); setSwapping(null); }}>swap the values of <bdi>{displayToken(keys[swapping] ?? "")}</bdi> and <bdi>{key}</bdi></button>}
      <button type="button" class="small" aria-pressed={has} onClick={() => (has ? remove(look, (edit) => edit.kind === "ablate" && edit.place === place && edit.head === head) : add(look, { kind: "ablate", place, head, mode: "zero" }))}>switch this head off</button>
    </div>
  );
}

const add = (look: Look, edit: Edit) => {
  const clean = JSON.parse(JSON.stringify(edit)) as Edit;
  if (look.edits.value.some((one) => JSON.stringify(one) === JSON.stringify(clean))) return;
  void look.edit([...look.edits.value, clean]);
};
const remove = (look: Look, which: (edit: Edit) => boolean) => void look.edit(look.edits.value.filter((edit) => !which(edit)));

export function EditsPanel() {
  const look = useLook();
  const edits = look.edits.value;
  if (!edits.length) return null;
  const base = look.base.value;
  const tokenOf = (side: "keys" | "queries", place: string | undefined, at: number) => {
    const attention = base.attentions.find((one) => place && fits(place, one.place)) ?? base.attentions.filter((one) => one.data.kind === "cross").at(-1) ?? base.attentions[0];
    return displayToken((side === "keys" ? base.keyTokens(attention) : base.queryTokens(attention))[at] ?? String(at));
  };
  const code = look.edited.value?.data.code || toPython(edits, base.data.attentions, base.data.code);
  return (
    <section class="edits" aria-label="Your changes">
      <div>
        <h2>Your changes</h2>
        <ul>{edits.map((edit, i) => (
          <li key={i}><span dir="auto">{describeEdit(edit, tokenOf)}</span> <button type="button" class="small" aria-label={`Undo: ${describeEdit(edit, tokenOf)}`} onClick={() => void look.edit(edits.filter((_, at) => at !== i))}>undo</button></li>))}
        </ul>
        <button type="button" class="small" onClick={() => void look.edit([])}>Undo all</button>
      </div>
      <div>{look.host.ask ? <Outcome /> : <Within />}</div>
      <div>
        <h2>The same in Python <button type="button" class="small" onClick={() => void navigator.clipboard?.writeText(code)}>Copy</button></h2>
        <pre tabIndex={0} role="region" aria-label="The same in Python">{code}</pre>
      </div>
    </section>
  );
}

/** The model's answer before and after the changes. */
function Outcome() {
  const look = useLook();
  const after = look.edited.value?.data.answers;
  const before = look.base.value.data.answers;
  if (!after) return <p class="muted">{look.busy.value ? "Running the model" : "No answer yet."}</p>;
  const text = (answers: typeof before) => answers.map((answer) => displayToken(answer.chosen[0])).join(" ");
  const same = text(before) === text(after);
  return (
    <>
      <h2>The answer after the change</h2>
      <p class="outcome-line"><span class="muted">before</span> <bdi>{text(before)}</bdi></p>
      <p class="outcome-line"><span class="muted">after</span> <bdi>{text(after)}</bdi>{same ? <span class="muted"> (the same tokens)</span> : null}</p>
      <div class="table-box low" tabIndex={0} role="region" aria-label="Answers before and after the change">
        <table>
          <thead><tr><th scope="col">position</th><th scope="col">before</th><th scope="col" /><th scope="col">after</th><th scope="col" /></tr></thead>
          <tbody>{Array.from({ length: Math.max(before.length, after.length) }, (_, i) => (
            <tr key={i} class={before[i]?.chosen[0] !== after[i]?.chosen[0] ? "differs" : ""}>
              <th scope="row">{i}</th><td dir="auto">{before[i] ? displayToken(before[i].chosen[0]) : ""}</td><td>{before[i] ? percent(before[i].chosen[1]) : ""}</td>
              <td dir="auto">{after[i] ? displayToken(after[i].chosen[0]) : ""}</td><td>{after[i] ? percent(after[i].chosen[1]) : ""}</td>
            </tr>))}
          </tbody>
        </table>
      </div>
    </>
  );
}

/** Without a model: what changes within the attention itself. */
function Within() {
  const look = useLook();
  const attention = look.attention.value;
  if (!attention || !attention.exact) return null;
  void look.loaded.value;
  const head = look.head.value;
  const { row } = look.cell.value;
  const now = attention.row(head, row).weights;
  const context = attention.context(head, now);
  const changes = attention.changes;
  attention.changes = null;
  const before = attention.row(head, row).weights;
  const contextBefore = attention.context(head, before);
  attention.changes = changes;
  const keys = look.run.value.keyTokens(attention);
  const order = Array.from(now.keys()).sort((a, b) => Math.max(before[b], now[b]) - Math.max(before[a], now[a])).slice(0, 6);
  const difference = long(context.map((part, i) => part - contextBefore[i]));
  return (
    <>
      <h2>The change within this head</h2>
      <p class="muted">This file contains no model: the change is recomputed within each attention, but not in the layers after it. To see the new answer, open the model with <code>qkv look --serve</code>.</p>
      {changes ? <p>The context of <b dir="auto">{displayToken(look.run.value.queryTokens(attention)[row])}</b> changes by {number(difference)}; its length was {number(long(contextBefore))}.</p> : <p>None of your changes concerns {attention.place}.</p>}
      {order.some((column) => before[column] !== now[column]) && (
        <table>
          <thead><tr><th scope="col">key</th><th scope="col">weight before</th><th scope="col">after</th></tr></thead>
          <tbody>{order.map((column) => <tr key={column}><th scope="row"><bdi>{displayToken(keys[column])}</bdi> <span class="muted">{column}</span></th><td>{percent(before[column])}</td><td>{percent(now[column])}</td></tr>)}</tbody>
        </table>
      )}
    </>
  );
}
