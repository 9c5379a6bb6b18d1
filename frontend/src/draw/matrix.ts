// The matrix of one head, with its tokens along both sides.
import type { Attention, Show } from "../data/attention";
import { largest, number } from "../numbers";
import type { Palette } from "./palette";
import { cut, digits, label, widest, type Drawing, type Pen } from "./pen";
import { along, css, readable, rgb, word, words } from "./ramp";

export interface At { row: number; column: number }
export interface Plane {
  rows: number;
  columns: number;
  /** NaN where a query may not attend; empty where there is an image. */
  values: Float32Array;
  extent: number;
  show: Show;
  image: HTMLCanvasElement | null;
  /** How many cells a pixel of the image stands for, down and across: the one that is farthest from 0. */
  pooled: readonly [number, number];
}
/** wide, high: of a cell, in pixels. */
export interface Place { left: number; top: number; wide: number; high: number; turned: boolean; width: number; height: number }

/** What a picture of one head shows; where cells are too small to be drawn one by one, its pixels instead of its values. */
export function plane(attention: Attention, head: number, show: Show, dark: boolean, small: boolean, pooled: readonly [number, number] = [1, 1], canvas?: HTMLCanvasElement): Plane {
  const { scores, weights } = attention.matrix(head);
  const { queries: rows, keys: columns } = attention;
  let values = show === "scores" ? scores : weights;
  if (show === "flow") {
    const gives = Float32Array.from({ length: columns }, (_, column) => attention.norm(head, column));
    values = new Float32Array(rows * columns);
    for (let at = 0; at < values.length; at += 1) values[at] = weights[at] * gives[at % columns];
  }
  const extent = show === "weights" ? 1 : largest(values);
  const known = { rows, columns, extent, show, pooled };
  if (small) return { ...known, values: new Float32Array(0), image: pixels({ ...poolExtremes(rows, columns, values, pooled, scores), extent, show }, dark, canvas) };
  if (show !== "scores") {
    values = show === "flow" ? values : values.slice();
    for (let at = 0; at < values.length; at += 1) if (scores[at] !== scores[at]) values[at] = NaN;
  }
  return { ...known, values, image: null };
}

/** Of each down x across cells the one that is farthest from 0; NaN where `seen` is for all of them. */
export function poolExtremes(rows: number, columns: number, values: Float32Array, [down, across]: readonly [number, number], seen = values) {
  const [high, wide] = [Math.ceil(rows / down), Math.ceil(columns / across)];
  const found = new Float32Array(high * wide).fill(NaN);
  if (down === 1 && across === 1) {
    for (let at = 0; at < found.length; at += 1) if (seen[at] === seen[at]) found[at] = values[at];
    return { rows, columns, values: found };
  }
  for (let row = 0; row < rows; row += 1) {
    const begin = Math.floor(row / down) * wide;
    const own = row * columns;
    for (let to = 0; to < wide; to += 1) {
      const end = Math.min(columns, (to + 1) * across);
      let best = found[begin + to];
      for (let column = to * across; column < end; column += 1) {
        if (seen[own + column] !== seen[own + column]) continue;
        const value = values[own + column];
        if (!(Math.abs(value) <= Math.abs(best))) best = value;
      }
      found[begin + to] = best;
    }
  }
  return { rows: high, columns: wide, values: found };
}

/** How many cells lie on one pixel of the screen, down and across. */
export function cellsPerPixel({ wide, high }: Place, ratio = window.devicePixelRatio || 1): readonly [number, number] {
  const count = (size: number) => Math.max(1, Math.ceil(1 / (size * ratio) - 0.05));
  return [count(high), count(wide)];
}

export function pixels({ rows, columns, values, extent, show }: Pick<Plane, "rows" | "columns" | "values" | "extent" | "show">, dark: boolean, canvas = document.createElement("canvas")): HTMLCanvasElement {
  canvas.width = columns;
  canvas.height = rows;
  const pen = canvas.getContext("2d", { willReadFrequently: true }) as CanvasRenderingContext2D;
  const image = pen.createImageData(Math.max(1, columns), Math.max(1, rows));
  const out = new Uint32Array(image.data.buffer);
  const table = words(dark);
  for (let at = 0; at < values.length; at += 1) {
    const value = values[at];
    if (value === value) out[at] = word(along(show, value, extent), table);
  }
  pen.putImageData(image, 0, 0);
  return canvas;
}

export function layOut(rows: number, columns: number, rowLabels: string[], columnLabels: string[], room: number, roomBelow: number): Place {
  const left = Math.min(widest(rowLabels) + 16, 180);
  const keyWidth = Math.min(widest(columnLabels), 130);
  const [across, below] = [(room - left - 12) / columns, roomBelow / rows];
  const space = Math.min(across, below);
  const size = space >= 3 ? Math.min(64, Math.floor(space)) : Math.max(space, 0.05);
  // Cells are squares, but for a few queries that face very many keys, or the other way round.
  const long = (most: number) => (rows === columns || size >= 12 ? size : Math.max(size, Math.min(16, most)));
  const [wide, high] = [long(across), long(below)];
  const turned = keyWidth + 6 > wide;
  const top = turned ? keyWidth + 14 : 26;
  return { left, top, wide, high, turned, width: Math.ceil(left + wide * columns + 12), height: Math.ceil(top + high * rows + 4) };
}

