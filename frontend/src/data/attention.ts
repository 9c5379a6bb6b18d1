// One attention: scores, weights and contexts, computed from query, key and value, for no more than is requested.
import type { AttentionData, Source } from "../protocol";
import { readTensor, vectors, type Tensor } from "./blocks";
import { long } from "../numbers";
import type { Changes } from "./changes";

export interface Score {
  /** Computed by the model, because it is not a dot product. */
  given: boolean;
  product: number;
  scaled: number;
  capped: number;
  added: number;
  visible: boolean;
  total: number;
}

export interface Row { scores: Float32Array; weights: Float32Array; greatest: number; sum: number }
export interface Matrix { scores: Float32Array; weights: Float32Array }
export type Show = "weights" | "scores" | "flow";

const names = ["query", "key", "value", "context", "visible", "score_bias", "score_bias_by_distance", "sinks", "scores", "value_norms", "overview"] as const;
type Name = (typeof names)[number];
const keptMatrices = 12;

export class Attention {
  readonly place: string;
  readonly heads: number;
  readonly queries: number;
  readonly keys: number;
  readonly tensors: Partial<Record<Name, Tensor>> = {};
  ready = false;
  changes: Changes | null = null;
  private readonly kept = new Map<string, Float32Array>();
  private double: { head: number; query: Float64Array; key: Float64Array } | null = null;
  private readonly lengths = new Map<number, Float32Array>();
  private readonly matrices = new Map<number, Matrix>();

  constructor(readonly data: AttentionData, private readonly source: Source) {
    this.place = data.place;
    this.heads = data.heads;
    this.queries = data.n_queries;
    this.keys = data.n_keys;
  }

  /** Whether every cell can be computed here. */
  get exact(): boolean { return Boolean((this.data.query && this.data.key) || this.data.scores); }
  get dKey(): number { return this.tensors.query?.shape[2] ?? 0; }
  get dValue(): number { return this.tensors.value?.shape[2] ?? 0; }

  get group(): string {
    const { stack, kind } = this.data;
    return `${stack[0].toUpperCase()}${stack.slice(1)} ${kind === "cross" ? "cross-attention" : "self-attention"}`;
  }

  /** Load the tensors; immediately where the host already has them. */
  load(): void | Promise<void> {
    const waiting: Promise<void>[] = [];
    for (const name of names) {
      const block = this.data[name];
      if (!block) continue;
      const found = readTensor(block, this.source);
      if (found instanceof Promise) waiting.push(found.then((tensor) => { this.tensors[name] = tensor; }));
      else this.tensors[name] = found;
    }
    const done = () => { this.ready = true; };
    return waiting.length ? Promise.all(waiting).then(done) : done();
  }

  change(changes: Changes | null): void {
    this.changes = changes;
    this.matrices.clear();
  }

  /** All vectors of one head, one after the other; heads may share keys and values. */
  vectors(name: "query" | "key" | "value" | "context", head: number): Float32Array {
    const tensor = this.tensors[name];
    if (!tensor) return new Float32Array(0);
    const own = Math.floor((head * tensor.shape[0]) / this.heads);
    const id = `${name} ${own}`;
    let found = this.kept.get(id);
    if (!found) {
      found = vectors(tensor, own * tensor.shape[1], tensor.shape[1]);
      if (tensor.data instanceof Float32Array) return found;
      if (this.kept.size > 16) this.kept.delete(this.kept.keys().next().value as string);
      this.kept.set(id, found);
    }
    return found;
  }

  vector(name: "query" | "key" | "value" | "context", head: number, position: number): Float32Array {
    const tensor = this.tensors[name];
    if (!tensor) return new Float32Array(0);
    const at = name === "value" && this.changes ? this.changes.valueOf(head, position) : position;
    return this.vectors(name, head).subarray(at * tensor.shape[2], (at + 1) * tensor.shape[2]);
  }

  /** The columns that a row may attend to by the mask's rule: from, to (not included). */
  range(row: number): [number, number] {
    const rule = this.data.rule;
    if (!rule || this.tensors.visible) return [0, this.keys];
    const at = rule.past + row;
    return [
      rule.window === null ? 0 : Math.max(0, at - rule.window + 1),
      Math.min(this.keys, rule.causal ? at + 1 : rule.window === null ? this.keys : at + rule.window),
    ];
  }

  sees(head: number, row: number, column: number): boolean {
    const [from, to] = this.range(row);
    if (column < from || column >= to || this.changes?.hides(head, row, column)) return false;
    const { visible } = this.tensors;
    return !visible || this.entry(visible, head, row, column) === 1;
  }

  added(head: number, row: number, column: number): number {
    const { score_bias: added, score_bias_by_distance: far } = this.tensors;
    if (added) return this.entry(added, head, row, column);
    if (!far) return 0;
    return far.data[(far.shape[0] === 1 ? 0 : head) * far.shape[1] + column - row + this.queries - 1];
  }

  /** Everything between query . key and the score, step by step. */
  score(head: number, row: number, column: number): Score {
    const added = this.added(head, row, column);
    const visible = this.sees(head, row, column);
    const { scores } = this.tensors;
    if (scores) {
      const total = this.entry(scores, head, row, column);
      return { given: true, product: NaN, scaled: NaN, capped: NaN, added, visible, total };
    }
    const query = this.vector("query", head, row);
    const key = this.vector("key", head, column);
    let product = 0;
    for (let i = 0; i < query.length; i += 1) product += query[i] * key[i];
    const scaled = product * this.data.scale;
    const cap = this.data.softcap;
    const capped = cap ? cap * Math.tanh(scaled / cap) : scaled;
    return { given: false, product, scaled, capped, added, visible, total: capped + added };
  }

