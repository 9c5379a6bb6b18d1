// What the tokens stand for: patches of an image, frames of a waveform, or an agent's steps by kind.
import { useMemo } from "preact/hooks";
import type { Attention } from "../data/attention";
import type { Tensor } from "../data/blocks";
import { palette } from "../draw/palette";
import { largest, percent, displayToken } from "../numbers";
import type { Drawing } from "../draw/pen";
import type { Axis } from "../protocol";
import { useLook } from "../state";
import type { AxisProps } from "./axisProps";
import { Picture, useTensor } from "./Picture";
import { Sound } from "./Sound";
import { Steps } from "./Steps";

export function AxisImage({ attention, width }: { attention: Attention; width: number }) {
  const look = useLook();
  const run = look.run.value;
  const keys = run.axis(attention.data.keys);
  const queries = run.axis(attention.data.queries);
  const special = (axis?: Axis) => axis && axis.kind !== "text";
  if (!special(keys) && !special(queries)) return null;
  const { row, column } = look.seen.value;
  const { weights } = attention.row(look.head.value, row);
  const same = keys === queries;
  const choose = (at: number, asQuery: boolean) => look.choose(asQuery ? { row: at } : { row, column: at });
  return (
    <div class="axis-pictures">
      {keys?.image && <Patches axis={keys} weights={weights} query={same ? row : -1} chosen={column} onChoose={(at) => choose(at, same)} />}
      {keys?.audio && <Sound axis={keys} weights={weights} query={same ? row : -1} chosen={column} width={width} onChoose={(at) => choose(at, same)} />}
      {keys?.trajectory && <Steps key={keys.trajectory.kinds.join()} axis={keys} weights={weights} query={same ? row : -1} chosen={column} width={width} onChoose={(at) => choose(at, same)} />}
    </div>
  );
}

function Patches({ axis, weights, query, chosen, onChoose }: AxisProps) {
  const look = useLook();
  const { rows, columns, leading, pixels } = axis.image as NonNullable<Axis["image"]>;
  const tensor = useTensor(pixels, look.run.value.source);
  const size = Math.max(8, Math.floor(300 / Math.max(rows, columns)));
  const picture = useMemo(() => (tensor ? drawToCanvas(tensor) : null), [tensor]);
  const drawing = useMemo((): Drawing => ({
    width: columns * size,
    height: rows * size,
    paint(pen) {
      if (picture) pen.image(picture, 0, 0, columns * size, rows * size);
      const greatest = largest(weights.subarray(leading));
      for (let at = leading; at < Math.min(weights.length, leading + rows * columns); at += 1) {
        const [x, y] = [((at - leading) % columns) * size, Math.floor((at - leading) / columns) * size];
        // Patches with weight stay bright, and turn blue where the image itself is dark; the rest is dimmed.
        const share = Math.sqrt(greatest > 0 ? weights[at] / greatest : 0);
        pen.globalAlpha = 0.82 * (1 - share);
        pen.fillStyle = "#0b0d10";
        pen.fillRect(x, y, size, size);
        pen.globalAlpha = 0.4 * share;
        pen.fillStyle = "#3d93e0";
        pen.fillRect(x, y, size, size);
        pen.globalAlpha = 1;
        if (at === query || at === chosen) {
          pen.strokeStyle = at === query ? palette(true).query : palette(true).key;
          pen.lineWidth = 2;
          pen.strokeRect(x + 1, y + 1, size - 2, size - 2);
        }
      }
    },
  }), [picture, weights, query, chosen]);
  const at = (event: MouseEvent) => leading + Math.floor(event.offsetY / size) * columns + Math.floor(event.offsetX / size);
  return (
    <figure>
      <Picture drawing={drawing} class="patches" role="img" aria-label={`The image: bright and blue where this query attends. ${Array.from({ length: leading }, (_, i) => `${axis.tokens[i]} ${percent(weights[i])}`).join(", ")}. The table holds every weight.`} onClick={(event) => onChoose(at(event))} />
      <figcaption class="muted">Bright and blue: where it looks; orange: the query; framed in blue: the chosen key.{query >= 0 ? " Choose a patch to make it the query." : ""}
        {leading > 0 && <span class="leading">{Array.from({ length: leading }, (_, i) => <button type="button" class="small" key={i} onClick={() => onChoose(i)}>{displayToken(axis.tokens[i])} {percent(weights[i])}</button>)}</span>}
      </figcaption>
    </figure>
  );
}

export function drawToCanvas(tensor: Tensor): HTMLCanvasElement {
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
