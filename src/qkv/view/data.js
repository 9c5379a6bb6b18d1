// The tensors of the page, and the same mathematics as the model's: scores, weights and context from query, key, value.

const page = JSON.parse(document.getElementById("document").textContent);

function decode(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

const bytes = decode(document.getElementById("blocks").textContent.trim());
const littleEndian = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

function tensor(block) {
  if (!block) return null;
  const size = block.shape.reduce((product, length) => product * length, 1);
  if (block.kind === "uint8") return { shape: block.shape, data: bytes.subarray(block.at, block.at + size) };
  if (littleEndian) return { shape: block.shape, data: new Float32Array(bytes.buffer, bytes.byteOffset + block.at, size) };
  const view = new DataView(bytes.buffer, bytes.byteOffset + block.at, size * 4);
  return { shape: block.shape, data: Float32Array.from({ length: size }, (_, i) => view.getFloat32(i * 4, true)) };
}

const kindNames = { self_attention: "self-attention", cross_attention: "cross-attention" };

class Attention {
  constructor(described) {
    Object.assign(this, described);
    for (const name of ["query", "key", "value", "context", "visible", "added", "scores", "sinks", "norms"]) {
      this[name] = tensor(described[name]);
    }
    [this.heads, this.queries, this.dKey] = this.query.shape;
    [this.kvHeads, this.keys, this.dValue] = this.value.shape;
    const decoder = this.stack === "decoder" || this.stack === "answer";
    this.queryAxis = decoder ? "target" : "source";
    this.keyAxis = decoder && (this.kind !== "self_attention") ? "source" : this.queryAxis;
    this.queryTokens = this.tokens(this.queryAxis, this.queries);
    this.keyTokens = this.tokens(this.keyAxis, this.keys);
    this.kept = new Map();
  }

  get group() {
    return `${this.stack} ${kindNames[this.kind] ?? this.kind.replaceAll("_", " ")}`.replace(/^\w/, (letter) => letter.toUpperCase());
  }

  tokens(axis, length) {
    const tokens = page[axis];
    return tokens.length === length ? tokens : Array.from({ length }, (_, i) => String(i));
  }

  // One head's vector of a query ("query", "context") or of a key ("key", "value"), whose heads may be shared.
  vector(name, head, position) {
    const { shape, data } = this[name];
    const at = (Math.floor((head * shape[0]) / this.heads) * shape[1] + position) * shape[2];
    return data.subarray(at, at + shape[2]);
  }

  entry(block, head, row, column) {
    const { shape, data } = block;
    return data[((shape[0] === 1 ? 0 : head) * this.queries + row) * this.keys + column];
  }

  isVisible(head, row, column) {
    return !this.visible || this.entry(this.visible, head, row, column) === 1;
  }

  // Everything between query . key and the score, step by step.
  score(head, row, column) {
    const added = this.added ? this.entry(this.added, head, row, column) : 0;
    const visible = this.isVisible(head, row, column);
    if (this.scores) return { given: true, added, visible, total: this.entry(this.scores, head, row, column) };
    const query = this.vector("query", head, row);
    const key = this.vector("key", head, column);
    let product = 0;
    for (let i = 0; i < query.length; i += 1) product += query[i] * key[i];
    const scaled = product * this.scale;
    const capped = this.softcap ? this.softcap * Math.tanh(scaled / this.softcap) : scaled;
    return { product, scaled, capped, added, visible, total: capped + added };
  }

  // One row of the softmax: scores, weights, and the sum it divides by.
  row(head, row) {
    const scores = Array.from({ length: this.keys }, (_, column) => this.score(head, row, column));
    const seen = scores.filter((score) => score.visible).map((score) => score.total);
    const sink = this.sinks ? this.sinks.data[head] : -Infinity;
    const greatest = Math.max(sink, ...seen);
    let sum = sink > -Infinity && seen.length ? Math.exp(sink - greatest) : 0;
    for (const total of seen) sum += Math.exp(total - greatest);
    const weights = scores.map((score) => (score.visible ? Math.exp(score.total - greatest) / sum : 0));
    return { scores, weights, greatest, sum };
  }

  context_(head, row, weights) {
    const context = new Float64Array(this.dValue);
    for (let column = 0; column < this.keys; column += 1) {
      if (weights[column] === 0) continue;
      const value = this.vector("value", head, column);
      for (let i = 0; i < this.dValue; i += 1) context[i] += weights[column] * value[i];
    }
    return context;
  }

  norm(head, column) {
    if (this.norms) return this.norms.data[head * this.keys + column];
    return Math.hypot(...this.vector("value", head, column));
  }

  // All rows of one head, kept, with what each key really gives: |weight x value x W_O|.
  matrix(head) {
    if (!this.kept.has(head)) {
      const size = this.queries * this.keys;
      const made = { scores: new Float32Array(size), weights: new Float32Array(size), flow: new Float32Array(size), difference: 0 };
      const norms = Array.from({ length: this.keys }, (_, column) => this.norm(head, column));
      for (let row = 0; row < this.queries; row += 1) {
        const { scores, weights } = this.row(head, row);
        for (let column = 0; column < this.keys; column += 1) {
          const at = row * this.keys + column;
          made.scores[at] = scores[column].visible ? scores[column].total : NaN;
          made.weights[at] = weights[column];
          made.flow[at] = weights[column] * norms[column];
        }
        const used = this.vector("context", head, row);
        const context = this.context_(head, row, weights);
        for (let i = 0; i < this.dValue; i += 1) made.difference = Math.max(made.difference, Math.abs(context[i] - used[i]));
      }
      this.kept.set(head, made);
    }
    return this.kept.get(head);
  }
}

const attentions = page.attentions.map((described) => new Attention(described));

// The head that a reader is most likely to want first: sharp, and not looking at one key always.
function mostTelling() {
  const last = attentions.filter((attention) => attention.kind === "cross_attention" || attention.kind === "attention");
  let best = { attention: Math.max(0, attentions.indexOf((last.length ? last : attentions).at(-1))), head: 0, telling: -Infinity };
  for (const attention of last.length ? last : attentions) {
    for (let head = 0; head < attention.heads; head += 1) {
      const { weights } = attention.matrix(head);
      const received = new Float64Array(attention.keys);
      let sharp = 0;
      for (let row = 0; row < attention.queries; row += 1) {
        const weightsOfRow = weights.subarray(row * attention.keys, (row + 1) * attention.keys);
        sharp += Math.max(...weightsOfRow);
        weightsOfRow.forEach((weight, column) => { received[column] += weight; });
      }
      const telling = (sharp - Math.max(...received)) / attention.queries;
      if (telling > best.telling) best = { attention: attentions.indexOf(attention), head, telling };
    }
  }
  return best;
}
