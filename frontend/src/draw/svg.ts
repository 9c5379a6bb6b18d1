// A pen that writes SVG, and what saves pictures.
import type { Drawing, Pen } from "./pen";
import { paint } from "./pen";

const escape = (text: string) => text.replace(/[&<>"]/g, (one) => `&#${one.charCodeAt(0)};`);
const short = (value: number) => String(Math.round(value * 100) / 100);

class SvgPen implements Pen {
  fillStyle = "#000";
  strokeStyle = "#000";
  lineWidth = 1;
  globalAlpha = 1;
  font = "13px sans-serif";
  textAlign: CanvasTextAlign = "left";
  textBaseline: CanvasTextBaseline = "alphabetic";
  readonly parts: string[] = [];
  private path = "";
  private open = 0;
  private readonly kept: { open: number; state: Partial<SvgPen> }[] = [];

  private get opacity() { return this.globalAlpha < 1 ? ` opacity="${short(this.globalAlpha)}"` : ""; }

  fillRect(x: number, y: number, width: number, height: number) {
    this.parts.push(`<rect x="${short(x)}" y="${short(y)}" width="${short(width)}" height="${short(height)}" fill="${this.fillStyle}"${this.opacity}/>`);
  }
  strokeRect(x: number, y: number, width: number, height: number) {
    this.parts.push(`<rect x="${short(x)}" y="${short(y)}" width="${short(width)}" height="${short(height)}" fill="none" stroke="${this.strokeStyle}" stroke-width="${this.lineWidth}"${this.opacity}/>`);
  }
  fillText(text: string, x: number, y: number) {
    const anchor = { center: "middle", right: "end", end: "end", left: "start", start: "start" }[this.textAlign];
    const baseline = { middle: "central", top: "text-before-edge", alphabetic: "alphabetic", bottom: "text-after-edge", hanging: "hanging", ideographic: "ideographic" }[this.textBaseline];
    this.parts.push(`<text x="${short(x)}" y="${short(y)}" fill="${this.fillStyle}" style="font:${escape(this.font)}" text-anchor="${anchor}" dominant-baseline="${baseline}"${this.opacity}>${escape(text)}</text>`);
  }
  beginPath() { this.path = ""; }
  moveTo(x: number, y: number) { this.path += `M${short(x)} ${short(y)}`; }
  lineTo(x: number, y: number) { this.path += `L${short(x)} ${short(y)}`; }
  bezierCurveTo(a: number, b: number, c: number, d: number, x: number, y: number) { this.path += `C${[a, b, c, d, x, y].map(short).join(" ")}`; }
  stroke() { this.parts.push(`<path d="${this.path}" fill="none" stroke="${this.strokeStyle}" stroke-width="${short(this.lineWidth)}"${this.opacity}/>`); }
  fill() { this.parts.push(`<path d="${this.path}" fill="${this.fillStyle}"${this.opacity}/>`); }
  save() {
    const { fillStyle, strokeStyle, lineWidth, globalAlpha, font, textAlign, textBaseline } = this;
    this.kept.push({ open: this.open, state: { fillStyle, strokeStyle, lineWidth, globalAlpha, font, textAlign, textBaseline } });
    this.open = 0;
  }
  restore() {
    this.parts.push("</g>".repeat(this.open));
    const { open, state } = this.kept.pop() ?? { open: 0, state: {} };
    Object.assign(this, state);
    this.open = open;
  }
  translate(x: number, y: number) { this.group(`translate(${short(x)} ${short(y)})`); }
  rotate(angle: number) { this.group(`rotate(${short((angle * 180) / Math.PI)})`); }
  private group(transform: string) { this.parts.push(`<g transform="${transform}">`); this.open += 1; }
  image(source: HTMLCanvasElement, x: number, y: number, width: number, height: number) {
    this.parts.push(`<image x="${short(x)}" y="${short(y)}" width="${short(width)}" height="${short(height)}" preserveAspectRatio="none" style="image-rendering:pixelated" href="${source.toDataURL()}"/>`);
  }
}

export function asSvg({ width, height, paint: draw }: Drawing, background: string): string {
  const pen = new SvgPen();
  draw(pen);
  const size = `width="${short(width)}" height="${short(height)}" viewBox="0 0 ${short(width)} ${short(height)}"`;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size}><rect width="100%" height="100%" fill="${background}"/>${pen.parts.join("")}</svg>`;
}

function save(blob: Blob, name: string): void {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export const saveText = (text: string, type: string, name: string): void => save(new Blob([text], { type }), name);

export function savePng(drawing: Drawing, background: string, name: string): void {
  const canvas = document.createElement("canvas");
  const whole = { ...drawing, paint: (pen: Pen) => { pen.fillStyle = background; pen.fillRect(0, 0, drawing.width, drawing.height); drawing.paint(pen); } };
  paint(canvas, whole, 3);
  canvas.toBlob((blob) => { if (blob) save(blob, name); });
}
