// Rows of bars, one for each dimension or for each key; and curves along a context.
import { topIndices } from "../data/run";
import { largest } from "../numbers";
import type { Colour, Palette } from "./palette";
import { cut, label, measureText, type Drawing, type Pen } from "./pen";

/** Bars up and down from a middle line, one for each dimension; `behind` is drawn pale under them. */
export function stripDrawing(
  values: ArrayLike<number>, extent: number, name: Colour, width: number, height: number, marked: number | null, colours: Palette, behind?: ArrayLike<number>,
): Drawing {
  const step = width / Math.max(values.length, 1);
  const middle = height / 2;
  const bars = (pen: Pen, numbers: ArrayLike<number>, style: string, opacity: number) => {
    pen.fillStyle = style;
    pen.globalAlpha = opacity;
    for (let i = 0; i < numbers.length; i += 1) {
      const tall = extent > 0 ? (Math.abs(numbers[i]) / extent) * (middle - 1) : 0;
      pen.fillRect(i * step + (step > 3 ? 0.5 : 0), numbers[i] < 0 ? middle : middle - tall, Math.max(step - (step > 3 ? 1 : 0), 0.75), Math.max(tall, 0.4));
    }
    pen.globalAlpha = 1;
  };
  return {
    width,
    height,
    paint(pen) {
      if (marked !== null && marked < values.length) {
        pen.fillStyle = colours.mark;
        pen.fillRect(marked * step, 0, Math.max(step, 2), height);
      }
      if (behind) bars(pen, behind, colours.muted, 0.3);
      bars(pen, values, colours[name], 1);
      pen.fillStyle = colours.line;
      pen.fillRect(0, middle - 0.5, width, 1);
    },
  };
}

/** A bar for the share of each key, the chosen one named, and others where there is room, the strongest first. */
export function sharesDrawing(tokens: string[], weights: ArrayLike<number>, chosen: number, width: number, colours: Palette): Drawing {
  const step = Math.min(width / tokens.length, 64);
  const greatest = largest(weights);
  return {
    width,
    height: 66,
    paint(pen) {
      for (let i = 0; i < weights.length; i += 1) {
        const tall = Math.max(greatest > 0 ? (weights[i] / greatest) * 46 : 0, 0.75);
        pen.fillStyle = i === chosen ? colours.key : colours.quiet;
        pen.fillRect(i * step + step * 0.12, 48 - tall, Math.max(step * 0.76, 1), tall);
      }
      pen.textBaseline = "top";
      pen.textAlign = "left";
      const taken: [number, number][] = [];
      const name = (i: number, room: number) => {
        pen.font = label(12, i === chosen);
        const text = cut(tokens[i], room, pen.font);
        const wide = measureText(text, pen.font);
        const left = Math.max(0, Math.min(width - wide, (i + 0.5) * step - wide / 2));
        if (taken.some(([from, to]) => left < to + 5 && left + wide > from - 5)) return;
        taken.push([left, left + wide]);
        pen.fillStyle = i === chosen ? colours.key : colours.muted;
        pen.fillText(text, left, 51);
      };
      name(chosen, 160);
      // Where there is no room for every name, those of the strongest.
      const named = step >= 14 ? tokens.keys() : topIndices(weights, 8);
      for (const i of named) if (i !== chosen) name(i, Math.max(step - 3, 70));
    },
  };
}

/** A curve of values[from, to): within each pixel, from the least to the greatest. */
export function curveDrawing(values: ArrayLike<number>, from: number, to: number, width: number, height: number, colour: string, colours: Palette, marked: number | null): Drawing {
  let greatest = 0;
  for (let i = from; i < to; i += 1) if (values[i] > greatest) greatest = values[i];
  const step = width / Math.max(1, to - from);
  return {
    width,
    height,
    paint(pen) {
      pen.fillStyle = colours.line;
      pen.fillRect(0, height - 1, width, 1);
      pen.fillStyle = colour;
      const y = (value: number) => height - 1 - (greatest > 0 ? (value / greatest) * (height - 4) : 0);
      for (let x = 0; x < width; x += Math.max(1, step)) {
        const first = Math.floor(from + x / step);
        const last = Math.max(first + 1, Math.floor(from + (x + 1) / step));
        let [low, high] = [Infinity, -Infinity];
        for (let i = first; i < Math.min(last, to); i += 1) { if (values[i] < low) low = values[i]; if (values[i] > high) high = values[i]; }
        if (high > -Infinity) pen.fillRect(x, y(high), Math.max(1, step - 0.5), Math.max(1.5, step > 2 ? height - 1 - y(high) : y(low) - y(high)));
      }
      if (marked !== null && marked >= from && marked < to) {
        pen.fillStyle = colours.ink;
        pen.fillRect((marked - from) * step, 0, 1, height);
      }
    },
  };
}
