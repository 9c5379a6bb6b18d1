// The input and the answer, whose tokens can be chosen.
import { useComputed } from "@preact/signals";
import { useMemo } from "preact/hooks";
import type { Pen } from "../draw/pen";
import { percent, rightToLeft, displayToken } from "../numbers";
import { useLook } from "../state";
import type { Answer, Axis } from "../protocol";
import { drawToCanvas } from "./AxisImage";
import { Picture, useTensor } from "./Picture";

const most = 160;

export function Exchange() {
  const look = useLook();
  const run = look.run.value;
  const source = run.axis("source");
  const { answers } = run.data;
  const target = run.axis("target");
  const { answer_start: begin = 1 } = run.data;
  const prompted = !source && target && answers.length && begin > 1;
  return (
    <section class="exchange" aria-label="Input and answer">
      {source ? <Read title="Input" axis={source} /> : target && (prompted || !answers.length) ? <Read title="Input" axis={target} count={prompted ? begin : undefined} /> : null}
      {source && target && run.towers && <Read title="Second input" axis={target} />}
      {answers.length > 0 && <Answers answers={answers} begin={prompted ? begin - 1 : 0} />}
    </section>
  );
}

function Read({ title, axis, count = axis.tokens.length }: { title: string; axis: Axis; count?: number }) {
  const look = useLook();
  const attention = look.attention.value;
  const run = look.run.value;
  const { row, column } = look.cell.value;
  if (axis.kind === "image" || axis.kind === "audio") {
    const words = axis.image ? `an image of ${axis.image.rows} \u00d7 ${axis.image.columns} patches` : `${axis.audio?.seconds.toFixed(1)} s of audio in ${axis.tokens.length} positions`;
    return <div class="read"><h2>{title}</h2>{axis.image && <Media axis={axis} />}<p>{words}</p></div>;
  }
  const isKeys = attention && run.axis(attention.data.keys) === axis;
  const isQueries = attention && run.axis(attention.data.queries) === axis;
  const from = count > most ? Math.max(0, Math.min((isKeys ? column : row) - most / 2, count - most)) : 0;
  return (
    <div class="read">
      <h2>{title}{count > most ? ` (${count.toLocaleString("en")} tokens; shown: ${from} to ${from + most - 1})` : ""}</h2>
      <ol class={count > 40 ? "tokens many" : "tokens"} dir={rightToLeft(axis.tokens) ? "rtl" : undefined} tabIndex={count > 40 ? 0 : undefined} aria-label={title}>
        {axis.tokens.slice(from, Math.min(from + most, count)).map((text, i) => (
          <li key={from + i} dir="auto" class={`${isKeys && from + i === column ? "is-key" : ""} ${isQueries && from + i === row ? "is-query" : ""}`}>{displayToken(text)}</li>
        ))}
      </ol>
    </div>
  );
}

/** The image as it is, without the weights of a head. */
function Media({ axis }: { axis: Axis }) {
  const look = useLook();
  const { pixels } = axis.image as NonNullable<Axis["image"]>;
  const tensor = useTensor(pixels, look.run.value.source);
  const drawing = useMemo(() => {
    const [high, wide] = pixels.shape;
    const scale = 96 / Math.max(high, wide);
    const picture = tensor && drawToCanvas(tensor);
    return { width: wide * scale, height: high * scale, paint(pen: Pen) { if (picture) pen.image(picture, 0, 0, wide * scale, high * scale); } };
  }, [tensor]);
  return <Picture drawing={drawing} class="seen" role="img" aria-label="The input image" />;
}

/** The answer from the token `begin` on: those before it are a prompt. */
function Answers({ answers, begin }: { answers: Answer[]; begin: number }) {
  const look = useLook();
  const chosen = useComputed(() => (look.answers() ? look.cell.value.row : -1)).value;
  const before = look.edited.value ? look.base.value.data.answers : null;
  const many = answers.length - begin > 16;
  const from = Math.max(begin, Math.min(chosen - most / 2, answers.length - most));
  return (
    <div class="said">
      <h2>Answer{before ? ", with your changes" : ""}{answers.length > begin + 1 ? <span class="hint"> choose a token to see why it was predicted</span> : null}</h2>
      <ol class={many ? "answers many" : "answers"} dir={rightToLeft(answers.slice(begin, begin + 200).map((one) => one.chosen[0])) ? "rtl" : undefined} tabIndex={many ? 0 : undefined} aria-label="Answer">
        {answers.slice(from, from + most).map((answer, i) => <One key={from + i} answer={answer} row={from + i} chosen={chosen === from + i} before={before?.[from + i]} />)}
      </ol>
    </div>
  );
}

function One({ answer: { chosen: [text, share], best }, row, chosen, before }: { answer: Answer; row: number; chosen: boolean; before?: Answer }) {
  const look = useLook();
  const unsure = best.length > 0 && best[0][0] !== text;
  const others = best.filter(([other]) => other !== text).slice(0, 2);
  const changed = before && (before.chosen[0] !== text || Math.abs(before.chosen[1] - share) > 0.005);
  return (
    <li>
      <button type="button" class={`answer${unsure ? " unsure" : ""}${changed ? " changed" : ""}`} aria-pressed={chosen} onClick={() => look.chooseAnswer(row)}
        title={best.map(([other, part]) => `${other} ${percent(part)}`).join("   ")}>
        <span class="answer-text" dir="auto">{displayToken(text)}</span>
        <span class="answer-bar" style={{ "--share": `${share * 100}%` }} />
        <span class="answer-share">{percent(share)}</span>
        {changed && <span class="answer-other was"><span dir="auto">was {displayToken(before.chosen[0])}</span><span>{percent(before.chosen[1])}</span></span>}
        {others.map(([other, part]) => <span class="answer-other" key={other}><span dir="auto">{displayToken(other)}</span><span>{percent(part)}</span></span>)}
      </button>
    </li>
  );
}
