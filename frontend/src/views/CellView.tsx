// One cell: how one query matches one key, and what the key contributes, number by number.
import { useMemo, useState } from "preact/hooks";
import type { Attention, Row, Score } from "../data/attention";
import type { Colour } from "../draw/palette";
import { palette } from "../draw/palette";
import { sharesDrawing, stripDrawing } from "../draw/strips";
import { displayTokens, largest, long, number, displayToken, signed, tiny } from "../numbers";
import { useLook } from "../state";
import { Picture, Token, useWidth } from "./Picture";

interface Facts {
  attention: Attention; head: number; row: number; column: number; whole: Row; score: Score;
  query: Float32Array; key: Float32Array; value: Float32Array; given: Float32Array; context: Float64Array; used: Float32Array;
}

export function CellView() {
  const look = useLook();
  const attention = look.attention.value;
  if (!attention || !look.ready.value || !attention.exact) return null;
  const head = look.head.value;
  const { row, column } = look.seen.value;
  const whole = attention.row(head, row);
  const weight = whole.weights[column];
  const value = attention.vector("value", head, column);
  const facts: Facts = {
    attention, head, row, column, whole, value, score: attention.score(head, row, column),
    query: attention.vector("query", head, row), key: attention.vector("key", head, column), given: value.map((part) => part * weight),
    context: attention.context(head, whole.weights), used: attention.vector("context", head, row),
  };
  const run = look.run.value;
  return (
    <section class="cell" aria-labelledby="cell-title">
      <h2 id="cell-title"><Token text={displayToken(run.queryTokens(attention)[row])} name="query" /> attends to <Token text={displayToken(run.keyTokens(attention)[column])} name="key" /></h2>
      <ol class="steps">
        <Match {...facts} />
        <ScoreStep {...facts} />
        <Softmax {...facts} />
        <Contribution {...facts} />
        <Context {...facts} />
      </ol>
      <EveryNumber {...facts} />
    </section>
  );
}

interface StripProps { name: Colour; text: string; values: ArrayLike<number>; extent: number; behind?: ArrayLike<number> }

/** One vector as bars; beside it its length, or the one number that the pointer marks in all strips at once. */
function Strip({ name, text, values, extent, behind }: StripProps) {
  const look = useLook();
  const [box, width] = useWidth<HTMLDivElement>(300);
  const marked = look.dimension.value;
  const dark = look.dark.value;
  const drawing = useMemo(() => stripDrawing(values, extent, name, width, 34, marked, palette(dark), behind), [values, extent, name, width, marked, dark, behind]);
  const reading = marked !== null && marked < values.length ? `${marked}: ${signed(values[marked])}` : name === "ink" ? "" : `length ${number(long(values), 2)}`;
  return (
    <div class="strip-row">
      <span class={`strip-name ${name}`}>{text}</span>
      <div class="strip-box" ref={box}>
        <Picture drawing={drawing} aria-hidden="true" class="strip" onPointerLeave={() => { look.dimension.value = null; }}
          onPointerMove={(event) => { look.dimension.value = Math.max(0, Math.min(values.length - 1, Math.floor((event.offsetX / width) * values.length))); }} />
      </div>
      <span class="reading">{reading}</span>
    </div>
  );
}

function Match({ query, key, score }: Facts) {
  const extent = Math.max(largest(query), largest(key));
  const product = useMemo(() => query.map((part, i) => part * key[i]), [query, key]);
  return (
    <li>
      <h3>Match</h3>
      <Strip name="query" text="query" values={query} extent={extent} />
      <Strip name="key" text="key" values={key} extent={extent} />
      {score.given ? <p class="line">This score is not a dot product; a small network computes it from the two.</p> : (
        <>
          <Strip name="ink" text="product" values={product} extent={largest(product)} />
          <p class="line">sum of the {query.length} products, query {"\u00b7"} key = <b class="result">{number(score.product)}</b></p>
        </>
      )}
    </li>
  );
}

function ScoreStep({ attention, score, head, row, column }: Facts) {
  if (!score.visible) {
    const why = attention.changes?.hides(head, row, column) ? "hidden by your change" : "hidden by the mask: this query may not attend here";
    return <li><h3>Score</h3><p class="line">{why}</p></li>;
  }
  if (score.given) return <li><h3>Score</h3><p class="line">score <b class="result">{number(score.total)}</b></p></li>;
  const { softcap, scale } = attention.data;
  const adds = attention.tensors.score_bias || attention.tensors.score_bias_by_distance;
  return (
    <li>
      <h3>Score</h3>
      <p class="line">
        {number(score.product)} {"\u00d7"} {number(scale, 4)}{softcap ? `, capped at \u00b1${softcap}: ${number(score.capped)}` : ""}{adds ? ` ${signed(score.added)} for the position` : ""} = <b class="result">{number(score.total)}</b>
        {attention.data.rule?.causal || attention.tensors.visible || attention.data.rule?.window ? <span class="muted"> {" "}(visible to this query)</span> : null}
      </p>
    </li>
  );
}

