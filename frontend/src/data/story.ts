// A token's story: for one prediction, which tokens match best, get attention and contribute, over all heads that lead to it.
import type { Attention } from "./attention";
import { strongest } from "./run";
import type { Run } from "./run";
import type { Side, Explanation } from "../protocol";

export interface Entry {
  side: Side;
  position: number;
  token: string;
  /** Of how many heads this token is the best match. */
  matches: number;
  /** Mean weight over the heads that can see it. */
  weight: number;
  /** Its share of the contributions of all tokens. */
  flow: number;
  /** The head in which its weight is largest. */
  by: { at: number; head: number; weight: number };
  without?: number;
  match?: number;
  content?: number;
  heads?: [string, number, number][];
}

/** For the prediction at a row: every token that may be attended to, the most important first. */
export function buildStory(run: Run, row: number, explanation: Explanation | undefined): { entries: Entry[]; heads: number } {
  const found = new Map<string, Entry>();
  const counts: Record<Side, number> = { source: 0, target: 0 };
  let moved = 0;
  for (const attention of run.answering()) {
    if (!attention.ready || !attention.exact) continue;
    counts[attention.data.keys] += attention.heads;
    for (let head = 0; head < attention.heads; head += 1) moved += addHead(run, found, attention, head, Math.min(row, attention.queries - 1));
  }
  for (const entry of found.values()) {
    entry.weight /= counts[entry.side];
    entry.flow = moved > 0 ? entry.flow / moved : 0;
  }
  for (const effect of explanation?.effects ?? []) {
    const side = effect.side === "source" ? "source" : run.axis("target") ? "target" : "source";
    const entry = found.get(`${side} ${effect.key}`);
    if (entry) Object.assign(entry, { without: effect.p_without, match: effect.by_match, content: effect.by_content, heads: effect.heads });
  }
  const entries = [...found.values()].sort((a, b) => (explanation ? (a.without ?? 2) - (b.without ?? 2) : b.flow - a.flow));
  return { entries, heads: counts.source + counts.target };
}

function addHead(run: Run, found: Map<string, Entry>, attention: Attention, head: number, row: number): number {
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
      entry = { side, position: column, token: tokens[column], matches: 0, weight: 0, flow: 0, by: { at, head, weight: -1 } };
      found.set(id, entry);
    }
    const flow = weights[column] * attention.norm(head, column);
    entry.weight += weights[column];
    entry.flow += flow;
    moved += flow;
    if (column === best) entry.matches += 1;
    if (weights[column] > entry.by.weight) entry.by = { at, head, weight: weights[column] };
  }
  return moved;
}
