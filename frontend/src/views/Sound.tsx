// A waveform with its weights, and each word of the transcript at the time when it was said.
import { useMemo } from "preact/hooks";
import { palette } from "../draw/palette";
import { label, measureText, type Drawing, type Pen } from "../draw/pen";
import { largest, percent } from "../numbers";
import type { Axis } from "../protocol";
import { useLook } from "../state";
import type { AxisProps } from "./axisProps";
import { Picture, useTensor } from "./Picture";

type Word = [string, number, number];

const line = 17; // of words
const tall = 80; // of the waveform

/** The line of each word (-1 where there is no room for it); the chosen word always has one. */
export function layOutWords(words: Word[], x: (seconds: number) => number, chosen: number, most = 3): number[] {
  const ends = new Array<number>(most).fill(-Infinity);
  const room = (word: Word) => [x(word[1]), x(word[1]) + measureText(word[0], label(12, true)) + 6] as const;
  const [from, to] = chosen >= 0 ? room(words[chosen]) : [Infinity, Infinity];
  return words.map((word, at) => {
    const [left, right] = room(word);
    const found = ends.findIndex((end, which) => end <= left && (which > 0 || at === chosen || right <= from || left >= to));
    const place = at === chosen ? 0 : found;
    if (place >= 0) ends[place] = Math.max(ends[place], right);
    return place;
  });
}

const findWord = (words: Word[], seconds: number) => words.findIndex(([, start, end]) => start <= seconds && seconds < end);

