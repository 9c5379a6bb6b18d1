// Whether the page shows what the model computed: every head is recomputed here, a slice at a time.
import { useEffect, useState } from "preact/hooks";
import type { Attention } from "../data/attention";
import type { Run } from "../data/run";
import { tiny } from "../numbers";
import { useLook } from "../state";

interface Found { worst: number; place: string; head: number; heads: number; done: boolean; here: boolean }

const sampled = 64;

export function Certificate() {
  const look = useLook();
  const [found, setFound] = useState<Found | null>(null);
  const run = look.base.value;
  const count = look.loaded.value;
  useEffect(() => {
    if (!run.attentions.length || look.edits.value.length || !run.attentions.every((one) => one.ready)) return;
    return certify(run, (result) => {
      setFound(result);
      if (result.done && look.host.address) document.documentElement.dataset.certified = String(result.worst);
    });
  }, [run, count]);
  const { precision } = look.host.document;
  const rounding = precision.dtype === "float32" ? "" : ` Numbers are stored as ${precision.dtype} here, which changes no weight by more than ${tiny(precision.error)}.`;
  if (!found) return <p class="certificate" role="status">{rounding}</p>;
  const good = found.worst < (precision.dtype === "float32" ? 1e-4 : 2e-2);
  const how = found.here ? "recomputed in this page from queries, keys and values" : "recomputed from queries, keys and values when this page was written";
  return (
    <p class="certificate" role="status">
      {found.done ? <b class={good ? "good" : "bad"}>{good ? "\u2713 Certified " : "\u2717 Not certified "}</b> : <b>Checking </b>}
      {found.heads === 1 ? "The only head was " : `All ${found.heads} heads were `}{how}. Largest difference from the model's own context: {tiny(found.worst)} ({found.place}, head {found.head}).{rounding}
    </p>
  );
}

/** Recompute every head; of a long one, so many of its queries. Returns what stops it. */
function certify(run: Run, tell: (found: Found) => void): () => void {
  const found: Found = { worst: -1, place: "", head: 0, heads: 0, done: false, here: true };
  const work: [Attention, number][] = run.attentions.flatMap((one) => Array.from({ length: one.heads }, (_, head) => [one, head] as [Attention, number]));
  let stopped = false;
  const step = () => {
    if (stopped) return;
    const end = performance.now() + 14;
    while (work.length && performance.now() < end) {
      const [attention, head] = work.shift() as [Attention, number];
      const certified = attention.data.certified?.[head];
      if (!attention.tensors.context) found.here = false;
      const difference = attention.tensors.context && attention.exact ? attention.difference(head, rows(attention.queries)) : certified ?? 0;
      found.heads += 1;
      if (!(difference <= found.worst)) Object.assign(found, { worst: difference, place: attention.place, head });
    }
    found.done = !work.length;
    if (found.done) tell({ ...found });
    else setTimeout(step, 4);
  };
  const timer = setTimeout(step, 150);
  return () => { stopped = true; clearTimeout(timer); };
}

const rows = (queries: number) => Array.from({ length: Math.min(queries, sampled) }, (_, i) => Math.floor((i * queries) / Math.min(queries, sampled)));
