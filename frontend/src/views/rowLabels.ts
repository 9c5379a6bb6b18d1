// What the rows of a matrix are called.
import type { Attention } from "../data/attention";
import { displayTokens, displayToken } from "../numbers";
import type { Answer } from "../protocol";
import type { useLook } from "../state";

const labels = new WeakMap<Answer[], string[]>();

export function rowLabels(look: ReturnType<typeof useLook>, attention: Attention, run = look.run.value): string[] {
  const answers = run.axis("target") ? run.answersFor(attention) : null;
  const tokens = run.queryTokens(attention);
  const names = displayTokens(tokens);
  if (!answers) return names;
  let found = labels.get(answers);
  if (!found) labels.set(answers, found = names.map((text, row) => `${text} \u2192 ${displayToken(answers[row].chosen[0])}`));
  return found;
}
