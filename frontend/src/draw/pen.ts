// What pictures are drawn with: a canvas or, for papers, SVG. Both know this much of a canvas.
export interface Pen {
  fillStyle: string | CanvasGradient | CanvasPattern;
  strokeStyle: string | CanvasGradient | CanvasPattern;
  lineWidth: number;
  globalAlpha: number;
  font: string;
  textAlign: CanvasTextAlign;
  textBaseline: CanvasTextBaseline;
  fillRect(x: number, y: number, width: number, height: number): void;
  strokeRect(x: number, y: number, width: number, height: number): void;
  fillText(text: string, x: number, y: number): void;
  beginPath(): void;
  moveTo(x: number, y: number): void;
  lineTo(x: number, y: number): void;
  bezierCurveTo(a: number, b: number, c: number, d: number, x: number, y: number): void;
  stroke(): void;
  fill(): void;
  save(): void;
  restore(): void;
  translate(x: number, y: number): void;
  rotate(angle: number): void;
  /** A picture of pixels, with or without smoothing. */
  image(source: HTMLCanvasElement, x: number, y: number, width: number, height: number): void;
}

export interface Drawing { width: number; height: number; paint: (pen: Pen) => void }

export const sans = 'ui-sans-serif, system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif';
export const mono = 'ui-monospace, "SF Mono", Menlo, Consolas, monospace';
export const label = (size = 13, bold = false): string => `${bold ? "600 " : ""}${size}px ${sans}`;
export const digits = (size: number): string => `${size}px ${mono}`;

let measuring: CanvasRenderingContext2D | null = null;
const widths = new Map<string, number>();

/** How wide a text is; asked of a canvas once. */
export function measureText(text: string, font = label()): number {
  const id = `${font}\n${text}`;
  let found = widths.get(id);
  if (found === undefined) {
    measuring ??= document.createElement("canvas").getContext("2d") as CanvasRenderingContext2D;
    measuring.font = font;
    found = measuring.measureText(text).width;
    if (widths.size > 20000) widths.clear();
    widths.set(id, found);
  }
  return found;
}

/** A text, or as much of its beginning as there is room for. */
export function cut(text: string, room: number, font = label()): string {
  if (measureText(text, font) <= room) return text;
  const signs = [...text];
  let [fits, not] = [0, signs.length];
  while (not - fits > 1) {
    const middle = (fits + not) >> 1;
    if (measureText(`${signs.slice(0, middle).join("")}\u2026`, font) <= room) fits = middle; else not = middle;
  }
  return `${signs.slice(0, fits).join("").trimEnd()}\u2026`;
}

export const widest = (texts: string[], font = label()): number => {
  let found = 8;
  // The widest are among the longest; measuring all of a long context would take long.
  const asked = texts.length > 400 ? texts.toSorted((a, b) => b.length - a.length).slice(0, 100) : texts;
  for (const text of asked) found = Math.max(found, measureText(text, font));
  return Math.ceil(found);
};

/** Lay a canvas out at the screen's resolution and paint. */
export function paint(canvas: HTMLCanvasElement, { width, height, paint: draw }: Drawing, ratio = window.devicePixelRatio || 1): void {
  const [wide, high] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d") as CanvasRenderingContext2D;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  draw(canvasPen(context));
}

function canvasPen(context: CanvasRenderingContext2D): Pen {
  return Object.assign(context, {
    image(source: HTMLCanvasElement, x: number, y: number, width: number, height: number) {
      context.imageSmoothingEnabled = width < source.width;
      context.drawImage(source, x, y, width, height);
    },
  });
}
