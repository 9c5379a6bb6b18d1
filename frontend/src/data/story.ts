// A token's story: for one answer, what every head that led to it looked for, who answered, and what was taken.
import type { Attention } from "./attention";
import { strongest } from "./run";
import type { Run } from "./run";
import type { Side, Why } from "../protocol";

export interface Entry {
  side: Side;
  position: number;
  token: string;
  /** How many heads match this token best. */
  wanted: number;
  /** Mean weight over the heads that can see it. */
  weight: number;
  /** Its share of everything that moved. */
  flow: number;
  /** The head that gives it the largest weight. */
  by: { at: number; head: number; weight: number };
  without?: number;
  match?: number;
  content?: number;
  heads?: [string, number, number][];
}

/** For the answer at a row: every token that could be seen, the most important first. */
export function buildStory(run: Run, row: number, why: Why | undefined): { entries: Entry[]; heads: number } {
  const found = new Map<string, Entry>();
  const counts: Record<Side, number> = { source: 0, target: 0 };
  let moved = 0;
  for (const attention of run.answering()) {
    if (!attention.ready || !attention.exact) continue;
    counts[attention.data.keys] += attention.heads;
    for (let head = 0; head < attention.heads; head += 1) moved += added(run, found, attention, head, Math.min(row, attention.queries - 1));
  }
  for (const entry of found.values()) {
    entry.weight /= counts[entry.side];
    entry.flow = moved > 0 ? entry.flow / moved : 0;
  }
  for (const effect of why?.effects ?? []) {
    const side = effect.side === "source" ? "source" : run.axis("target") ? "target" : "source";
    const entry = found.get(`${side} ${effect.key}`);
    if (entry) Object.assign(entry, { without: effect.p_without, match: effect.by_match, content: effect.by_content, heads: effect.heads });
  }
  const entries = [...found.values()].sort((a, b) => (why ? (a.without ?? 2) - (b.without ?? 2) : b.flow - a.flow));
  return { entries, heads: counts.source + counts.target };
}

function added(run: Run, found: Map<string, Entry>, attention: Attention, head: number, row: number): number {
  const side = attention.data.keys;
  const { scores, weights } = attention.row(head, row);
  const tokens = run.keyTokens(attention);
  const best = strongest(scores);
  const at = run.attentions.indexOf(attention);
  let moved = 0;
  for (let column = 0; column < weights.length; column += 1) {
    if (Number.isNaN(scores[column])) continue;
    const id = `${side} ${column}`;
    let entry = found.get(id);
    if (!entry) {
      entry = { side, position: column, token: tokens[column], wanted: 0, weight: 0, flow: 0, by: { at, head, weight: -1 } };
      found.set(id, entry);
    }
    const flow = weights[column] * attention.norm(head, column);
    entry.weight += weights[column];
    entry.flow += flow;
    moved += flow;
    if (column === best) entry.wanted += 1;
    if (weights[column] > entry.by.weight) entry.by = { at, head, weight: weights[column] };
  }
  return moved;
}
