// What the tokens are of: patches over their picture, frames over their waveform, an agent's steps by kind.
import { useEffect, useMemo, useState } from "preact/hooks";
import type { Attention } from "../data/attention";
import { tensorOf, type Tensor } from "../data/blocks";
import { palette, type Palette } from "../draw/palette";
import { largest, percent, shown } from "../numbers";
import type { Drawing } from "../draw/pen";
import type { Axis, Block, Source } from "../protocol";
import { useLook } from "../state";
import { Picture } from "./Picture";

export function AxisPicture({ attention, width }: { attention: Attention; width: number }) {
  const look = useLook();
  const run = look.run.value;
  const keys = run.axis(attention.described.keys);
  const queries = run.axis(attention.described.queries);
  const special = (axis?: Axis) => axis && axis.kind !== "text";
  if (!special(keys) && !special(queries)) return null;
  const { row, column } = look.seen.value;
  const { weights } = attention.row(look.head.value, row);
  const same = keys === queries;
  const choose = (at: number, asking: boolean) => look.choose(asking && same ? { row: at } : asking ? { row: at } : { row, column: at });
  return (
    <div class="axis-pictures">
      {keys?.image && <Patches axis={keys} weights={weights} query={same ? row : -1} chosen={column} onChoose={(at) => choose(at, same)} />}
      {keys?.audio && <Wave axis={keys} weights={weights} query={same ? row : -1} chosen={column} width={width} onChoose={(at) => choose(at, same)} />}
      {keys?.trajectory && <Steps axis={keys} weights={weights} query={same ? row : -1} />}
    </div>
  );
}

function useTensor(block: Block, source: Source): Tensor | null {
  const [found, setFound] = useState<Tensor | null>(null);
  useEffect(() => {
    const tensor = tensorOf(block, source);
    if (tensor instanceof Promise) void tensor.then(setFound); else setFound(tensor);
  }, [block, source]);
  return found;
}

interface Given { axis: Axis; weights: Float32Array; query: number; chosen: number; onChoose: (at: number) => void }

function Patches({ axis, weights, query, chosen, onChoose }: Given) {
  const look = useLook();
  const { rows, columns, leading, pixels } = axis.image as NonNullable<Axis["image"]>;
  const tensor = useTensor(pixels, look.run.value.source);
  const dark = look.dark.value;
  const size = Math.max(8, Math.floor(300 / Math.max(rows, columns)));
  const picture = useMemo(() => (tensor ? canvasOf(tensor) : null), [tensor]);
  const drawing = useMemo((): Drawing => ({
    width: columns * size,
    height: rows * size,
    paint(pen) {
      if (picture) pen.image(picture, 0, 0, columns * size, rows * size);
      const greatest = largest(weights.subarray(leading));
      const colours = palette(dark);
      for (let at = leading; at < Math.min(weights.length, leading + rows * columns); at += 1) {
        const [x, y] = [((at - leading) % columns) * size, Math.floor((at - leading) / columns) * size];
        // What is looked at stays bright; the rest is dimmed.
        pen.globalAlpha = 0.82 * (1 - Math.sqrt(greatest > 0 ? weights[at] / greatest : 0));
        pen.fillStyle = "#0b0d10";
        pen.fillRect(x, y, size, size);
        pen.globalAlpha = 1;
        if (at === query || at === chosen) {
          pen.strokeStyle = at === query ? palette(true).query : palette(true).key;
          pen.lineWidth = 2;
          pen.strokeRect(x + 1, y + 1, size - 2, size - 2);
        }
      }
      void colours;
    },
  }), [picture, weights, query, chosen, dark]);
  const at = (event: MouseEvent) => leading + Math.floor(event.offsetY / size) * columns + Math.floor(event.offsetX / size);
  return (
    <figure>
      <Picture drawing={drawing} class="patches" role="img" aria-label={`The picture: bright where this query looks. ${Array.from({ length: leading }, (_, i) => `${axis.tokens[i]} ${percent(weights[i])}`).join(", ")}. The table holds every weight.`} onClick={(event) => onChoose(at(event))} />
      <figcaption class="muted">Bright where it looks; orange: who asks; blue: the chosen key.{query >= 0 ? " Choose a patch to let it ask." : ""}
        {leading > 0 && <span class="leading">{Array.from({ length: leading }, (_, i) => <button type="button" class="small" key={i} onClick={() => onChoose(i)}>{shown(axis.tokens[i])} {percent(weights[i])}</button>)}</span>}
      </figcaption>
    </figure>
  );
}

function canvasOf(tensor: Tensor): HTMLCanvasElement {
  const [height, width] = tensor.shape;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pen = canvas.getContext("2d") as CanvasRenderingContext2D;
  const image = pen.createImageData(width, height);
  for (let at = 0; at < width * height; at += 1) {
    for (let part = 0; part < 3; part += 1) image.data[at * 4 + part] = tensor.data[at * 3 + part];
    image.data[at * 4 + 3] = 255;
  }
  pen.putImageData(image, 0, 0);
  return canvas;
}

