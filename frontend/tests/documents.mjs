// Small documents with numbers of their own, as the Python side would write them.

/** The same numbers in every run. */
export function random(seed) {
  let state = seed;
  return () => {
    state = (state * 1664525 + 1013904223) % 4294967296;
    return state / 4294967296;
  };
}

export class Blocks {
  parts = [];
  size = 0;

  add(numbers, shape, dtype = "float32") {
    const types = { float32: Float32Array, int8: Int8Array, uint8: Uint8Array, float16: Uint16Array };
    const bytes = Buffer.from(types[dtype].from(numbers).buffer);
    const padded = Buffer.concat([bytes, Buffer.alloc((8 - (bytes.length % 8)) % 8)]);
    const block = { offset: this.size, dtype, shape };
    this.parts.push(padded);
    this.size += padded.length;
    return block;
  }

  normal(next, shape, spread = 1) {
    const count = shape.reduce((a, b) => a * b, 1);
    const numbers = Float32Array.from({ length: count }, () => (next() + next() + next() - 1.5) * 2 * spread);
    return { numbers, block: this.add(numbers, shape) };
  }

  bytes() { return Buffer.concat(this.parts); }
}

/** The weights of one head, from scratch: what the page must show. */
export function computeWeights({ query, key, heads, queries, keys, d, causal }, head) {
  return Array.from({ length: queries }, (_, row) => {
    const scores = Array.from({ length: keys }, (_, column) => {
      if (causal && column > row) return -Infinity;
      let product = 0;
      for (let i = 0; i < d; i += 1) product += query[(head * queries + row) * d + i] * key[(head * keys + column) * d + i];
      return product / Math.sqrt(d);
    });
    const greatest = Math.max(...scores);
    const shares = scores.map((score) => Math.exp(score - greatest));
    const sum = shares.reduce((a, b) => a + b, 0);
    return shares.map((share) => share / sum);
  });
}

function attention(blocks, next, place, { heads, queries, keys, d, causal = false, asks, answers, bend = 0 }) {
  const [query, key, value] = [[heads, queries, d], [heads, keys, d], [heads, keys, d]].map((shape) => blocks.normal(next, shape, 1.5));
  const numbers = { query: query.numbers, key: key.numbers, value: value.numbers, heads, queries, keys, d, causal };
  const context = [];
  for (let head = 0; head < heads; head += 1) {
    for (const row of computeWeights(numbers, head)) {
      for (let i = 0; i < d; i += 1) context.push(row.reduce((sum, weight, column) => sum + weight * value.numbers[(head * keys + column) * d + i], bend));
    }
  }
  const parts = place.split(".");
  const spread = (from) => Array.from({ length: heads }, (_, head) => from + head / 10);
  return {
    numbers,
    data: {
      place, stack: parts[0], layer: Number(parts[1]), kind: place.endsWith("cross_attention") ? "cross" : "self", queries: asks, keys: answers,
      heads, kv_heads: heads, n_queries: queries, n_keys: keys, scale: 1 / Math.sqrt(d), softcap: null, certified: spread(0).map(() => 1e-7),
      query: query.block, key: key.block, value: value.block, context: blocks.add(context, [heads, queries, d]),
      rule: { causal, window: null, past: 0 }, value_norms: blocks.add(spread(1).flatMap((at) => Array.from({ length: keys }, () => at)), [heads, keys]),
      statistics: { entropy: spread(0.5), previous: spread(0.1).reverse(), induction: spread(0).map(() => null) },
    },
  };
}

export const sourceTokens = ["The", "cat", "sat", "</s>"];
export const answerTokens = ["Die", "Katze", "sa\u00df", "</s>"];

