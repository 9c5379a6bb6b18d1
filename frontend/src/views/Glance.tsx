// In one glance, for the chosen token in the chosen head: looked for, offered, took.
import { ranked } from "../data/run";
import { number, percent, shown } from "../numbers";
import { useLook } from "../state";

interface Item { name: string; share: number; text: string; column: number }

export function Glance() {
  const look = useLook();
  const attention = look.attention.value;
  if (!attention || !look.ready.value || !attention.exact) return null;
  const run = look.run.value;
  const head = look.head.value;
  const { row } = look.seen.value;
  const keys = run.keyTokens(attention);
  const { scores, weights } = attention.row(head, row);
  const off = attention.changes?.off(head);
  const flow = Float32Array.from(weights, (weight, column) => (weight > 0 && !off ? weight * attention.norm(head, column) : 0));
  const moved = flow.reduce((a, b) => a + b, 0);
  const seen = (column: number) => !Number.isNaN(scores[column]);
  const best = ranked(scores, 3);
  const [high, low] = [scores[best[0]], Math.min(...Array.from(scores).filter((score) => !Number.isNaN(score)))];
  const looked = best.map((column) => item(keys, column, high > low ? (scores[column] - low) / (high - low) : 1, number(scores[column], 1)));
  const offered = ranked(weights, 3).filter(seen).map((column) => item(keys, column, weights[column], percent(weights[column])));
  const took = ranked(flow, 3).filter(seen).map((column) => item(keys, column, moved > 0 ? flow[column] / moved : 0, moved > 0 ? percent(flow[column] / moved) : "0"));
  const answer = run.answersFor(attention)?.[row];
  const asks = run.queryTokens(attention)[row];
  const why = answer && look.explanationAt(row + 1);
  const names = (side: string) => (side === "source" ? run.axis("source") : run.axis("target") ?? run.axis("source"))?.tokens ?? [];
  return (
    <section class="glance" aria-label="The chosen token in this head">
      <Part name="query" title="Looked for" says={<><b dir="auto">{shown(asks)}</b>{answer ? <> asks, before <b dir="auto">{shown(answer.chosen[0])}</b>; best matches by score</> : " asks; best matches by score"}</>} items={looked} />
      <span class="arrow" aria-hidden="true">{"\u2192"}</span>
      <Part name="key" title="Attention" says="the share of the attention that each key gets" items={offered} />
      <span class="arrow" aria-hidden="true">{"\u2192"}</span>
      <Part name="value" title="Took" says={off ? "nothing: this head is switched off" : "what the values then really moved"} items={took} />
      {why && (
        <>
          <span class="arrow" aria-hidden="true">{"\u2192"}</span>
          <div class="part">
            <h3>So it said <b class="outcome" dir="auto">{shown(why.token)}</b> <span class="muted">{percent(why.p)}</span></h3>
            <p class="muted says">less sure of it once no head could see</p>
            <ol>{why.effects.slice(0, 3).map((effect) => (
              <li key={`${effect.side} ${effect.key}`} class="glance-item">
                <span class="glance-name" dir="auto"><bdi>{shown(names(effect.side)[effect.key] ?? "")}</bdi> <span class="muted">{effect.key}</span></span>
                <span class="glance-bar" style={{ "--share": `${effect.p_without * 100}%` }} />
                <span class="glance-number">{percent(effect.p_without)}</span>
              </li>))}
            </ol>
          </div>
        </>
      )}
    </section>
  );
}

const item = (keys: string[], column: number, share: number, text: string): Item => ({ name: shown(keys[column]), share, text, column });

function Part({ name, title, says, items }: { name: string; title: string; says: preact.ComponentChildren; items: Item[] }) {
  const look = useLook();
  return (
    <div class={`part of-${name}`}>
      <h3 class={name}>{title} <span class="muted">{name}</span></h3>
      <p class="muted says">{says}</p>
      <ol>
        {items.map(({ name: text, share, text: figure, column }) => (
          <li key={column}>
            <button type="button" class="glance-item" onClick={() => look.choose({ row: look.seen.value.row, column })}>
              <span class="glance-name" dir="auto"><bdi>{text}</bdi> <span class="muted">{column}</span></span>
              <span class="glance-bar" style={{ "--share": `${Math.max(0, Math.min(1, share)) * 100}%` }} />
              <span class="glance-number">{figure}</span>
            </button>
          </li>
        ))}
      </ol>
    </div>
  );
}