function Wave({ axis, weights, query, chosen, width, onChoose }: Given & { width: number }) {
  const look = useLook();
  const audio = axis.audio as NonNullable<Axis["audio"]>;
  const peaks = useTensor(audio.peaks, look.run.value.source);
  const dark = look.dark.value;
  const wide = Math.max(280, Math.min(width, 900));
  const whole = Math.max(audio.seconds, (weights.length - audio.leading) * audio.per_token);
  const x = (at: number) => ((at - audio.leading) * audio.per_token * wide) / whole;
  const drawing = useMemo((): Drawing => ({
    width: wide,
    height: 96,
    paint(pen) {
      const colours: Palette = palette(dark);
      const greatest = largest(weights);
      const each = (audio.per_token * wide) / whole;
      for (let at = audio.leading; at < weights.length; at += 1) {
        pen.fillStyle = colours.key;
        pen.globalAlpha = 0.75 * Math.sqrt(greatest > 0 ? weights[at] / greatest : 0);
        pen.fillRect(x(at), 0, Math.max(1, each), 80);
      }
      pen.globalAlpha = 1;
      pen.fillStyle = colours.ink;
      if (peaks) {
        const top = Math.max(1e-6, largest(peaks.data));
        for (let i = 0; i < peaks.shape[0]; i += 1) {
          const [low, high] = [peaks.data[2 * i], peaks.data[2 * i + 1]];
          pen.fillRect(((i * audio.seconds) / peaks.shape[0] / whole) * wide, 40 - (high / top) * 38, Math.max(0.5, wide / peaks.shape[0]), Math.max(0.75, ((high - low) / top) * 38));
        }
      }
      for (const [at, colour] of [[query, colours.query], [chosen, colours.key]] as const) {
        if (at < 0) continue;
        pen.fillStyle = colour;
        pen.fillRect(x(at), 80, Math.max(3, each), 5);
      }
      pen.fillStyle = colours.muted;
      pen.font = "10px ui-monospace, monospace";
      pen.textBaseline = "bottom";
      for (let second = 0; second <= whole; second += whole > 12 ? 5 : 1) pen.fillText(`${second} s`, (second / whole) * wide, 96);
    },
  }), [peaks, weights, query, chosen, dark, wide]);
  const at = (event: MouseEvent) => Math.min(weights.length - 1, audio.leading + Math.floor(((event.offsetX / wide) * whole) / audio.per_token));
  return (
    <figure>
      <Picture drawing={drawing} class="wave" role="img" aria-label="The sound: blue where this query listens. The table holds every weight." onClick={(event) => onChoose(at(event))} />
      <figcaption class="muted">The sound, blue where it listens.{query >= 0 ? " Choose a moment to let it ask." : ""}</figcaption>
    </figure>
  );
}

const tones = ["query", "key", "value", "context"] as const;

function Steps({ axis, weights, query }: { axis: Axis; weights: Float32Array; query: number }) {
  const look = useLook();
  const kinds = axis.trajectory?.kinds ?? [];
  const dark = look.dark.value;
  const drawing = useMemo((): Drawing => {
    const steps = Math.ceil(weights.length / Math.max(1, kinds.length));
    const each = Math.max(6, Math.min(26, 560 / steps));
    return {
      width: 70 + steps * each,
      height: kinds.length * 22 + 4,
      paint(pen) {
        const colours = palette(dark);
        pen.font = "12px system-ui";
        pen.textBaseline = "middle";
        kinds.forEach((kind, line) => {
          pen.fillStyle = colours[tones[line % tones.length]];
          pen.fillText(kind, 0, line * 22 + 12);
          for (let step = 0; step < steps; step += 1) {
            const at = step * kinds.length + line;
            if (at >= weights.length) continue;
            pen.globalAlpha = 1;
            pen.strokeStyle = at === query ? colours.ink : colours.line;
            pen.lineWidth = at === query ? 2 : 1;
            pen.strokeRect(70 + step * each + 0.5, line * 22 + 2.5, each - 3, 18);
            pen.globalAlpha = Math.sqrt(weights[at]);
            pen.fillRect(70 + step * each + 1, line * 22 + 3, each - 4, 17);
          }
          pen.globalAlpha = 1;
        });
      },
    };
  }, [weights, query, dark]);
  return (
    <figure>
      <Picture drawing={drawing} role="img" aria-label="The agent's steps by kind: filled where this query looks. The table holds every weight." />
      <figcaption class="muted">The agent's steps; filled where it looks.</figcaption>
    </figure>
  );
}