/** An encoder-decoder of two layers and two heads that translated a sentence. */
export function translation({ bend = 0, source = sourceTokens, answer = answerTokens, live = false, seed = 1 } = {}) {
  const [blocks, next] = [new Blocks(), random(seed)];
  const [n, m] = [source.length, answer.length];
  const made = [];
  for (let layer = 0; layer < 2; layer += 1) {
    made.push(attention(blocks, next, `encoder.${layer}.self_attention`, { heads: 2, queries: n, keys: n, d: 8, asks: "source", answers: "source" }));
  }
  for (let layer = 0; layer < 2; layer += 1) {
    made.push(attention(blocks, next, `decoder.${layer}.self_attention`, { heads: 2, queries: m, keys: m, d: 8, causal: true, asks: "target", answers: "target" }));
    made.push(attention(blocks, next, `decoder.${layer}.cross_attention`, { heads: 2, queries: m, keys: n, d: 8, asks: "target", answers: "source", bend: layer ? bend : 0 }));
  }
  const answers = answer.map((token, i) => ({ chosen: [token, 0.9 - i / 10], best: [[token, 0.9 - i / 10], ["and", 0.05], ["of", 0.01]] }));
  const effects = (i) => [
    ...source.map((_, key) => ({ side: "source", key, p_without: key === i ? 0.1 : 0.7, by_match: 0.5, by_content: 0.2, heads: key === i ? [["decoder.1.cross_attention", 1, 0.3]] : [] })),
  ].sort((a, b) => a.p_without - b.p_without);
  const run = {
    name: "tiny", summary: ["layers: 2", "heads: 2"],
    axes: { source: { kind: "text", tokens: source }, target: { kind: "text", tokens: ["<s>", ...answer.slice(0, -1)] } },
    answers, attentions: made.map((one) => one.data),
    hypotheses: [{ text: answer.slice(0, -1).join(" "), tokens: answer, score: -0.5, log_probability: -1.5, alignment: answer.map((_, i) => [Math.min(i, n - 1), i]) }, { text: "Der Kater", tokens: ["Der", "Kater"], score: null, log_probability: -4, alignment: [[0, 0]] }],
    alignment: { heads: [["decoder.1.cross_attention", 0, 0.8]], weights: blocks.add(answer.flatMap((_, i) => source.map((_, j) => (i === j ? 0.9 : 0.03))), [m, n]), links: answer.map((_, i) => [Math.min(i, n - 1), i]), omitted: [n - 1], repeated: [] },
    explanations: live ? [] : answer.map((token, i) => ({ position: i + 1, token, p: 0.9 - i / 10, effects: effects(i) })),
    edits: [], code: "import qkv\n\nmodel = qkv.load('tiny')\ntrace = qkv.look(model, 'The cat sat')\nprint(trace.answer)",
  };
  return { made, blocks, document: { version: 1, title: "The cat sat", note: "a test", runs: [run], precision: { dtype: "float32", error: 0 }, live } };
}

/** Two runs of the same sentence. */
export function pair() {
  const [one, other] = [translation(), translation({ seed: 7 })];
  const shift = JSON.stringify(other.document.runs[0]).replace(/"offset":(\d+)/g, (_, at) => `"offset":${Number(at) + one.blocks.size}`);
  const run = { ...JSON.parse(shift), name: "other" };
  run.answers[1].chosen = ["Kater", 0.4];
  one.document.runs.push(run);
  one.blocks.parts.push(...other.blocks.parts);
  return one;
}

