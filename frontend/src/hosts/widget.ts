// A notebook, through anywidget: traits hold the document and its blocks, messages carry requests and replies.
import type { Bytes, Document, Host, Reply, Request } from "../protocol";
import { blockReader } from "./file";

export interface WidgetModel {
  get(name: string): unknown;
  send(message: unknown): void;
  on(event: string, listener: (message: { id: number; reply: Reply }, buffers: Bytes[]) => void): void;
  off(event: string, listener: unknown): void;
}

const flat = (bytes: Bytes | undefined): Uint8Array => {
  if (!bytes) return new Uint8Array();
  return ArrayBuffer.isView(bytes) ? new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength) : new Uint8Array(bytes);
};

export function widgetHost(model: WidgetModel): { host: Host; close: () => void } {
  const given = model.get("document");
  const data = (typeof given === "string" ? JSON.parse(given) : given) as Document;
  const waiting = new Map<number, (found: { reply: Reply; block: ReturnType<typeof blockReader> }) => void>();
  let last = 0;
  const onMessage = (message: { id: number; reply: Reply }, buffers: Bytes[]) => {
    waiting.get(message.id)?.({ reply: message.reply, block: blockReader(flat(buffers?.[0])) });
    waiting.delete(message.id);
  };
  model.on("msg:custom", onMessage);
  const ask = (request: Request) => new Promise<{ reply: Reply; block: ReturnType<typeof blockReader> }>((resolve) => {
    last += 1;
    waiting.set(last, resolve);
    model.send({ id: last, request });
  });
  const host: Host = { document: data, block: blockReader(flat(model.get("blocks") as Bytes)), ask: data.live ? ask : undefined };
  return { host, close: () => model.off("msg:custom", onMessage) };
}
