// One run: its axes, its answers, and its attentions, loaded as they are needed.
import type { Answer, Axis, Edit, Run as RunData, Side, Source } from "../protocol";
import { Attention } from "./attention";
import { Changes } from "./changes";

export class Run {
  readonly attentions: Attention[];
  readonly places: string[];
  readonly long: boolean;
  private readonly names = new Map<string, string[]>();

  constructor(readonly data: RunData, readonly source: Source) {
    this.attentions = data.attentions.map((one) => new Attention(one, source));
    this.places = this.attentions.map((one) => one.place);
    this.long = Boolean(data.long);
  }

  axis(side: Side): Axis | undefined { return this.data.axes[side]; }

  /** The labels along an axis of an attention: its tokens or, where they are not known, numbers. */
  tokens(side: Side, length: number): string[] {
    const tokens = this.axis(side)?.tokens ?? [];
    if (tokens.length === length) return tokens;
    const id = `${side} ${length}`;
    if (!this.names.has(id)) this.names.set(id, Array.from({ length }, (_, i) => tokens[i] ?? String(i)));
    return this.names.get(id) as string[];
  }

  queryTokens(attention: Attention): string[] { return this.tokens(attention.data.queries, attention.queries); }
  keyTokens(attention: Attention): string[] { return this.tokens(attention.data.keys, attention.keys); }

  /** The answers that the queries of an attention lead to, if there is one for each. */
  answersFor(attention: Attention | undefined): Answer[] | null {
    const { answers, axes } = this.data;
    if (!attention || answers.length !== attention.queries) return null;
    return attention.data.queries === (axes.target?.tokens.length ? "target" : "source") ? answers : null;
  }

  /** Whether source and target are read by two encoders, and compared. */
  get towers(): boolean { return this.places.some((place) => place.startsWith("target.")); }

  /** The attentions that lead to an answer directly: their queries are at the positions of the predictions. */
  answering(): Attention[] {
    const fit = this.attentions.filter((one) => this.answersFor(one));
    if (fit.length || this.data.answers.length !== 1) return fit;
    return this.attentions; // one answer for the whole input
  }

  /** Make edits within each attention alone. */
  change(edits: Edit[]): void {
    for (const one of this.attentions) one.change(Changes.of(edits, one.place, this.places, one.heads, one.data.kv_heads));
  }

  /** The head that the page begins with: a sharp one that does not attend to one key all the time. */
  findSharpestHead(): { at: number; head: number } {
    const crossing = this.attentions.filter((one) => one.data.kind === "cross");
    const last = crossing.length ? crossing : this.attentions.slice(-4);
    let best = { at: Math.max(0, this.attentions.indexOf(last.at(-1) as Attention)), head: 0, telling: -Infinity };
    for (const attention of last.slice(-4)) {
      if (!attention.exact) continue;
      for (let head = 0; head < attention.heads; head += 1) {
        const received = new Float64Array(attention.keys);
        const rows = Math.min(attention.queries, 24);
        let sharp = 0;
        for (let i = 0; i < rows; i += 1) {
          const { weights } = attention.row(head, Math.floor((i * attention.queries) / rows));
          let greatest = 0;
          for (let column = 0; column < weights.length; column += 1) {
            received[column] += weights[column];
            if (weights[column] > greatest) greatest = weights[column];
          }
          sharp += greatest;
        }
        const telling = (sharp - received.reduce((a, b) => Math.max(a, b), 0)) / rows;
        if (telling > best.telling) best = { at: this.attentions.indexOf(attention), head, telling };
      }
    }
    return best;
  }
}

/** The column of the largest number. */
export function strongest(numbers: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < numbers.length; i += 1) if (numbers[i] > numbers[best] || Number.isNaN(numbers[best])) best = i;
  return best;
}

/** The positions of the largest numbers, the largest first. */
export function topIndices(numbers: ArrayLike<number>, most: number): number[] {
  const found: number[] = [];
  for (let i = 0; i < numbers.length; i += 1) {
    if (!(numbers[i] > -Infinity) || (found.length === most && !(numbers[i] > numbers[found[most - 1]]))) continue;
    let at = found.length;
    while (at > 0 && numbers[found[at - 1]] < numbers[i]) at -= 1;
    found.splice(at, 0, i);
    if (found.length > most) found.pop();
  }
  return found;
}