export function Sound({ axis, weights, query, chosen, width, onChoose }: AxisProps & { width: number }) {
  const look = useLook();
  const audio = axis.audio as NonNullable<Axis["audio"]>;
  const words = audio.words ?? [];
  const peaks = useTensor(audio.peaks, look.run.value.source);
  const dark = look.dark.value;
  const wide = Math.max(280, Math.min(width, 1100));
  const whole = Math.max(audio.seconds, (weights.length - audio.leading) * audio.seconds_per_token);
  // Padding that is longer than a tenth of the audio is drawn at a smaller scale.
  const bend = whole > audio.seconds * 1.1 + audio.seconds_per_token ? { at: audio.seconds, x: wide * Math.max(0.88, audio.seconds / whole) } : { at: whole, x: wide };
  const x = (seconds: number) => (seconds <= bend.at ? (seconds * bend.x) / bend.at : bend.x + ((seconds - bend.at) * (wide - bend.x)) / (whole - bend.at));
  const seconds = (pixel: number) => (pixel <= bend.x ? (pixel * bend.at) / bend.x : bend.at + ((pixel - bend.x) * (whole - bend.at)) / (wide - bend.x));
  const time = (at: number) => (at - audio.leading) * audio.seconds_per_token;
  const chosenWord = findWord(words, time(chosen) + audio.seconds_per_token / 2);
  const top = words.length ? (Math.max(...layOutWords(words, x, -1)) + 1) * line + 5 : 0;
  const drawing = useMemo((): Drawing => ({
    width: wide,
    height: top + tall + 22,
    paint(pen) {
      const colours = palette(dark);
      const greatest = largest(weights);
      if (whole > audio.seconds + audio.seconds_per_token) {
        pen.fillStyle = colours.line;
        pen.globalAlpha = 0.5;
        pen.fillRect(x(audio.seconds), top, wide - x(audio.seconds), tall);
        pen.globalAlpha = 1;
      }
      pen.fillStyle = colours.key;
      for (let at = audio.leading; at < weights.length; at += 1) {
        pen.globalAlpha = 0.7 * Math.sqrt(greatest > 0 ? weights[at] / greatest : 0);
        pen.fillRect(x(time(at)), top, Math.max(1, x(time(at + 1)) - x(time(at))), tall);
      }
      pen.globalAlpha = 1;
      pen.fillStyle = colours.ink;
      if (peaks) {
        const loudest = Math.max(1e-6, largest(peaks.data));
        const count = peaks.shape[0];
        for (let i = 0; i < count; i += 1) {
          const [low, high] = [peaks.data[2 * i], peaks.data[2 * i + 1]];
          pen.fillRect(x((i * audio.seconds) / count), top + tall / 2 - (high / loudest) * (tall / 2 - 2), Math.max(0.5, x(audio.seconds) / count), Math.max(0.75, ((high - low) / loudest) * (tall / 2 - 2)));
        }
      }
      for (const [at, colour] of [[query, colours.query], [chosen, colours.key]] as const) {
        if (at < audio.leading) continue;
        pen.fillStyle = colour;
        pen.fillRect(x(time(at)), top + tall + 1, Math.max(4, x(time(at + 1)) - x(time(at))), 5);
      }
      drawWords(pen, words, x, chosenWord, top, colours);
      pen.fillStyle = colours.muted;
      pen.font = label(11);
      pen.textBaseline = "bottom";
      const every = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60].find((step) => (step * bend.x) / bend.at >= 44) ?? 300;
      const ticks = Array.from({ length: Math.floor(bend.at / every) + 1 }, (_, i) => Number((i * every).toFixed(1))).filter((tick) => x(tick) < wide - 60);
      for (const tick of [...ticks, Number(whole.toFixed(2))]) {
        const at = x(tick);
        pen.textAlign = at > wide - 30 ? "right" : at < 10 ? "left" : "center";
        pen.fillText(`${tick} s`, at, top + tall + 21);
      }
    },
  }), [peaks, weights, query, chosen, dark, wide]);
  const under = (event: MouseEvent) => Math.max(audio.leading, Math.min(weights.length - 1, audio.leading + Math.floor(seconds(event.offsetX) / audio.seconds_per_token)));
  const say = (at: number) => `${axis.tokens[at]}: ${percent(weights[at])}`;
  const resolution = peaks && peaks.shape[0] < audio.samples ? ` The waveform shows the lowest and the highest sample of each of ${peaks.shape[0].toLocaleString("en")} intervals.` : "";
  return (
    <figure>
      <Picture drawing={drawing} class="wave" role="img" aria-label={`The waveform: blue where this query attends. ${words.length ? `Words: ${words.map(([text, start]) => `${text} at ${start.toFixed(2)} s`).join(", ")}. ` : ""}The table holds every weight.`}
        onPointerMove={(event) => { event.currentTarget.title = say(under(event)); }} onClick={(event) => onChoose(under(event))} />
      <figcaption class="muted"><b>{say(chosen)}</b>. Blue: where it looks{query >= 0 ? "; orange: the query. Choose a moment to make it the query." : ". Choose a moment to see its key."}
        {words.length > 0 && " Each word stands at the time that the model's own attention gives it."}{whole > audio.seconds + audio.seconds_per_token ? ` Grey: padding up to ${Number(whole.toFixed(2))} s${bend.at < whole ? ", drawn at a smaller scale" : ""}.` : ""}{resolution}</figcaption>
    </figure>
  );
}

function drawWords(pen: Pen, words: Word[], x: (seconds: number) => number, chosen: number, top: number, colours: ReturnType<typeof palette>): void {
  const places = layOutWords(words, x, chosen);
  pen.textBaseline = "alphabetic";
  pen.textAlign = "left";
  words.forEach(([text, start, end], at) => {
    const [left, right] = [x(start), Math.max(x(end), x(start) + 2)];
    pen.fillStyle = at === chosen ? colours.key : colours.quiet;
    pen.fillRect(left, top - 3, right - left - 1, at === chosen ? 3 : 2);
    if (places[at] < 0) return;
    if (places[at] > 0) pen.fillRect(left, top - 3 - line, 1, line);
    pen.fillStyle = at === chosen ? colours.key : colours.ink;
    pen.font = label(12, at === chosen);
    pen.fillText(text, left + (places[at] > 0 ? 3 : 0), top - 7 - places[at] * line);
  });
}
