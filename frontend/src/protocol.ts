// What every host gives the page: one document, blocks of numbers and, where there is a model, replies to requests.

export interface Block {
  offset: number;
  dtype: "float32" | "float16" | "int8" | "uint8";
  shape: number[];
  scale?: Block;
}

/**
 * samples: how many the sound has. words: each word of the answer, with the seconds at which it begins and ends.
 * first_step: the number of the first step, from 0. values: the numbers of each kind of position, (steps, numbers).
 */
export interface Axis {
  kind: "text" | "image" | "audio" | "trajectory";
  tokens: string[];
  image?: { rows: number; columns: number; leading: number; pixels: Block };
  audio?: { peaks: Block; samples: number; seconds: number; leading: number; seconds_per_token: number; words?: [string, number, number][] };
  trajectory?: { kinds: string[]; first_step: number; values: Record<string, Block> };
}

export type Side = "source" | "target";
export type Kind = "self" | "cross";

export interface AttentionData {
  place: string;
  stack: string;
  layer: number;
  kind: Kind;
  queries: Side;
  keys: Side;
  heads: number;
  kv_heads: number;
  n_queries: number;
  n_keys: number;
  scale: number;
  softcap?: number | null;
  certified?: number[];
  query?: Block;
  key?: Block;
  value?: Block;
  context?: Block;
  rule?: Rule;
  visible?: Block;
  score_bias?: Block;
  score_bias_by_distance?: Block;
  sinks?: Block;
  scores?: Block;
  value_norms?: Block;
  overview?: Block;
  /** Of a long run: which heads `overview` and `per_query` are of. */
  overview_heads?: number[];
  per_query?: Record<string, Block>;
  statistics?: Record<string, (number | null)[]>;
}

/** A query at position past + its number attends to keys up to there (causal), and only to those nearer than window. */
export interface Rule { causal: boolean; window: number | null; past: number }

export type Pair = [string, number];
export interface Answer { chosen: Pair; best: Pair[] }

export interface Effect {
  side: "source" | "past";
  key: number;
  p_without: number;
  by_match: number;
  by_content: number;
  heads: [string, number, number][];
}
export interface Explanation { position: number; token: string; p: number; effects: Effect[] }

export interface Hypothesis {
  text: string;
  tokens: string[];
  score: number | null;
  log_probability: number | null;
  alignment?: [number, number][];
}

export interface Alignment {
  heads: [string, number, number][];
  weights: Block;
  links: [number, number][];
  omitted: number[];
  repeated: number[];
}

export type Edit =
  | { kind: "knock_out"; keys: number[]; place?: string; head?: number; queries?: number[] }
  | { kind: "ablate"; place: string; head: number; mode: "zero" | "mean" }
  | { kind: "swap_values"; place: string; key: number; with: number; head?: number };

export interface Run {
  name: string;
  /** The path of the model, of which its name is the last part. */
  path?: string;
  summary?: string[];
  axes: { source?: Axis; target?: Axis };
  answers: Answer[];
  /** The position in the target of the first token of the answer itself, after a prompt. */
  answer_start?: number;
  attentions: AttentionData[];
  hypotheses?: Hypothesis[];
  alignment?: Alignment | null;
  explanations?: Explanation[];
  edits?: Edit[];
  code?: string;
  long?: boolean;
}

export interface Document {
  version: number;
  title: string;
  note: string;
  runs: Run[];
  precision: { dtype: string; error: number };
  live: boolean;
}

export type Request = { run?: number } & (
  | { ask: "look"; edits: Edit[]; text?: string; answer?: string }
  | { ask: "explain"; position: number }
  | { ask: "row"; place: string; head: number; query: number }
  | { ask: "statistics"; place: string; head: number }
  | { ask: "tile"; place: string; head: number; rows: [number, number]; columns: [number, number]; size: number });

export interface Reply {
  error?: string;
  run?: Run;
  explanation?: Explanation;
  /** The largest weight of each pooled[0] x pooled[1] cells. */
  tile?: Block;
  pooled?: [number, number];
  row?: Block;
  scores?: Block;
  overview?: Block;
  per_query?: Record<string, Block>;
}

export type Bytes = ArrayBuffer | ArrayBufferView;

/** The bytes of a block, immediately or later. */
export type Source = (block: Block, size: number) => Bytes | Promise<Bytes>;

export interface Host {
  document: Document;
  block: Source;
  /** Answers a request; the blocks its reply names are read from `block`. */
  ask?: (request: Request) => Promise<{ reply: Reply; block: Source }>;
  /** Whether the page's address holds what is chosen. */
  address?: boolean;
}
