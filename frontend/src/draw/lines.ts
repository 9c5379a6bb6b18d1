// Tokens and lines: queries on one side, keys on the other, and a line as strong as its weight.
import type { Palette } from "./palette";
import { cut, label, widest, measureText, type Drawing, type Pen } from "./pen";

export interface Line { query: number; key: number; weight: number; strong: boolean }
export interface Lines {
  queries: string[];
  keys: string[];
  lines: Line[];
  chosen: { row: number; column: number };
  colours: Palette;
  room: number;
  /** Weights that are drawn as bars beside the keys. */
  shares?: ArrayLike<number> | null;
}

export const lineHeight = 21;

/** One token in each row, queries at the left and keys at the right. */
export function verticalDrawing({ queries, keys, lines, chosen, colours, room, shares }: Lines): Drawing & { left: number; right: number } {
  const left = Math.min(widest(queries) + 14, 240);
  const keyRoom = Math.min(widest(keys) + 14, 200) + (shares ? 96 : 0);
  const right = Math.max(left + 120, Math.min(room - keyRoom, left + 340));
  const height = Math.max(queries.length, keys.length) * lineHeight + 8;
  const middle = (i: number) => i * lineHeight + lineHeight / 2 + 4;
  return {
    left,
    right,
    width: right + keyRoom,
    height,
    paint(pen) {
      for (const { query, key, weight, strong } of lines.toSorted((a, b) => Number(a.strong) - Number(b.strong))) {
        pen.globalAlpha = strong ? 0.25 + 0.75 * weight : Math.min(0.5, weight * 0.6);
        pen.strokeStyle = strong ? colours.key : colours.muted;
        pen.lineWidth = strong ? 1 + 5 * weight : 0.5 + 2 * weight;
        curve(pen, left + 4, middle(query), right - 4, middle(key));
      }
      pen.globalAlpha = 1;
      pen.textBaseline = "middle";
      queries.forEach((text, row) => name(pen, text, left, middle(row), "right", row === chosen.row ? colours.query : colours.ink, row === chosen.row, left - 4));
      keys.forEach((text, column) => {
        name(pen, text, right, middle(column), "left", column === chosen.column ? colours.key : colours.ink, column === chosen.column, 190);
        if (!shares) return;
        const at = right + keyRoom - 88;
        pen.fillStyle = colours.line;
        pen.fillRect(at, middle(column) - 3, 80, 6);
        pen.fillStyle = colours.key;
        pen.fillRect(at, middle(column) - 3, 80 * Math.min(1, shares[column]), 6);
      });
    },
  };
}

function curve(pen: Pen, x: number, y: number, toX: number, toY: number): void {
  pen.beginPath();
  pen.moveTo(x, y);
  pen.bezierCurveTo((x + toX) / 2, y, (x + toX) / 2, toY, toX, toY);
  pen.stroke();
}

function name(pen: Pen, text: string, x: number, y: number, align: CanvasTextAlign, colour: string, bold: boolean, most: number): void {
  pen.textAlign = align;
  pen.font = label(13, bold);
  pen.fillStyle = colour;
  pen.fillText(cut(text, most, pen.font), x, y);
}

interface Across {
  above: string[];
  below: string[];
  links: { above: number; below: number; weight: number; strong?: boolean }[];
  chosenBelow: number | null;
  marked: Map<number, string>;
  colours: Palette;
  rightAbove: boolean;
  rightBelow: boolean;
}

/** Two lines of words, one above the other; a line of words may run from right to left. */
export function horizontalDrawing({ above, below, links, chosenBelow, marked, colours, rightAbove, rightBelow }: Across): Drawing & { boxes: { above: [number, number][]; below: [number, number][] } } {
  const gap = 26;
  const font = label(16);
  const lay = (tokens: string[]) => {
    let x = 8;
    return tokens.map((token) => { const wide = Math.max(measureText(token, font), 14); const box: [number, number] = [x, wide]; x += wide + gap; return box; });
  };
  const boxes = { above: lay(above), below: lay(below) };
  const end = (list: [number, number][]) => { const last = list.at(-1); return last ? last[0] + last[1] + 8 : 16; };
  const width = Math.max(end(boxes.above), end(boxes.below));
  const flip = (list: [number, number][], right: boolean) => (right ? list.map(([x, wide]) => [width - x - wide, wide] as [number, number]) : list);
  boxes.above = flip(boxes.above, rightAbove);
  boxes.below = flip(boxes.below, rightBelow);
  const [top, bottom] = [30, 150];
  return {
    width,
    height: bottom + 34,
    boxes,
    paint(pen) {
      for (const { above: from, below: to, weight, strong } of links) {
        if (!boxes.above[from] || !boxes.below[to]) continue;
        const here = chosenBelow === null || to === chosenBelow;
        pen.globalAlpha = (here ? 0.2 + 0.8 * weight : 0.08 + 0.25 * weight) * (strong === false ? 0.6 : 1);
        pen.strokeStyle = here ? colours.key : colours.muted;
        pen.lineWidth = 0.75 + 4 * weight;
        const [x, toX] = [boxes.above[from][0] + boxes.above[from][1] / 2, boxes.below[to][0] + boxes.below[to][1] / 2];
        pen.beginPath();
        pen.moveTo(x, top + 10);
        pen.bezierCurveTo(x, (top + bottom) / 2, toX, (top + bottom) / 2, toX, bottom - 10);
        pen.stroke();
      }
      pen.globalAlpha = 1;
      pen.textBaseline = "middle";
      pen.textAlign = "center";
      above.forEach((text, i) => {
        pen.font = font;
        pen.fillStyle = marked.get(i) ?? colours.ink;
        pen.fillText(text, boxes.above[i][0] + boxes.above[i][1] / 2, top - 4);
      });
      below.forEach((text, i) => {
        pen.font = label(16, i === chosenBelow);
        pen.fillStyle = i === chosenBelow ? colours.query : colours.ink;
        pen.fillText(text, boxes.below[i][0] + boxes.below[i][1] / 2, bottom + 8);
      });
    },
  };
}
