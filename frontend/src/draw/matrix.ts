// The matrix of one head, with its tokens along both sides.
import type { Attention, Show } from "../data/attention";
import { largest } from "../numbers";
import type { Palette } from "./palette";
import { digits, label, widest, type Drawing, type Pen } from "./pen";
import { along, css, readable, rgb, word, words } from "./ramp";

export interface At { row: number; column: number }
export interface Plane {
  rows: number;
  columns: number;
  /** NaN where nothing may be seen. */
  values: Float32Array;
  extent: number;
  show: Show;
  image: HTMLCanvasElement | null;
}
export interface Place { left: number; top: number; size: number; turned: boolean; width: number; height: number }

/** What a picture of one head shows, with its pixels where cells are too small to be drawn one by one. */
export function plane(attention: Attention, head: number, show: Show, dark: boolean, small: boolean): Plane {
  const { scores, weights } = attention.matrix(head);
  const { queries: rows, keys: columns } = attention;
  const values = show === "scores" ? scores : new Float32Array(rows * columns);
  if (show !== "scores") {
    const gives = show === "flow" ? Float32Array.from({ length: columns }, (_, column) => attention.norm(head, column)) : null;
    for (let at = 0; at < values.length; at += 1) {
      values[at] = Number.isNaN(scores[at]) ? NaN : gives ? weights[at] * gives[at % columns] : weights[at];
    }
  }
  const extent = largest(values);
  return { rows, columns, values, extent, show, image: small ? pixels({ rows, columns, values, extent, show }, dark) : null };
}

export function pixels({ rows, columns, values, extent, show }: Omit<Plane, "image">, dark: boolean): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const pen = canvas.getContext("2d") as CanvasRenderingContext2D;
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
  const space = Math.min((room - left - 12) / columns, roomBelow / rows);
  const size = space >= 3 ? Math.min(64, Math.floor(space)) : Math.max(space, 0.05);
  const turned = keyWidth + 6 > size;
  const top = turned ? keyWidth + 14 : 26;
  return { left, top, size, turned, width: Math.ceil(left + size * columns + 12), height: Math.ceil(top + size * rows + 4) };
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
      if (shown.image) pen.image(shown.image, place.left, place.top, place.size * shown.columns, place.size * shown.rows);
      else cells(pen, scene);
      const at = pointed ?? chosen;
      labels(pen, scene, at);
      outline(pen, place, chosen, colours.ink, 2);
      if (pointed) outline(pen, place, pointed, colours.muted, 1.5);
    },
  };
}

function cells(pen: Pen, { plane: { rows, columns, values, extent, show }, place: { left, top, size }, colours, dark }: Scene): void {
  const gap = size >= 12 ? 1 : 0;
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const value = values[row * columns + column];
      const [x, y] = [left + column * size, top + row * size];
      if (Number.isNaN(value)) {
        const dot = size >= 12 ? 3 : 1;
        pen.fillStyle = colours.quiet;
        pen.fillRect(x + (size - gap - dot) / 2, y + (size - gap - dot) / 2, dot, dot);
        continue;
      }
      const parts = rgb(along(show, value, extent), dark);
      pen.fillStyle = css(parts);
      pen.fillRect(x, y, size - gap, size - gap);
      if (size < 34) continue;
      pen.fillStyle = readable(parts);
      pen.font = digits(size >= 46 ? 12 : 10);
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      const text = show === "weights" ? value.toFixed(2).replace(/^0/, "") : value.toFixed(size >= 46 ? 2 : 1);
      pen.fillText(text, x + (size - gap) / 2, y + size / 2);
    }
  }
}

function labels(pen: Pen, { rowLabels, columnLabels, place: { left, top, size, turned }, colours }: Scene, at: At): void {
  const every = Math.max(1, Math.ceil(13 / size));
  // Where there is no room for every label, the chosen one pushes its neighbours away.
  const skipped = (i: number, chosen: number) => i !== chosen && (i % every !== 0 || Math.abs(i - chosen) < every);
  pen.textBaseline = "middle";
  rowLabels.forEach((text, row) => {
    if (skipped(row, at.row)) return;
    pen.font = label(13, row === at.row);
    pen.fillStyle = row === at.row ? colours.query : colours.muted;
    pen.textAlign = "right";
    pen.fillText(text, left - 8, top + row * size + size / 2, left - 10);
  });
  columnLabels.forEach((text, column) => {
    if (skipped(column, at.column)) return;
    pen.font = label(13, column === at.column);
    pen.fillStyle = column === at.column ? colours.key : colours.muted;
    pen.save();
    pen.translate(left + column * size + size / 2, top - 8);
    if (turned) pen.rotate(-Math.PI / 2);
    pen.textAlign = turned ? "left" : "center";
    pen.textBaseline = turned ? "middle" : "alphabetic";
    pen.fillText(text, 0, 0, 130);
    pen.restore();
  });
}

function outline(pen: Pen, { left, top, size }: Place, { row, column }: At, style: string, width: number): void {
  const gap = size >= 12 ? 1 : 0;
  const side = Math.max(size - gap, 3) + 2;
  pen.strokeStyle = style;
  pen.lineWidth = width;
  pen.strokeRect(left + column * size - 1, top + row * size - 1, side, side);
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
