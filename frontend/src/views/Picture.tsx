// A canvas that a drawing is painted on, and its way out: SVG and PNG.
import type { CanvasHTMLAttributes } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { readTensor, type Tensor } from "../data/blocks";
import { palette } from "../draw/palette";
import { paint, type Drawing } from "../draw/pen";
import { asSvg, savePng, saveText } from "../draw/svg";
import type { Block, Source } from "../protocol";
import { useLook } from "../state";

type Given = CanvasHTMLAttributes<HTMLCanvasElement>;

export function Picture({ drawing, ...rest }: { drawing: Drawing } & Given) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useLayoutEffect(() => { if (canvas.current) paint(canvas.current, drawing); }, [drawing]);
  return <canvas ref={canvas} {...rest} />;
}

/** A tensor of the run, once it is there. */
export function useTensor(block: Block, source: Source): Tensor | null {
  const [found, setFound] = useState<Tensor | null>(null);
  useEffect(() => {
    const tensor = readTensor(block, source);
    if (tensor instanceof Promise) void tensor.then(setFound); else setFound(tensor);
  }, [block, source]);
  return found;
}

/** How wide an element is, as it changes. */
export function useWidth<T extends HTMLElement>(start = 600) {
  const box = useRef<T>(null);
  const [width, setWidth] = useState(start);
  useLayoutEffect(() => {
    const element = box.current;
    if (!element) return;
    const measure = () => { if (element.clientWidth > 0) setWidth(element.clientWidth); };
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  return [box, width] as const;
}

export function Exports({ drawing, name }: { drawing: () => Drawing; name: string }) {
  const look = useLook();
  const paper = palette(look.dark.value).panel;
  const file = name.replace(/[^\w.-]+/g, "-");
  return (
    <span class="exports">
      <button type="button" class="small" aria-label={`Save ${name} as SVG`} onClick={() => saveText(asSvg(drawing(), paper), "image/svg+xml", `${file}.svg`)}>SVG</button>
      <button type="button" class="small" aria-label={`Save ${name} as PNG`} onClick={() => savePng(drawing(), paper, `${file}.png`)}>PNG</button>
    </span>
  );
}

/** A few choices of which one holds. */
export function Choice<T extends string>({ name, legend, options, value, onChoose }: {
  name: string; legend: string; options: readonly (readonly [T, string])[]; value: T; onChoose: (value: T) => void;
}) {
  return (
    <fieldset class="choice" data-choice={name}>
      <legend class="unseen">{legend}</legend>
      {options.map(([option, text]) => (
        <label key={option}>
          <input type="radio" name={name} value={option} checked={value === option} onChange={() => onChoose(option)} />
          <span>{text}</span>
        </label>
      ))}
    </fieldset>
  );
}

export function Token({ text, name = "" }: { text: string; name?: string }) {
  return <b class={`token ${name}`} dir="auto">{text}</b>;
}
