// The colours of both themes, for the style sheet and for pictures alike.
const light = {
  paper: "#faf9f6", panel: "#ffffff", ink: "#1d2126", muted: "#5f646b", line: "#dcdad3", quiet: "#b9bec4", mark: "#efe9d8",
  query: "#a8441c", key: "#1f5fa6", value: "#26704a", context: "#6a479c", good: "#26704a", bad: "#b3261e",
};
const dark: typeof light = {
  paper: "#131519", panel: "#1a1d22", ink: "#e9e7e2", muted: "#a5a9b0", line: "#343941", quiet: "#555c66", mark: "#38382d",
  query: "#f2996f", key: "#82b7f2", value: "#82cf9d", context: "#bba4f0", good: "#82cf9d", bad: "#ff8f86",
};

export type Colour = keyof typeof light;
export type Palette = typeof light;
export const palette = (isDark: boolean): Palette => (isDark ? dark : light);

const variables = (colours: Palette) => Object.entries(colours).map(([name, value]) => `--${name}:${value}`).join(";");
export const colourRules = `.qkv{${variables(light)};color-scheme:light}.qkv[data-theme=dark]{${variables(dark)};color-scheme:dark}`
  + `@media print{.qkv,.qkv[data-theme=dark]{${variables(light)};color-scheme:light}}`;
