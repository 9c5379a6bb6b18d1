// A file that opens from disk: everything is in the page, and no model answers.
import type { Block, Document, Host } from "../protocol";

export const element = (id: string): string => document.getElementById(id)?.textContent?.trim() ?? "";

export function fromBase64(text: string): Uint8Array<ArrayBuffer> {
  const quick = (Uint8Array as unknown as { fromBase64?: (text: string) => Uint8Array<ArrayBuffer> }).fromBase64;
  if (quick) return quick.call(Uint8Array, text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

export async function fileHost(): Promise<Host> {
  let bytes = fromBase64(element("blocks"));
  if (document.getElementById("blocks")?.dataset.encoding === "deflate") {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  }
  const data = JSON.parse(element("document")) as Document;
  return { document: data, block: blockReader(bytes), address: true };
}

/** Blocks that lie one after the other in bytes that are at hand. */
export function blockReader(bytes: Uint8Array) {
  return (block: Block, size: number): Uint8Array => bytes.subarray(block.offset, block.offset + size);
}
