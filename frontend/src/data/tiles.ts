// A head as a map: an overview, and tiles of 256 x 256 numbers at every scale, computed here or requested.
import { signal } from "@preact/signals";
import type { Look } from "../state";
import type { Attention } from "./attention";
import { readTensor } from "./blocks";
import { pool, type Small } from "./pooling";

export interface Tile extends Small { row: number; column: number; cells: number }
export const side = 256;
const farthest = 3; // levels of 2 x 2 at which tiles are requested; beyond, the overview is used
const largestMatrix = 2048 * 2048;
const atOnce = 2;
const kept = 200;

export class Tiles {
  readonly changed = signal(0);
  readonly overview: Small | null;
  /** Numbers for each query, or for each key where the name is "received". */
  readonly curves: Record<string, ArrayLike<number>> = {};
  private readonly tiles = new Map<string, Tile | null>();
  private wanted: { id: string; level: number; row: number; column: number }[] = [];
  private running = 0;

  constructor(private readonly look: Look, readonly attention: Attention, readonly head: number) {
    this.overview = this.whole();
    this.perQuery();
  }

  get here(): boolean { return this.attention.exact && this.attention.queries * this.attention.keys <= largestMatrix; }
  get live(): boolean { return Boolean(this.look.host.ask); }
  /** Whether single cells can be seen. */
  get deep(): boolean { return this.here || this.live; }

  /** Whether there are tiles where a pixel holds so many cells. */
  tiled(per: number): boolean { return this.here || (this.live && Math.log2(per) + 0.01 < farthest + 1); }

  private whole(): Small | null {
    const { overview } = this.attention.tensors;
    const at = this.attention.data.overview_heads?.indexOf(this.head) ?? this.head;
    if (overview && at >= 0) return pool(overview.data, at, overview.shape, overview.data instanceof Uint8Array, Infinity);
    if (!this.here) return null;
    const { queries, keys } = this.attention;
    return pool(this.attention.matrix(this.head).weights, 0, [1, queries, keys], false, 1024);
  }

  private perQuery(): void {
    const { attention, head } = this;
    const blocks = attention.data.per_query;
    const at = attention.data.overview_heads?.indexOf(head) ?? head;
    if (blocks && at >= 0) {
      for (const [name, block] of Object.entries(blocks)) {
        const set = (data: ArrayLike<number>, length: number) => { this.curves[name] = Array.prototype.slice.call(data, at * length, (at + 1) * length); this.changed.value += 1; };
        const tensor = readTensor(block, this.look.run.value.source);
        if (tensor instanceof Promise) void tensor.then((one) => set(one.data, one.shape[1]));
        else set(tensor.data, tensor.shape[1]);
      }
    } else if (this.here) this.measure();
  }

  private measure(): void {
    const { queries, keys } = this.attention;
    const { weights } = this.attention.matrix(this.head);
    const make = (length: number) => new Float32Array(length);
    const [entropy, distance, sink, largest, received] = [make(queries), make(queries), make(queries), make(queries), make(keys)];
    for (let row = 0, at = 0; row < queries; row += 1) {
      sink[row] = weights[at];
      for (let column = 0; column < keys; column += 1, at += 1) {
        const weight = weights[at];
        if (weight === 0) continue;
        entropy[row] -= weight * Math.log(weight);
        distance[row] += weight * Math.abs(row - column);
        if (weight > largest[row]) largest[row] = weight;
        received[column] += weight;
      }
    }
    Object.assign(this.curves, { entropy, distance, sink, largest, received });
  }

  /** The tile if there is one; otherwise it is computed or requested. */
  tile(level: number, row: number, column: number): Tile | null {
    const id = `${level} ${row} ${column}`;
    const found = this.tiles.get(id);
    if (found !== undefined) return found;
    const span = side * 2 ** level;
    const rule = this.attention.data.rule;
    if (rule?.causal && column * span > rule.past + (row + 1) * span) return null;
    if (this.here) return this.keep(id, this.compute(level, row, column));
    if (this.live && level <= farthest && !this.wanted.some((one) => one.id === id)) {
      this.wanted.push({ id, level, row, column });
      void this.next();
    }
    return null;
  }

  private compute(level: number, row: number, column: number): Tile {
    const { queries, keys } = this.attention;
    const { weights } = this.attention.matrix(this.head);
    const cells = 2 ** level;
    const rows = Math.min(side, Math.ceil(queries / cells) - row * side);
    const columns = Math.min(side, Math.ceil(keys / cells) - column * side);
    const data = new Float32Array(Math.max(0, rows) * Math.max(0, columns));
    for (let y = row * side * cells; y < Math.min(queries, (row + 1) * side * cells); y += 1) {
      for (let x = column * side * cells; x < Math.min(keys, (column + 1) * side * cells); x += 1) {
        const to = (Math.floor(y / cells) - row * side) * columns + Math.floor(x / cells) - column * side;
        if (weights[y * keys + x] > data[to]) data[to] = weights[y * keys + x];
      }
    }
    return { rows, columns, data, row: row * side * cells, column: column * side * cells, cells };
  }

  private keep(id: string, tile: Tile | null): Tile | null {
    if (this.tiles.size > kept) this.tiles.delete(this.tiles.keys().next().value as string);
    this.tiles.set(id, tile);
    return tile;
  }

  /** Request the tile that was wanted last; those wanted long ago are no longer visible. */
  private async next(): Promise<void> {
    if (this.running >= atOnce) return;
    const one = this.wanted.at(-1);
    if (!one) return;
    this.wanted = this.wanted.slice(-12, -1);
    this.running += 1;
    const { queries, keys, place } = this.attention;
    const span = side * 2 ** one.level;
    const rows: [number, number] = [one.row * span, Math.min(queries, (one.row + 1) * span)];
    const columns: [number, number] = [one.column * span, Math.min(keys, (one.column + 1) * span)];
    const found = await this.look.fetch({ ask: "tile", place, head: this.head, rows, columns, size: side });
    this.running -= 1;
    if (found?.reply.tile) {
      const tensor = await readTensor(found.reply.tile, found.block);
      const [high, wide] = tensor.shape;
      this.keep(one.id, { rows: high, columns: wide, data: Float32Array.from(tensor.data, (value) => (value >= 0 ? value : 0)), row: rows[0], column: columns[0], cells: (rows[1] - rows[0]) / high });
      this.changed.value += 1;
    } else this.keep(one.id, null);
    void this.next();
  }
}
