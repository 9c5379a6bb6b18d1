// Ramps of colour: one hue for shares, a second one for what is below zero.
import type { Show } from "../data/attention";

const stops = {
  light: { one: ["#f6f5f0", "#d7e3e6", "#9fc6d2", "#559bbb", "#22658f", "#0c2d4f"], minus: ["#f6f5f0", "#f1d2b4", "#dd9a62", "#b5602a", "#74330f"] },
  dark: { one: ["#20242a", "#1f3b4f", "#22618a", "#3d93c0", "#8fcbe6", "#f2faff"], minus: ["#20242a", "#52341f", "#8f542a", "#d08a50", "#ffdcb8"] },
};

export type Rgb = readonly [number, number, number];
interface Table { one: Rgb[]; minus: Rgb[]; words: Uint32Array }
const steps = 256;
const tables = new Map<boolean, Table>();

const parts = (colour: string): number[] => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

function interpolate(colours: string[]): Rgb[] {
  return Array.from({ length: steps }, (_, i) => {
    const at = (i / (steps - 1)) * (colours.length - 1);
    const low = Math.min(Math.floor(at), colours.length - 2);
    const [from, to] = [parts(colours[low]), parts(colours[low + 1])];
    const [r, g, b] = from.map((part, of) => Math.round(part + (to[of] - part) * (at - low)));
    return [r, g, b] as const;
  });
}

function table(dark: boolean): Table {
  let found = tables.get(dark);
  if (!found) {
    const own = dark ? stops.dark : stops.light;
    const [one, minus] = [interpolate(own.one), interpolate(own.minus)];
    const word = ([r, g, b]: Rgb) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
    found = { one, minus, words: Uint32Array.from([...minus.toReversed(), ...one].map(word)) };
    tables.set(dark, found);
  }
  return found;
}

/** -1 to 1: how far along the ramp a number is. Shares go by their square root, so that small ones can be told from none. */
export function along(show: Show, value: number, extent: number): number {
  if (show === "weights") return Math.sqrt(value);
  if (!(extent > 0)) return 0;
  return show === "flow" ? Math.sqrt(value / extent) : value / extent;
}

export function rgb(at: number, dark: boolean): Rgb {
  const place = Math.min(steps - 1, Math.round(Math.abs(at) * (steps - 1)));
  return table(dark)[at < 0 ? "minus" : "one"][place];
}

/** A pixel of an image, little-endian RGBA. */
export const word = (at: number, words: Uint32Array): number => {
  const place = Math.min(steps - 1, (Math.abs(at) * (steps - 1) + 0.5) | 0);
  return words[at < 0 ? steps - 1 - place : steps + place];
};
export const words = (dark: boolean): Uint32Array => table(dark).words;
export const css = ([r, g, b]: Rgb): string => `rgb(${r},${g},${b})`;
const linear = (part: number): number => (part <= 10 ? part / 3294 : ((part / 255 + 0.055) / 1.055) ** 2.4);
/** Black or white, whichever can be read better: at least 4.5 to 1 on any colour. */
export const readable = ([r, g, b]: Rgb): string => (0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) > 0.179 ? "#000000" : "#ffffff");
