// The state of one page: what is chosen, and everything that follows from it.
import { batch, computed, signal } from "@preact/signals";
import { createContext } from "preact";
import { useContext } from "preact/hooks";
import type { Edit, Host, Reply, Request, Source, Explanation } from "./protocol";
import type { Attention, Show } from "./data/attention";
import { Run, strongest } from "./data/run";

export interface Cell { row: number; column: number }
export type Form = "matrix" | "lines" | "table";
export type Tab = "heads" | "model" | "story" | "alignment" | "context" | "compare";

export class Look {
  readonly runs: Run[];
  readonly at = signal(0);
  readonly head = signal(0);
  readonly cell = signal<Cell>({ row: 0, column: 0 });
  readonly pointed = signal<Cell | null>(null);
  readonly dimension = signal<number | null>(null);
  readonly show = signal<Show>("weights");
  readonly form = signal<Form>("matrix");
  readonly tab = signal<Tab>("heads");
  readonly which = signal(0);
  readonly sort = signal("place");
  readonly kinds = signal("all");
  readonly dark = signal(false);
  readonly edits = signal<Edit[]>([]);
  readonly edited = signal<Run | null>(null);
  readonly busy = signal("");
  readonly error = signal("");
  readonly loaded = signal(0);
  readonly requested = signal<ReadonlyMap<string, Explanation>>(new Map());

  /** Statistics along a context that were requested. */
  readonly curves = new Map<string, ArrayLike<number>>();

  /** The run without edits, and the run that is shown: with them, where a model could run again. */
  readonly base = computed(() => this.runs[this.which.value]);
  readonly run = computed(() => this.edited.value ?? this.base.value);
  readonly attention = computed<Attention | undefined>(() => this.run.value.attentions[this.at.value] ?? this.run.value.attentions[0]);
  readonly seen = computed(() => this.pointed.value ?? this.cell.value);
  /** Whether the numbers of the current attention are loaded. */
  readonly ready = computed(() => { void this.loaded.value; return Boolean(this.attention.value?.ready); });

  constructor(readonly host: Host) {
    this.runs = host.document.runs.map((data) => new Run(data, host.block));
  }

  /** Load the tensors of all attentions, one after the other. */
  async load(run: Run): Promise<void> {
    for (const attention of run.attentions) {
      const waiting = attention.load();
      if (waiting) await waiting;
      if (waiting) this.loaded.value += 1;
    }
    this.loaded.value += 1;
  }

  answers() { return this.run.value.answersFor(this.attention.value); }

  choose(changes: { at?: number; head?: number; row?: number; column?: number }): void {
    batch(() => {
      const before = this.attention.value;
      if (changes.at !== undefined) this.at.value = changes.at;
      if (changes.head !== undefined) this.head.value = changes.head;
      const attention = this.attention.value;
      if (!attention) return;
      this.head.value = Math.min(this.head.value, attention.heads - 1);
      const alike = before && before.queries === attention.queries && before.data.queries === attention.data.queries;
      const clamp = (value: number, length: number) => Math.max(0, Math.min(value, length - 1));
      const row = clamp(changes.row ?? (alike ? this.cell.value.row : Math.min(1, attention.queries - 1)), attention.queries);
      const column = clamp(changes.column ?? this.strongest(attention, row), attention.keys);
      this.cell.value = { row, column };
      this.pointed.value = null;
    });
  }

  strongest(attention: Attention, row: number): number {
    if (!attention.ready || !attention.exact) return Math.min(this.cell.value.column, attention.keys - 1);
    return strongest(attention.row(this.head.value, row).weights);
  }

  /** Choose the query that predicts a token, in the chosen attention or in the last one that leads to it. */
  chooseAnswer(row: number): void {
    const run = this.run.value;
    if (run.answersFor(this.attention.value)) return this.choose({ row });
    const fits = run.answering();
    const attention = fits.filter((one) => one.data.kind === "cross").at(-1) ?? fits.at(-1);
    if (attention) this.choose({ at: run.attentions.indexOf(attention), row: Math.min(row, attention.queries - 1) });
  }

  /** Ask without showing that the page is busy: for what a picture needs while it is moved. */
  async fetch(request: Request): Promise<{ reply: Reply; block: Source } | null> {
    const found = await this.host.ask?.(this.which.value ? { ...request, run: this.which.value } : request).catch(() => null);
    return found && !found.reply.error ? found : null;
  }

  async ask(request: Request, doing: string): Promise<{ reply: Reply; block: Source } | null> {
    if (!this.host.ask) return null;
    batch(() => { this.busy.value = doing; this.error.value = ""; });
    try {
      const found = await this.host.ask(this.which.value ? { ...request, run: this.which.value } : request);
      if (found.reply.error) throw new Error(found.reply.error);
      return found;
    } catch (problem) {
      this.error.value = problem instanceof Error ? problem.message : String(problem);
      return null;
    } finally {
      this.busy.value = "";
    }
  }

  /** Make edits: in the model where there is one, otherwise within each attention alone. */
  async edit(edits: Edit[]): Promise<void> {
    this.edits.value = edits;
    if (!this.host.ask) {
      this.base.value.change(edits);
      this.loaded.value += 1;
      return;
    }
    if (!edits.length) { this.edited.value = null; return; }
    const found = await this.ask({ ask: "look", edits }, "Running the model");
    if (!found?.reply.run || this.edits.value !== edits) return;
    const run = new Run(found.reply.run, found.block);
    await this.load(run);
    batch(() => {
      this.edited.value = run;
      const { row, column } = this.cell.value;
      this.choose({ at: Math.min(this.at.value, run.attentions.length - 1), row, column });
    });
  }

  explanationAt(position: number): Explanation | undefined {
    const found = this.run.value.data.explanations?.find((one) => one.position === position);
    // Explanations that were requested are about the run without edits.
    return found || this.edits.value.length ? found : this.requested.value.get(`${this.which.value} ${position}`);
  }

  async requestExplanation(position: number): Promise<void> {
    const found = await this.ask({ ask: "explain", position }, "Hiding one token after another");
    if (found?.reply.explanation) this.requested.value = new Map(this.requested.value).set(`${this.which.value} ${position}`, found.reply.explanation);
  }

  switchRun(which: number): void {
    batch(() => {
      this.which.value = which;
      this.edits.value = [];
      this.edited.value = null;
      this.at.value = Math.min(this.at.value, Math.max(0, this.run.value.attentions.length - 1));
      this.choose({});
    });
  }
}

const Here = createContext<Look | null>(null);
export const Provide = Here.Provider;

/** The state of the page; a component that uses it is rendered again when numbers arrive or change. */
export function useLook(): Look {
  const look = useContext(Here) as Look;
  void look.loaded.value;
  return look;
}
