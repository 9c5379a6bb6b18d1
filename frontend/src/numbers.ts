// Numbers as text.
export const number = (value: number, digits = 3): string => (
  Number.isFinite(value) ? value.toFixed(digits).replace("-", "\u2212") : Number.isNaN(value) ? "" : value > 0 ? "\u221e" : "\u2212\u221e");
export const signed = (value: number, digits = 3): string => (value < 0 ? "" : "+") + number(value, digits);
export const percent = (share: number): string => (share > 0 && share < 0.001 ? "<0.1%" : `${(share * 100).toFixed(share < 0.0995 ? 1 : 0)}%`);
export const tiny = (value: number): string => (value === 0 ? "0" : value.toExponential(1).replace("e-", "e\u2212").replace("e+", "e"));
/** Three or so digits that matter. */
export const short = (value: number | null | undefined): string => {
  if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
  const size = Math.abs(value);
  if (size > 0 && size < 0.005) return tiny(value);
  return number(value, size >= 100 ? 0 : size >= 10 ? 1 : 2);
};
export const long = (values: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < values.length; i += 1) sum += values[i] * values[i];
  return Math.sqrt(sum);
};
export const largest = (values: ArrayLike<number>): number => {
  let found = 0;
  for (let i = 0; i < values.length; i += 1) { const size = Math.abs(values[i]); if (size > found) found = size; }
  return found;
};
/** A token for display: the sign with which a tokenizer begins a word becomes a dot, and white space becomes visible. */
export const displayToken = (token: string): string => markSpaces(token.replace(/\u2581/g, "\u00b7").replace(/^\u0120/, "\u00b7"));
const markSpaces = (token: string): string => (token === "" ? "\u2205" : token.trim() === "" ? token.replace(/ /g, "\u2423").replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5") : token);
const kept = new WeakMap<string[], string[]>();
/** All tokens of an axis for display; computed once. */
export function displayTokens(tokens: string[]): string[] {
  let found = kept.get(tokens);
  if (!found) kept.set(tokens, found = tokens.map(displayToken));
  return found;
}
/** Whether a text runs from right to left. */
export const rightToLeft = (tokens: string[]): boolean => {
  const text = tokens.slice(0, 200).join("");
  const right = (text.match(/[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/g) ?? []).length;
  return right > (text.match(/[A-Za-z\u00c0-\u024f]/g) ?? []).length;
};
