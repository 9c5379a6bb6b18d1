// A window on a large matrix: the overview below, the tiles that there are above it, cells and names close up.
import type { Small } from "../data/pooling";
import { side, type Tile, type Tiles } from "../data/tiles";
import { pixels } from "./matrix";
import type { Palette } from "./palette";
import { cut, digits, label, type Drawing, type Pen } from "./pen";
import { along, readable, rgb } from "./ramp";

// Weights along a long context are small: here colour goes by their fourth root.

/** What is seen: the cell at the upper left corner, and how many cells a pixel holds. */
export interface Window { row: number; column: number; per: number }

export const margin = { left: 92, top: 74 };
const images = new WeakMap<Small, Map<boolean, HTMLCanvasElement>>();

function imageOf(small: Small, dark: boolean): HTMLCanvasElement {
  let own = images.get(small);
  if (!own) images.set(small, own = new Map());
  let image = own.get(dark);
  if (!image) own.set(dark, image = pixels({ rows: small.rows, columns: small.columns, values: small.data.map(Math.sqrt), extent: 1, show: "weights" }, dark));
  return image;
}

interface Scene {
  tiles: Tiles;
  window: Window;
  size: number;
  queries: string[];
  keys: string[];
  chosen: { row: number; column: number };
  colours: Palette;
  dark: boolean;
}

export function mapDrawing(scene: Scene): Drawing {
  const { size } = scene;
  return {
    width: size + margin.left,
    height: size + margin.top,
    paint(pen) {
      pen.save();
      pen.translate(margin.left, margin.top);
      field(pen, scene);
      pen.restore();
      cover(pen, scene);
      ticks(pen, scene);
    },
  };
}

function field(pen: Pen, { tiles, window: { row, column, per }, size, chosen, colours, dark }: Scene): void {
  const { queries, keys } = tiles.attention;
  pen.fillStyle = colours.panel;
  pen.fillRect(0, 0, size, size);
  const x = (at: number) => (at - column) / per;
  const y = (at: number) => (at - row) / per;
  if (tiles.overview) pen.image(imageOf(tiles.overview, dark), x(0), y(0), keys / per, queries / per);
  const level = Math.max(0, Math.floor(Math.log2(per) + 0.01));
  const span = side * 2 ** level;
  const [rows, columns] = [Math.ceil(queries / span), Math.ceil(keys / span)];
  const near: Tile[] = [];
  for (let r = Math.max(0, Math.floor(row / span)); r < Math.min(rows, (row + size * per) / span); r += 1) {
    for (let c = Math.max(0, Math.floor(column / span)); c < Math.min(columns, (column + size * per) / span); c += 1) {
      const tile = tiles.tile(level, r, c);
      if (!tile || !tile.rows || !tile.columns) continue;
      pen.image(imageOf(tile, dark), x(tile.column), y(tile.row), (tile.columns * tile.cells) / per, (tile.rows * tile.cells) / per);
      near.push(tile);
    }
  }
  if (per < 1 / 26) for (const tile of near) figures(pen, tile, { row, column, per }, size, dark);
  pen.strokeStyle = colours.ink;
  pen.lineWidth = 1.5;
  const wide = Math.max(5, 1 / per);
  pen.strokeRect(x(chosen.column + 0.5) - wide / 2, y(chosen.row + 0.5) - wide / 2, wide, wide);
}

function figures(pen: Pen, tile: Tile, { row, column, per }: Window, size: number, dark: boolean): void {
  pen.font = digits(1 / per > 40 ? 12 : 9);
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  for (let r = Math.max(0, Math.floor(row - tile.row)); r < Math.min(tile.rows, row - tile.row + size * per); r += 1) {
    for (let c = Math.max(0, Math.floor(column - tile.column)); c < Math.min(tile.columns, column - tile.column + size * per); c += 1) {
      const value = tile.data[r * tile.columns + c];
      if (value < 0.0005) continue;
      pen.fillStyle = readable(rgb(along("weights", Math.sqrt(value), 1), dark));
      pen.fillText(value.toFixed(2).replace(/^0/, ""), (tile.column + c + 0.5 - column) / per, (tile.row + r + 0.5 - row) / per);
    }
  }
}

/** What a map draws beyond its edges is covered, where the names stand. */
function cover(pen: Pen, { size, colours }: Scene): void {
  pen.fillStyle = colours.paper;
  pen.fillRect(0, 0, size + margin.left, margin.top);
  pen.fillRect(0, 0, margin.left, size + margin.top);
  pen.strokeStyle = colours.line;
  pen.lineWidth = 1;
  pen.strokeRect(margin.left - 0.5, margin.top - 0.5, size, size);
}

function ticks(pen: Pen, { window: { row, column, per }, size, queries, keys, chosen, colours, tiles }: Scene): void {
  const close = 1 / per >= 13;
  const step = close ? 1 : 10 ** Math.ceil(Math.log10(per * 60)) / (10 ** Math.ceil(Math.log10(per * 60)) / (per * 60) > 4 ? 4 : 1);
  const marks = (first: number, count: number) => {
    const found: number[] = [];
    for (let at = Math.max(0, Math.ceil(first / step) * step - (close ? 1 : 0)); at < Math.min(count, first + size * per); at += step) if ((at + 0.5 - first) / per > 2) found.push(Math.round(at));
    return found;
  };
  const text = (tokens: string[], at: number) => (close ? tokens[at] : at.toLocaleString("en"));
  pen.textBaseline = "middle";
  for (const at of marks(row, tiles.attention.queries)) {
    pen.font = label(12, at === chosen.row);
    pen.fillStyle = at === chosen.row ? colours.query : colours.muted;
    pen.textAlign = "right";
    pen.fillText(cut(text(queries, at), margin.left - 10, pen.font), margin.left - 6, margin.top + (at + 0.5 - row) / per);
  }
  for (const at of marks(column, tiles.attention.keys)) {
    pen.font = label(12, at === chosen.column);
    pen.fillStyle = at === chosen.column ? colours.key : colours.muted;
    pen.save();
    pen.translate(margin.left + (at + 0.5 - column) / per, margin.top - 6);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "left";
    pen.fillText(cut(text(keys, at), margin.top - 10, pen.font), 0, 0);
    pen.restore();
  }
}