/** The cell at a point of a picture, if there is one. */
export function cellAt({ left, top, wide, high }: Place, rows: number, columns: number, x: number, y: number): At | null {
  const [row, column] = [Math.floor((y - top) / high), Math.floor((x - left) / wide)];
  return row >= 0 && column >= 0 && row < rows && column < columns ? { row, column } : null;
}

interface Scene {
  plane: Plane;
  place: Place;
  rowLabels: string[];
  columnLabels: string[];
  chosen: At;
  pointed: At | null;
  colours: Palette;
  dark: boolean;
}

export function matrixDrawing(scene: Scene): Drawing {
  const { plane: shown, place, colours, chosen, pointed } = scene;
  return {
    width: place.width,
    height: place.height,
    paint(pen) {
      if (shown.image) pen.image(shown.image, place.left, place.top, place.wide * shown.image.width * shown.pooled[1], place.high * shown.image.height * shown.pooled[0]);
      else cells(pen, scene);
      const at = pointed ?? chosen;
      labels(pen, scene, at);
      outline(pen, place, chosen, colours.ink, 2);
      if (pointed) outline(pen, place, pointed, colours.muted, 1.5);
    },
  };
}

function cells(pen: Pen, { plane: { rows, columns, values, extent, show }, place: { left, top, wide, high }, colours, dark }: Scene): void {
  const size = Math.min(wide, high);
  const gap = size >= 12 ? 1 : 0;
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const value = values[row * columns + column];
      const [x, y] = [left + column * wide, top + row * high];
      if (Number.isNaN(value)) {
        const dot = size >= 12 ? 3 : 1;
        pen.fillStyle = colours.quiet;
        pen.fillRect(x + (wide - gap - dot) / 2, y + (high - gap - dot) / 2, dot, dot);
        continue;
      }
      const parts = rgb(along(show, value, extent), dark);
      pen.fillStyle = css(parts);
      pen.fillRect(x, y, wide - gap, high - gap);
      if (size < 34) continue;
      pen.fillStyle = readable(parts);
      pen.font = digits(size >= 46 ? 12 : 10);
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      const text = show === "weights" ? value.toFixed(2).replace(/^0/, "") : number(value, size >= 46 ? 2 : 1);
      pen.fillText(text, x + (wide - gap) / 2, y + high / 2);
    }
  }
}

function labels(pen: Pen, { rowLabels, columnLabels, place: { left, top, wide, high, turned }, colours }: Scene, at: At): void {
  // Where there is no room for every label, the chosen one pushes its neighbours away.
  const skips = (size: number, chosen: number) => {
    const every = size >= 13 ? 1 : Math.ceil(20 / size);
    return (i: number) => i !== chosen && (i % every !== 0 || Math.abs(i - chosen) < every);
  };
  const side = (texts: string[], size: number, chosen: number, colour: string, room: number, put: (text: string, middle: number) => void) => {
    const skipped = skips(size, chosen);
    const name = (i: number) => put(cut(texts[i], room, pen.font), (i + 0.5) * size);
    pen.font = label(13);
    pen.fillStyle = colours.muted;
    for (let i = 0; i < texts.length; i += 1) if (i !== chosen && !skipped(i)) name(i);
    if (chosen >= texts.length) return;
    pen.font = label(13, true);
    pen.fillStyle = colour;
    name(chosen);
  };
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  side(rowLabels, high, at.row, colours.query, left - 10, (text, middle) => pen.fillText(text, left - 8, top + middle));
  pen.save();
  pen.translate(left, top - 8);
  if (turned) pen.rotate(-Math.PI / 2);
  pen.textAlign = turned ? "left" : "center";
  pen.textBaseline = turned ? "middle" : "alphabetic";
  side(columnLabels, wide, at.column, colours.key, 130, (text, middle) => (turned ? pen.fillText(text, 0, middle) : pen.fillText(text, middle, 0)));
  pen.restore();
}

function outline(pen: Pen, { left, top, wide, high }: Place, { row, column }: At, style: string, width: number): void {
  const gap = Math.min(wide, high) >= 12 ? 1 : 0;
  pen.strokeStyle = style;
  pen.lineWidth = width;
  pen.strokeRect(left + column * wide - 1, top + row * high - 1, Math.max(wide - gap, 3) + 2, Math.max(high - gap, 3) + 2);
}

/** The colours of a picture, and which numbers they stand for. */
export function legendDrawing(show: Show, extent: number, colours: Palette, dark: boolean): Drawing {
  const low = show === "scores" ? -extent : 0;
  const high = show === "weights" ? 1 : extent;
  return {
    width: 180,
    height: 26,
    paint(pen) {
      for (let x = 0; x < 180; x += 2) {
        pen.fillStyle = css(rgb(along(show, low + ((high - low) * x) / 178, extent), dark));
        pen.fillRect(x, 0, 2, 9);
      }
      pen.fillStyle = colours.muted;
      pen.font = digits(10);
      pen.textBaseline = "top";
      for (const [value, x, align] of [[low, 0, "left"], [(low + high) / 2, 90, "center"], [high, 180, "right"]] as const) {
        pen.textAlign = align;
        pen.fillText(value === 0 ? "0" : value.toFixed(show === "weights" ? 1 : 2).replace("-", "\u2212"), x, 13);
      }
    },
  };
}
