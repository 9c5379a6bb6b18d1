// A head at a small size: max-pooled, from as many rows as there is room to show.
import type { Attention } from "./attention";

export interface Small { rows: number; columns: number; data: Float32Array }

/** The weights at no more than size x size: evenly spaced queries, whose keys are max-pooled. */
export function shrink(attention: Attention, head: number, size: number): Small {
  const rows = Math.min(attention.queries, size);
  const columns = Math.min(attention.keys, size);
  const data = new Float32Array(rows * columns);
  const whole = attention.tensors.overview;
  const at = attention.data.overview_heads?.indexOf(head) ?? head;
  if (!attention.exact && whole && at >= 0) return pool(whole.data, at, whole.shape, whole.data instanceof Uint8Array, size);
  if (!attention.exact) return { rows: 0, columns: 0, data };
  for (let row = 0; row < rows; row += 1) {
    const at = rows === attention.queries ? row : Math.floor(((row + 0.5) * attention.queries) / rows);
    const { weights } = attention.row(head, at);
    for (let column = 0; column < attention.keys; column += 1) {
      const to = row * columns + Math.floor((column * columns) / attention.keys);
      if (weights[column] > data[to]) data[to] = weights[column];
    }
  }
  return { rows, columns, data };
}

export function pool(values: ArrayLike<number>, head: number, shape: number[], rooted: boolean, size: number): Small {
  const [, high, wide] = shape;
  const rows = Math.min(high, size);
  const columns = Math.min(wide, size);
  const data = new Float32Array(rows * columns);
  for (let row = 0; row < high; row += 1) {
    for (let column = 0; column < wide; column += 1) {
      let value = values[(head * high + row) * wide + column];
      if (rooted) value = (value / 255) ** 2;
      const to = Math.floor((row * rows) / high) * columns + Math.floor((column * columns) / wide);
      if (value > data[to]) data[to] = value;
    }
  }
  return { rows, columns, data };
}
