// Which source word each target word attends to, for every hypothesis of the beam.
import { useEffect, useMemo, useState } from "preact/hooks";
import { readTensor, type Tensor } from "../data/blocks";
import { horizontalDrawing } from "../draw/lines";
import { palette } from "../draw/palette";
import { number, percent, rightToLeft, displayToken } from "../numbers";
import { useLook } from "../state";
import { Exports, Picture } from "./Picture";

interface Link { above: number; below: number; weight: number }

export function AlignmentView() {
  const look = useLook();
  const run = look.run.value;
  const [which, setWhich] = useState(-1);
  const [weights, setWeights] = useState<Tensor | null>(null);
  const { alignment, hypotheses = [], answers } = run.data;
  useEffect(() => {
    setWhich(-1);
    const found = alignment ? readTensor(alignment.weights, run.source) : null;
    if (found instanceof Promise) void found.then(setWeights); else setWeights(found);
  }, [run]);
  const source = run.axis("source")?.tokens ?? [];
  const hypothesis = hypotheses[which];
  const below = hypothesis ? hypothesis.tokens : answers.map((answer) => answer.chosen[0]);
  const chosen = hypothesis ? null : look.cell.value.row;
  const dark = look.dark.value;
  const drawing = useMemo(() => {
    const colours = palette(dark);
    const marked = new Map<number, string>();
    if (!hypothesis) {
      for (const at of alignment?.omitted ?? []) marked.set(at, colours.bad);
      for (const at of alignment?.repeated ?? []) marked.set(at, colours.query);
    }
    return horizontalDrawing({
      above: source.map(displayToken), below: below.map(displayToken), links: buildLinks(hypothesis?.alignment, weights, source.length, below.length), chosenBelow: chosen, marked, colours,
      rightAbove: rightToLeft(source), rightBelow: rightToLeft(below),
    });
  }, [run, which, weights, chosen, dark]);
  if (!alignment && !hypotheses.length) return <section><h2>No alignment: this model has no cross-attention.</h2></section>;
  const choose = (event: MouseEvent) => {
    const inside = ([x, wide]: [number, number]) => event.offsetX >= x - 6 && event.offsetX <= x + wide + 6;
    const at = event.offsetY > 100 ? drawing.boxes.below.findIndex(inside) : -1;
    if (at >= 0 && !hypothesis) look.chooseAnswer(at);
  };
  const move = (event: KeyboardEvent) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || chosen === null) return;
    event.preventDefault();
    look.chooseAnswer(Math.max(0, Math.min(answers.length - 1, chosen + (rightToLeft(below) ? -step : step))));
  };
  return (
    <section class="alignment" aria-labelledby="alignment-title">
      <h2 id="alignment-title">Word alignment</h2>
      {alignment && <p class="muted">By the heads whose attention looks most like an alignment: {alignment.heads.map(([place, head, score]) => `${place} head ${head} (${number(score, 2)})`).join(", ")}.</p>}
      <div class="picture scrolls">
        <Picture drawing={drawing} class="across" tabIndex={0} role="application" aria-roledescription="alignment" aria-label="Source above, answer below; a line joins each word to the source words it attends to. Arrow keys move; the table holds the same links." onClick={choose} onKeyDown={move} />
      </div>
      <div class="legend">
        {alignment?.omitted.length && !hypothesis ? <p class="bad">Not attended to: <bdi>{alignment.omitted.map((at) => displayToken(source[at])).join(" ")}</bdi></p> : null}
        {alignment?.repeated.length && !hypothesis ? <p class="query">Attended to more than once: <bdi>{alignment.repeated.map((at) => displayToken(source[at])).join(" ")}</bdi></p> : null}
        <Exports drawing={() => drawing} name="alignment" />
      </div>
      {hypotheses.length > 0 && <Beam which={which} onChoose={setWhich} />}
      <details><summary>The links as a table</summary>
        <div class="table-box" tabIndex={0} role="region" aria-label="The links as a table">
          <table><thead><tr><th scope="col">answer</th><th scope="col">attends to</th></tr></thead>
            <tbody>{below.map((text, at) => (
              <tr key={at}><th scope="row" dir="auto">{displayToken(text)}</th><td class="left">{buildLinks(hypothesis?.alignment, weights, source.length, below.length).filter((link) => link.below === at && link.weight >= 0.05)
                .sort((a, b) => b.weight - a.weight).slice(0, 5).map((link) => <span key={link.above}><bdi>{displayToken(source[link.above])}</bdi>{hypothesis ? "" : ` ${percent(link.weight)}`} {" "}</span>)}</td></tr>))}
            </tbody></table>
        </div>
      </details>
    </section>
  );
}

function buildLinks(given: [number, number][] | undefined, weights: Tensor | null, above: number, below: number): Link[] {
  if (given) return given.map(([source, target]) => ({ above: source, below: target, weight: 1 }));
  const found: Link[] = [];
  if (!weights) return found;
  const [rows, columns] = weights.shape;
  for (let row = 0; row < Math.min(rows, below); row += 1) {
    for (let column = 0; column < Math.min(columns, above); column += 1) {
      const weight = weights.data[row * columns + column];
      if (weight > 0.04) found.push({ above: column, below: row, weight });
    }
  }
  return found;
}

function Beam({ which, onChoose }: { which: number; onChoose: (which: number) => void }) {
  const look = useLook();
  const { hypotheses = [] } = look.run.value.data;
  return (
    <>
      <h3>Other candidates (beam)</h3>
      <div class="table-box" tabIndex={0} role="region" aria-label="Hypotheses of the beam">
        <table>
          <thead><tr><th scope="col">answer</th><th scope="col">score</th><th scope="col">log-probability</th></tr></thead>
          <tbody>
            <tr class={which === -1 ? "chosen" : ""}><th scope="row"><button type="button" class="column" aria-pressed={which === -1} onClick={() => onChoose(-1)}>the answer, with its weights</button></th><td /><td /></tr>
            {hypotheses.map((one, i) => (
              <tr key={i} class={which === i ? "chosen" : ""}>
                <th scope="row"><button type="button" class="column" aria-pressed={which === i} onClick={() => onChoose(i)}><bdi>{one.text || one.tokens.join(" ")}</bdi></button></th>
                <td>{one.score === null ? "" : number(one.score)}</td><td>{one.log_probability === null ? "" : number(one.log_probability)}</td>
              </tr>))}
          </tbody>
        </table>
      </div>
    </>
  );
}