/** An encoder over something that is no text. */
export function nonTextRun(kind) {
  const [blocks, next] = [new Blocks(), random(3)];
  const axes = {
    image: { tokens: ["<1>", ...Array.from({ length: 9 }, (_, i) => `${Math.floor(i / 3) + 1},${(i % 3) + 1}`)], image: { rows: 3, columns: 3, leading: 1, pixels: blocks.add(Array.from({ length: 27 * 27 * 3 }, () => next() * 255), [27, 27, 3], "uint8") } },
    audio: { tokens: Array.from({ length: 20 }, (_, i) => `${(i * 0.1).toFixed(2)} s${i === 9 ? " two" : i === 12 ? " three" : ""}`), audio: { peaks: blocks.add(Array.from({ length: 200 }, (_, i) => (i % 2 ? 1 : -1) * next()), [100, 2]), samples: 16000, seconds: 2, leading: 0, seconds_per_token: 0.1, words: [["one", 0.2, 0.55], ["incomprehensible", 0.6, 0.7], ["two", 0.72, 1.1], ["three", 1.12, 1.9]] } },
    trajectory: { tokens: Array.from({ length: 12 }, (_, i) => `${["return", "state", "action"][i % 3]} ${Math.floor(i / 3) + 1}`), trajectory: { kinds: ["return", "state", "action"], first_step: 36, values: { return: blocks.add([9, 8, 7, 6], [4, 1]), state: blocks.add(Array.from({ length: 16 }, next), [4, 4]), action: blocks.add([0, 1, 1, 0], [4, 1]) } } },
  };
  const axis = { kind, ...axes[kind] };
  const length = axis.tokens.length;
  const one = attention(blocks, next, "encoder.0.self_attention", { heads: 2, queries: length, keys: length, d: 8, asks: "source", answers: "source" });
  const run = { name: kind, axes: { source: axis }, answers: [{ chosen: ["cat", 0.8], best: [["cat", 0.8], ["dog", 0.2]] }], attentions: [one.data], hypotheses: [], alignment: null, explanations: [] };
  return { blocks, document: { version: 1, title: kind, note: "", runs: [run], precision: { dtype: "float32", error: 0 }, live: false } };
}

/** A decoder of 12 layers of 12 heads over 512 tokens, in int8. */
export function large(tokens = 512, layers = 12, heads = 12, d = 64) {
  const [blocks, next] = [new Blocks(), random(5)];
  const vectors = () => {
    const numbers = Int8Array.from({ length: heads * tokens * d }, () => (next() + next() + next() - 1.5) * 84);
    return { ...blocks.add(numbers, [heads, tokens, d], "int8"), scale: blocks.add(new Uint16Array(heads * tokens).fill(0x2800), [heads, tokens], "float16") }; // steps of 1/32
  };
  const attentions = Array.from({ length: layers }, (_, layer) => ({
    place: `decoder.${layer}.self_attention`, stack: "decoder", layer, kind: "self", queries: "target", keys: "target", heads, kv_heads: heads, n_queries: tokens, n_keys: tokens,
    scale: 1 / Math.sqrt(d), softcap: null, certified: new Array(heads).fill(1e-6), query: vectors(), key: vectors(), value: vectors(), rule: { causal: true, window: null, past: 0 }, statistics: {},
  }));
  const names = Array.from({ length: tokens }, (_, i) => `t${i}`);
  const run = { name: "large", axes: { target: { kind: "text", tokens: names } }, answers: names.map((name) => ({ chosen: [name, 0.5], best: [[name, 0.5]] })), attentions, hypotheses: [], alignment: null, explanations: [] };
  return { blocks, document: { version: 1, title: "large", note: "", runs: [run], precision: { dtype: "int8", error: 0.001 }, live: false } };
}

/** A run too long to hold its queries and keys: an overview and numbers for each query. */
export function long(tokens = 100_000, live = true) {
  const [blocks, next] = [new Blocks(), random(9)];
  const overview = Float32Array.from({ length: 256 * 256 }, (_, at) => (at % 256 > at / 256 ? 0 : next() / 10));
  const names = Array.from({ length: tokens }, (_, i) => `w${i}`);
  const curve = () => blocks.add(Float32Array.from({ length: tokens }, () => next()), [1, tokens]);
  const one = {
    place: "decoder.0.self_attention", stack: "decoder", layer: 0, kind: "self", queries: "target", keys: "target", heads: 2, kv_heads: 2, n_queries: tokens, n_keys: tokens, scale: 0.125,
    rule: { causal: true, window: null, past: 0 }, overview_heads: [0], overview: blocks.add(overview, [1, 256, 256]), per_query: { entropy: curve(), sink: curve(), received: curve() }, statistics: { entropy: [1, null] },
  };
  const run = { name: "long", long: true, axes: { target: { kind: "text", tokens: names } }, answers: names.map((name) => ({ chosen: [name, 0.5], best: [] })), attentions: [one], hypotheses: [], alignment: null, explanations: [] };
  return { blocks, document: { version: 1, title: "long", note: "", runs: [run], precision: { dtype: "float32", error: 0 }, live } };
}
