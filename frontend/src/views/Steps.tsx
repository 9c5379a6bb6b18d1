// An agent's steps over time: return, state and action of each, and where this query attends.
import { useMemo } from "preact/hooks";
import type { Tensor } from "../data/blocks";
import { palette, type Palette } from "../draw/palette";
import { label, type Drawing, type Pen } from "../draw/pen";
import { css, rgb } from "../draw/ramp";
import { largest, percent, displayToken, short } from "../numbers";
import type { Axis } from "../protocol";
import { useLook } from "../state";
import type { AxisProps } from "./axisProps";
import { Picture, useTensor } from "./Picture";

const left = 84; // of the names
const high = 46; // of a kind
const gap = 8;
const curves = 6; // numbers that are drawn as curves; more are drawn as rows of cells
const rows = 40; // of cells

export function Steps({ axis, weights, query, chosen, width, onChoose }: AxisProps & { width: number }) {
  const look = useLook();
  const { kinds, first_step: first, values: numbers } = axis.trajectory as NonNullable<Axis["trajectory"]>;
  const source = look.run.value.source;
  const tensors = kinds.map((kind) => useTensor(numbers[kind], source)); // the kinds of a page stay the same
  const dark = look.dark.value;
  const steps = Math.ceil(weights.length / kinds.length);
  const each = Math.max(1, Math.min(30, (Math.max(280, Math.min(width, 900)) - left - 4) / steps));
  const drawing = useMemo((): Drawing => ({
    width: left + steps * each + 4,
    height: kinds.length * (high + gap) + 16,
    paint(pen) {
      const colours = palette(dark);
      const greatest = largest(weights);
      kinds.forEach((kind, at) => {
        const top = at * (high + gap) + 2;
        pen.fillStyle = colours.key;
        for (let step = 0; step * kinds.length + at < weights.length; step += 1) {
          pen.globalAlpha = 0.7 * Math.sqrt(greatest > 0 ? weights[step * kinds.length + at] / greatest : 0);
          pen.fillRect(left + step * each, top, Math.max(1, each - (each > 6 ? 1 : 0)), high);
        }
        pen.globalAlpha = 1;
        const tensor = tensors[at];
        pen.strokeStyle = colours.line;
        pen.lineWidth = 1;
        pen.strokeRect(left - 0.5, top - 0.5, steps * each + 1, high + 1);
        if (tensor) (tensor.shape[1] > curves ? drawRows : drawCurves)(pen, tensor, top, each, colours, dark);
        pen.textBaseline = "alphabetic";
        pen.textAlign = "left";
        pen.font = label(13);
        pen.fillStyle = colours.ink;
        pen.fillText(kind, 0, top + 20);
        pen.font = label(11);
        pen.fillStyle = colours.muted;
        if (tensor) pen.fillText(range(tensor), 0, top + 36);
      });
      for (const [at, colour] of [[chosen, colours.key], [query, colours.query]] as const) {
        if (at < 0) continue;
        pen.strokeStyle = colour;
        pen.lineWidth = 2;
        pen.strokeRect(left + Math.floor(at / kinds.length) * each, (at % kinds.length) * (high + gap) + 2, Math.max(4, each - 1), high);
      }
      pen.font = label(11);
      pen.fillStyle = colours.muted;
      pen.textBaseline = "bottom";
      const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((step) => step * each >= 34) ?? 1000;
      for (let step = 0; step < steps; step += 1) {
        if ((first + step + 1) % every) continue;
        pen.textAlign = "center";
        pen.fillText(String(first + step + 1), left + (step + 0.5) * each, kinds.length * (high + gap) + 16);
      }
    },
  }), [...tensors, weights, query, chosen, dark, each]);
  const under = (event: MouseEvent) => {
    const [step, kind] = [Math.floor((event.offsetX - left) / each), Math.floor(event.offsetY / (high + gap))];
    const at = step * kinds.length + kind;
    return step >= 0 && kind < kinds.length && at < weights.length ? at : -1;
  };
  const say = (at: number) => `${displayToken(axis.tokens[at])}: ${percent(weights[at])}`;
  return (
    <figure>
      <Picture drawing={drawing} class="agent" role="img" aria-label={`The agent's steps ${first + 1} to ${first + steps}, over time: blue where this query attends. The table holds every weight.`}
        onPointerMove={(event) => { const at = under(event); event.currentTarget.title = at < 0 ? "" : say(at); }} onClick={(event) => { const at = under(event); if (at >= 0) onChoose(at); }} />
      <figcaption class="muted"><b>{say(chosen)}</b>. The agent's steps. Blue: where it looks{query >= 0 ? "; orange: the query. Choose a cell to make it the query." : "."} {describeKinds(kinds, tensors)}</figcaption>
    </figure>
  );
}

function describeKinds(kinds: string[], tensors: (Tensor | null)[]): string {
  return kinds.map((kind, at) => {
    const count = tensors[at]?.shape[1] ?? 1;
    return count > rows ? `Each ${kind}: the first ${rows} of ${count} numbers, one row each.` : count > curves ? `Each ${kind}: ${count} numbers, one row each.` : count > 1 ? `Each ${kind}: ${count} numbers, each with its own scale.` : "";
  }).join(" ").trim();
}

function extent(tensor: Tensor, number: number): [number, number] {
  const [steps, count] = tensor.shape;
  let [low, most] = [Infinity, -Infinity];
  for (let step = 0; step < steps; step += 1) {
    const value = tensor.data[step * count + number];
    if (value < low) low = value;
    if (value > most) most = value;
  }
  return [low, most];
}

function range(tensor: Tensor): string {
  if (tensor.shape[1] > 1) return `${tensor.shape[1]} numbers`;
  const [low, most] = extent(tensor, 0).map((value) => (Number.isInteger(value) ? String(value) : short(value)).replace("-", "\u2212"));
  return low === most ? low : `${low} to ${most}`;
}

/** Each number as a line of steps, in its own range. */
function drawCurves(pen: Pen, tensor: Tensor, top: number, each: number, colours: Palette): void {
  const [steps, count] = tensor.shape;
  const tones = [colours.ink, colours.value, colours.context, colours.muted, colours.good, colours.bad];
  for (let number = 0; number < count; number += 1) {
    const [low, most] = extent(tensor, number);
    const y = (value: number) => top + high - 5 - (most > low ? (value - low) / (most - low) : 0.5) * (high - 10);
    pen.strokeStyle = tones[number];
    pen.lineWidth = 1.5;
    pen.beginPath();
    for (let step = 0; step < steps; step += 1) {
      const at = y(tensor.data[step * count + number]);
      if (step) pen.lineTo(left + step * each, at); else pen.moveTo(left, at);
      pen.lineTo(left + (step + 1) * each, at);
    }
    pen.stroke();
  }
}

/** Each number as a row of cells at the lower end of its kind, so that the weights are seen above. */
function drawRows(pen: Pen, tensor: Tensor, top: number, each: number, _: Palette, dark: boolean): void {
  const [steps, count] = tensor.shape;
  const used = Math.min(rows, count);
  const tall = (high - 10) / used;
  const greatest = largest(tensor.data);
  for (let step = 0; step < steps; step += 1) {
    for (let number = 0; number < used; number += 1) {
      const value = tensor.data[step * count + number];
      pen.fillStyle = css(rgb(greatest > 0 ? value / greatest : 0, dark));
      pen.fillRect(left + step * each, top + 10 + number * tall, Math.max(1, each - (each > 6 ? 1 : 0)), Math.max(tall, 0.9));
    }
  }
}
