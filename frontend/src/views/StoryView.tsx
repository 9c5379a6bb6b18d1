// One prediction over all heads: which tokens match, get attention, contribute, and matter.
import { useState } from "preact/hooks";
import { buildStory, type Entry } from "../data/story";
import { percent, displayToken } from "../numbers";
import { useLook } from "../state";

const first = 24;

export function StoryView() {
  const look = useLook();
  const [all, setAll] = useState(false);
  const run = look.run.value;
  const { answers } = run.data;
  if (!answers.length) return <section class="story-view"><h2>This model predicts no tokens, so there is nothing to explain here.</h2></section>;
  if (!look.ready.value) return <p class="muted" role="status">Loading the numbers</p>;
  const row = Math.min(look.cell.value.row, answers.length - 1);
  const position = row + 1;
  const explanation = look.explanationAt(position);
  const { entries, heads } = buildStory(run, row, explanation);
  const { chosen: [token, share] } = answers[row];
  const most = { weight: greatest(entries, "weight"), flow: greatest(entries, "flow") };
  const listed = all ? entries : entries.slice(0, first);
  return (
    <section class="story-view" aria-labelledby="story-title">
      <div class="story-top">
        <button type="button" class="small" disabled={row === 0} onClick={() => look.chooseAnswer(row - 1)} aria-label="Previous token">{"\u2190"}</button>
        <h2 id="story-title">Why <b dir="auto" class="story-token">{displayToken(token)}</b> was predicted <span class="muted">with probability {percent(share)}</span></h2>
        <button type="button" class="small" disabled={row === answers.length - 1} onClick={() => look.chooseAnswer(row + 1)} aria-label="Next token">{"\u2192"}</button>
      </div>
      <p class="muted">Each row is a token that may be attended to, over the {heads} heads that lead to this prediction. {explanation ? "At the right: the probability of the prediction if that token is hidden from every head, or if only its key or its value is averaged out." : ""}</p>
      {!explanation && (look.edits.value.length ? <p class="muted">Undo your changes to compute what each token contributed.</p> : look.host.ask
        ? <p><button type="button" class="do" onClick={() => void look.requestExplanation(position)}>Compute the effect of each token</button></p>
        : <p class="muted">The effect of hiding each token was not computed for this file; <code>qkv look --serve</code> does it on demand.</p>)}
      <div class="table-box tall" tabIndex={0} role="region" aria-label="The story as a table">
        <table class="story-table">
          <thead>
            <tr><th scope="col">token</th><th scope="col" class="query">best match<small>of how many heads</small></th><th scope="col" class="key">attention<small>mean weight</small></th><th scope="col" class="value">contribution<small>share over all heads</small></th>
              {explanation && <><th scope="col">if this token is hidden<small>probability of {displayToken(explanation.token)} (now {percent(explanation.p)})</small></th><th scope="col">key averaged out<small>probability</small></th><th scope="col">value averaged out<small>probability</small></th><th scope="col">strongest single head<small>probability if hidden from it alone</small></th></>}
              {!explanation && <th scope="col">strongest single head<small>its weight</small></th>}</tr>
          </thead>
          <tbody>{listed.map((entry) => <Line key={`${entry.side} ${entry.position}`} entry={entry} heads={heads} most={most} p={explanation?.p} row={row} />)}</tbody>
        </table>
      </div>
      {entries.length > first && <p><button type="button" class="small" onClick={() => setAll(!all)}>{all ? `Only the first ${first}` : `All ${entries.length} tokens`}</button></p>}
    </section>
  );
}

const greatest = (entries: Entry[], name: "weight" | "flow") => Math.max(1e-9, ...entries.map((entry) => entry[name]));

function Line({ entry, heads, most, p, row }: { entry: Entry; heads: number; most: { weight: number; flow: number }; p?: number; row: number }) {
  const look = useLook();
  const run = look.run.value;
  const { by } = entry;
  const see = (at: number, head: number) => {
    look.choose({ at, head, row: Math.min(row, run.attentions[at].queries - 1), column: entry.position });
    look.tab.value = "heads";
  };
  const alone = entry.heads?.[0];
  const name = (at: number, head: number) => { const { stack, kind, layer } = run.attentions[at].data; return `${stack} ${kind} ${layer}.${head}`; };
  return (
    <tr>
      <th scope="row"><span dir="auto">{displayToken(entry.token)}</span> <span class="muted">{run.axis("target") && run.axis("source") ? entry.side === "source" ? "source" : "target" : ""} {entry.position}</span></th>
      <td><Bar share={entry.matches / heads} name="query" text={String(entry.matches)} /></td>
      <td><Bar share={entry.weight / most.weight} name="key" text={percent(entry.weight)} /></td>
      <td><Bar share={entry.flow / most.flow} name="value" text={percent(entry.flow)} /></td>
      {p !== undefined && (entry.without === undefined ? <td colSpan={4} class="muted">not computed</td> : (
        <>
          <td><Change from={p} to={entry.without} /></td>
          <td>{percent(entry.match as number)}</td>
          <td>{percent(entry.content as number)}</td>
          <td>{alone ? <button type="button" class="column" onClick={() => see(run.places.indexOf(alone[0]), alone[1])}>{name(run.places.indexOf(alone[0]), alone[1])} ({percent(alone[2])})</button>
            : <button type="button" class="column muted" onClick={() => see(by.at, by.head)}>see {name(by.at, by.head)}</button>}</td>
        </>
      ))}
      {p === undefined && <td><button type="button" class="column" onClick={() => see(by.at, by.head)}>{name(by.at, by.head)} ({percent(by.weight)})</button></td>}
    </tr>
  );
}

function Bar({ share, name, text }: { share: number; name: string; text: string }) {
  return <span class={`bar of-${name}`} style={{ "--share": `${share * 100}%` }}><span>{text}</span></span>;
}

function Change({ from, to }: { from: number; to: number }) {
  const [low, high] = [Math.min(from, to), Math.max(from, to)];
  return (
    <span class={`change ${to < from ? "down" : "up"}`} style={{ "--low": `${low * 100}%`, "--high": `${high * 100}%` }}>
      <span class="change-bar" aria-hidden="true" /><span>{percent(from)} {"\u2192"} <b>{percent(to)}</b></span>
    </span>
  );
}
