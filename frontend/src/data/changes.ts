// What edits do within one attention, and the same edits as Python.
import type { AttentionData, Edit } from "../protocol";

/** Whether a pattern such as decoder.*.cross_attention means a place. */
export function fits(pattern: string, place: string): boolean {
  const names = pattern.split(".");
  const parts = place.split(".");
  return names.length === parts.length && names.every((name, i) => name === "*" || name === parts[i]);
}

/** What hiding a key means where no place is named: all cross-attentions or, without any, all self-attentions. */
export function everywhere(places: string[]): string {
  const crossing = places.filter((place) => place.endsWith("cross_attention"));
  const last = (crossing.length ? crossing : places).at(-1) ?? "";
  return last.split(".").map((part) => (/^\d+$/.test(part) ? "*" : part)).join(".");
}

/** The edits that concern one attention, in the form that the computation of its rows needs. */
export class Changes {
  private constructor(private readonly edits: Edit[], private readonly heads: number, private readonly kvHeads: number) {}

  static of(edits: Edit[], place: string, places: string[], heads: number, kvHeads: number): Changes | null {
    const own = edits.filter((edit) => fits(edit.place ?? everywhere(places), place));
    return own.length ? new Changes(own, heads, kvHeads) : null;
  }

  hides(head: number, row: number, column: number): boolean {
    return this.edits.some((edit) => edit.kind === "knock_out" && (edit.head === undefined || edit.head === head)
      && (!edit.queries?.length || edit.queries.includes(row)) && edit.keys.includes(column));
  }

  /** Whether a head is switched off, and what takes its place. */
  off(head: number): "zero" | "mean" | null {
    const found = this.edits.findLast((edit) => edit.kind === "ablate" && edit.head === head);
    return found?.kind === "ablate" ? found.mode : null;
  }

  /** The position whose value a key has after swaps. */
  valueOf(head: number, column: number): number {
    let at = column;
    const shared = (other: number) => Math.floor((other * this.kvHeads) / this.heads);
    for (const edit of [...this.edits].reverse()) {
      if (edit.kind !== "swap_values" || (edit.head !== undefined && shared(edit.head) !== shared(head))) continue;
      if (at === edit.key) at = edit.with;
      else if (at === edit.with) at = edit.key;
    }
    return at;
  }
}

const python = (text: string) => JSON.stringify(text).replace(/[\u007f-\uffff]/g, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);

const plain = "import qkv\n\n# model and text: those that this page is about\ntrace = qkv.look(model, text)\nprint(trace.answer)";

/** The Python of a run, with edits. */
export function toPython(edits: Edit[], attentions: AttentionData[], code = ""): string {
  const places = attentions.map((one) => one.place);
  const calls = edits.map((edit) => {
    const head = edit.head === undefined ? "" : `, head=${edit.head}`;
    const place = python(edit.place ?? everywhere(places));
    if (edit.kind === "knock_out") return `qkv.knock_out(${place}, keys=[${edit.keys}]${edit.queries?.length ? `, queries=[${edit.queries}]` : ""}${head})`;
    if (edit.kind === "swap_values") {
      const { heads: count, kv_heads: shared } = attentions.find((one) => fits(edit.place, one.place)) ?? { heads: 1, kv_heads: 1 };
      const head = edit.head === undefined ? "" : `, head=${Math.floor((edit.head * shared) / count)}`; // heads that share values are swapped together
      return `qkv.swap_values(${place}, first=${edit.key}, second=${edit.with}${head})`;
    }
    return `qkv.ablate(${place}${head}, by="${edit.mode}"${edit.mode === "mean" ? `, of=base[${place}]` : ""})`;
  });
  const base = edits.some((edit) => edit.kind === "ablate" && edit.mode === "mean");
  return (code || plain).replace(/^trace = qkv\.look\((.*)\)$/m, (_, given: string) => [
    ...(base ? [`base = qkv.look(${given})`] : []),
    `trace = qkv.look(${given}, edits=[`, ...calls.map((call) => `    ${call},`), "])",
  ].join("\n"));
}

/** An edit in words. */
export function describeEdit(edit: Edit, name: (side: "keys" | "queries", place: string | undefined, at: number) => string): string {
  const where = edit.place ? ` in ${edit.place}` : " everywhere";
  const head = edit.head === undefined ? "" : `, head ${edit.head}`;
  if (edit.kind === "knock_out") {
    const queries = edit.queries?.length ? ` from ${edit.queries.map((at) => name("queries", edit.place, at)).join(", ")}` : "";
    return `Hide ${edit.keys.map((at) => name("keys", edit.place, at)).join(", ")}${queries}${where}${head}`;
  }
  if (edit.kind === "swap_values") return `Swap the values of ${name("keys", edit.place, edit.key)} and ${name("keys", edit.place, edit.with)}${where}${head}`;
  return `Switch off head ${edit.head} of ${edit.place}${edit.mode === "mean" ? " (replaced by its mean)" : ""}`;
}
