// Blocks of bytes as numbers.
import type { Block, Bytes, Source } from "../protocol";

export interface Tensor {
  shape: number[];
  data: Float32Array | Int8Array | Uint8Array;
  /** The size of a step, for each last dimension of int8. */
  steps?: Float32Array;
}

const sizes = { float32: 4, float16: 2, int8: 1, uint8: 1 };
export const count = (block: Block): number => block.shape.reduce((a, b) => a * b, 1);
export const byteLength = (block: Block): number => count(block) * sizes[block.dtype];

/** The tensor of a block; immediately where the host already has its bytes. */
export function readTensor(block: Block, source: Source): Tensor | Promise<Tensor> {
  const bytes = source(block, byteLength(block));
  const steps = block.scale && source(block.scale, byteLength(block.scale));
  if (bytes instanceof Promise || steps instanceof Promise) {
    return Promise.all([bytes, steps]).then(([own, scale]) => decode(block, own, scale));
  }
  return decode(block, bytes, steps);
}

function decode(block: Block, bytes: Bytes, scale?: Bytes): Tensor {
  const data = numbers(block, bytes);
  if (!block.scale || !scale) return { shape: block.shape, data };
  return { shape: block.shape, data, steps: numbers(block.scale, scale) as Float32Array };
}

function numbers(block: Block, bytes: Bytes): Float32Array | Int8Array | Uint8Array {
  const size = byteLength(block);
  let raw = ArrayBuffer.isView(bytes) ? new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength) : new Uint8Array(bytes);
  if (raw.byteLength < size) throw new Error(`expected a block of ${size} bytes, but it has ${raw.byteLength}`);
  if (raw.byteOffset % 4) raw = raw.slice(0, size);
  const { buffer, byteOffset } = raw;
  const length = count(block);
  switch (block.dtype) {
    case "int8": return new Int8Array(buffer, byteOffset, length);
    case "uint8": return new Uint8Array(buffer, byteOffset, length);
    case "float32": return new Float32Array(buffer, byteOffset, length);
    case "float16": {
      const halves = new Uint16Array(buffer, byteOffset, length);
      const table = halfTable();
      const found = new Float32Array(length);
      for (let i = 0; i < length; i += 1) found[i] = table[halves[i]];
      return found;
    }
  }
}

let halfs: Float32Array | null = null;

/** The value of every float16. */
function halfTable(): Float32Array {
  if (halfs) return halfs;
  halfs = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits += 1) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const part = bits & 1023;
    if (exponent === 31) halfs[bits] = part ? NaN : sign * Infinity;
    else halfs[bits] = sign * (exponent ? 2 ** (exponent - 15) * (1 + part / 1024) : 2 ** -14 * (part / 1024));
  }
  return halfs;
}

/** `rows` vectors of a tensor (..., d) from vector `first` on, as float32. */
export function vectors(tensor: Tensor, first: number, rows: number): Float32Array {
  const d = tensor.shape[tensor.shape.length - 1];
  const part = tensor.data.subarray(first * d, (first + rows) * d);
  if (part instanceof Float32Array) return part;
  const found = new Float32Array(rows * d);
  for (let row = 0; row < rows; row += 1) {
    const step = tensor.steps ? tensor.steps[first + row] : 1;
    for (let i = row * d; i < (row + 1) * d; i += 1) found[i] = part[i] * step;
  }
  return found;
}