  /** One row: scores (NaN where hidden), weights, and the greatest score and sum that the softmax divides by. */
  row(head: number, row: number): Row {
    const scores = new Float32Array(this.keys).fill(NaN);
    const weights = new Float32Array(this.keys);
    return { scores, weights, ...this.fill(head, row, scores, weights) };
  }

  private fill(head: number, row: number, scores: Float32Array, weights: Float32Array): { greatest: number; sum: number } {
    const [from, to] = this.range(row);
    const sink = this.tensors.sinks ? this.tensors.sinks.data[head] : -Infinity;
    let greatest = sink;
    if (this.tensors.scores) {
      const { shape, data } = this.tensors.scores;
      const start = ((shape[0] === 1 ? 0 : head) * this.queries + row) * this.keys;
      for (let column = from; column < to; column += 1) scores[column] = data[start + column];
    } else {
      this.products(head, row, from, to, scores);
    }
    const masked = Boolean(this.tensors.visible || this.changes);
    for (let column = from; column < to; column += 1) {
      if (masked && !this.sees(head, row, column)) scores[column] = NaN;
      else if (scores[column] > greatest) greatest = scores[column];
    }
    let sum = sink > -Infinity ? Math.exp(sink - greatest) : 0;
    for (let column = from; column < to; column += 1) {
      const score = scores[column];
      if (score === score) sum += weights[column] = Math.exp(score - greatest);
    }
    if (sum > 0) for (let column = from; column < to; column += 1) weights[column] /= sum;
    return { greatest, sum };
  }

  private products(head: number, row: number, from: number, to: number, scores: Float32Array): void {
    const { query: queries, key: keys } = this.doubles(head);
    const d = this.dKey;
    const query = queries.subarray(row * d, (row + 1) * d);
    const { scale, softcap } = this.data;
    const adds = Boolean(this.tensors.score_bias || this.tensors.score_bias_by_distance);
    let column = from;
    for (; column + 3 < to; column += 4) { // four keys at once: each number of the query is read once for them
      let a = 0, b = 0, c = 0, e = 0;
      for (let i = 0, at = column * d; i < d; i += 1, at += 1) {
        const part = query[i];
        a += part * keys[at];
        b += part * keys[at + d];
        c += part * keys[at + 2 * d];
        e += part * keys[at + 3 * d];
      }
      scores[column] = a * scale;
      scores[column + 1] = b * scale;
      scores[column + 2] = c * scale;
      scores[column + 3] = e * scale;
    }
    for (; column < to; column += 1) {
      let a = 0;
      for (let i = 0, at = column * d; i < d; i += 1, at += 1) a += query[i] * keys[at];
      scores[column] = a * scale;
    }
    if (!softcap && !adds) return;
    for (column = from; column < to; column += 1) {
      const score = softcap ? softcap * Math.tanh(scores[column] / softcap) : scores[column];
      scores[column] = adds ? score + this.added(head, row, column) : score;
    }
  }

  /** Queries and keys of the head that was used last, in double precision. */
  private doubles(head: number): { query: Float64Array; key: Float64Array } {
    if (this.double?.head !== head) {
      this.double = { head, query: new Float64Array(this.vectors("query", head)), key: new Float64Array(this.vectors("key", head)) };
    }
    return this.double;
  }

  /** All rows of one head, kept for a while. */
  matrix(head: number): Matrix {
    let found = this.matrices.get(head);
    if (!found) {
      const size = this.queries * this.keys;
      found = { scores: new Float32Array(size).fill(NaN), weights: new Float32Array(size) };
      for (let row = 0; row < this.queries; row += 1) {
        const part = [row * this.keys, (row + 1) * this.keys] as const;
        this.fill(head, row, found.scores.subarray(...part), found.weights.subarray(...part));
      }
      if (this.matrices.size >= (size > 65536 ? 2 : keptMatrices)) this.matrices.delete(this.matrices.keys().next().value as number);
      this.matrices.set(head, found);
    }
    return found;
  }

  /** How much a key can contribute: |value W_O|, or |value| where there is no W_O. */
  norm(head: number, column: number): number {
    const at = this.changes ? this.changes.valueOf(head, column) : column;
    if (this.tensors.value_norms) return this.tensors.value_norms.data[head * this.keys + at];
    let lengths = this.lengths.get(head);
    if (!lengths) {
      const [values, d] = [this.vectors("value", head), this.dValue];
      this.lengths.set(head, lengths = Float32Array.from({ length: this.keys }, (_, key) => long(values.subarray(key * d, (key + 1) * d))));
    }
    return lengths[at];
  }

  /** The context of a head with these weights. */
  context(head: number, weights: ArrayLike<number>): Float64Array {
    const context = new Float64Array(this.dValue);
    if (this.changes?.off(head)) return context;
    for (let column = 0; column < this.keys; column += 1) {
      if (weights[column] === 0) continue;
      const value = this.vector("value", head, column);
      for (let i = 0; i < context.length; i += 1) context[i] += weights[column] * value[i];
    }
    return context;
  }

  /** The largest difference between what is recomputed here and the context that the model itself used. */
  difference(head: number, rows: Iterable<number>): number {
    let worst = 0;
    for (const row of rows) {
      const used = this.vector("context", head, row);
      const context = this.context(head, this.row(head, row).weights);
      for (let i = 0; i < used.length; i += 1) {
        const here = Math.abs(context[i] - used[i]);
        if (!(here <= worst)) worst = here;
      }
    }
    return worst;
  }

  private entry(block: Tensor, head: number, row: number, column: number): number {
    return block.data[((block.shape[0] === 1 ? 0 : head) * this.queries + row) * this.keys + column];
  }
}