function Softmax({ attention, score, whole, column }: Facts) {
  const look = useLook();
  const [box, width] = useWidth<HTMLDivElement>(300);
  const dark = look.dark.value;
  const tokens = look.run.value.keyTokens(attention);
  const drawing = useMemo(() => sharesDrawing(displayTokens(tokens), whole.weights, column, width, palette(dark)), [tokens, whole, column, width, dark]);
  const { greatest, sum } = whole;
  return (
    <li>
      <h3>Weight among all keys</h3>
      <div class="strip-box" ref={box}><Picture drawing={drawing} aria-hidden="true" /></div>
      <p class="line">
        {score.visible ? `e^(${number(score.total, 2)} ${greatest < 0 ? "+" : "\u2212"} ${number(Math.abs(greatest), 2)}) \u00f7 ${number(sum)} = ` : "weight "}
        <b class="result">{number(whole.weights[column])}</b>{attention.tensors.sinks ? " (a sink gets the rest)" : ""}
      </p>
    </li>
  );
}

function Contribution({ value, given, whole, column, attention, head }: Facts) {
  const extent = largest(value);
  const from = attention.changes?.valueOf(head, column) ?? column;
  return (
    <li>
      <h3>Contribution</h3>
      {from !== column && <p class="line">after your change this key has the value of position {from}</p>}
      <Strip name="value" text="value" values={value} extent={extent} />
      <Strip name="value" text={"\u00d7 weight"} values={given} extent={extent} />
      <p class="line">each of the {value.length} numbers of the value {"\u00d7"} {number(whole.weights[column])}</p>
    </li>
  );
}

function Context({ attention, head, row, column, whole, given, context, used }: Facts) {
  let difference = 0;
  for (let i = 0; i < used.length; i += 1) difference = Math.max(difference, Math.abs(used[i] - context[i]));
  const flow = whole.weights.map((weight, i) => (weight > 0 ? weight * attention.norm(head, i) : 0));
  const rank = flow.filter((one) => one > flow[column]).length + 1;
  const off = attention.changes?.off(head);
  const certified = attention.data.certified?.[head];
  return (
    <li>
      <h3>Sum</h3>
      <Strip name="context" text="context" values={context} extent={Math.max(largest(context), largest(given))} behind={given} />
      {off ? <p class="line">This head is switched off: its output is {off === "mean" ? "its mean" : "0"}.</p> : (
        <p class="line">the sum over all {attention.keys} keys; grey: the part of this key. It contributes <b class="result">{number(flow[column])}</b> {attention.tensors.value_norms ? "(length of weight \u00d7 value \u00d7 W_O)" : "(length of weight \u00d7 value)"}, number {rank} of {attention.keys}.</p>
      )}
      <p class="line muted">{attention.changes ? `your change moves the context of query ${row} by ${number(distance(context, used))}; its length was ${number(long(used))}`
        : used.length ? `differs from the model's own context by at most ${tiny(difference)}`
          : certified !== undefined ? `when this page was written, differed from the model's own context by at most ${tiny(certified)}` : ""}</p>
    </li>
  );
}

function distance(context: Float64Array, used: Float32Array): number {
  return long(context.map((part, i) => part - (used[i] ?? part)));
}

function EveryNumber({ query, key, value, given, context, used, score }: Facts) {
  const [open, setOpen] = useState(false);
  const columns: [string, string, (i: number) => number][] = [
    ["query", "query", (i) => query[i]], ["key", "key", (i) => key[i]],
    ...(score.given ? [] : [["product", "", (i: number) => query[i] * key[i]] as [string, string, (i: number) => number]]),
    ["value", "value", (i) => value[i]], ["\u00d7 weight", "value", (i) => given[i]], ["context", "context", (i) => context[i]],
    ...(used.length ? [["model's", "context", (i: number) => used[i]] as [string, string, (i: number) => number]] : []),
  ];
  const length = Math.max(query.length, key.length, value.length);
  return (
    <details open={open} onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Every number</summary>
      {open && (
        <div class="table-box" tabIndex={0} role="region" aria-label="Every number of this cell">
          <table>
            <thead><tr><th scope="col"><span class="unseen">dimension</span></th>{columns.map(([text, name]) => <th scope="col" class={name} key={text}>{text}</th>)}</tr></thead>
            <tbody>{Array.from({ length }, (_, i) => (
              <tr key={i}><th scope="row">{i}</th>{columns.map(([text, , of]) => <td key={text}>{of(i) === undefined ? "" : number(of(i), 4)}</td>)}</tr>))}
            </tbody>
          </table>
        </div>
      )}
    </details>
  );
}
