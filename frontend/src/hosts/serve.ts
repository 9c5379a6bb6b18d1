// A server on this machine that holds the model.
import type { Block, Document, Host, Reply, Request } from "../protocol";
import { fromBase64, blockReader } from "./file";

export async function serveHost(token: string): Promise<Host> {
  const address = (path: string) => `${path}${path.includes("?") ? "&" : "?"}token=${encodeURIComponent(token)}`;
  const data = await get(address("document")).then((response) => response.json()) as Document;
  return {
    document: data,
    block: (block: Block, size: number) => get(address(`blocks/${block.offset}?size=${size}`)).then((response) => response.arrayBuffer()),
    async ask(request: Request) {
      const response = await fetch("ask", {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-Qkv-Token": token },
        body: JSON.stringify(request),
      });
      const reply = await response.json() as Reply & { blocks?: string };
      return { reply, block: blockReader(reply.blocks ? fromBase64(reply.blocks) : new Uint8Array()) };
    },
    address: true,
  };
}

async function get(address: string): Promise<Response> {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`the server answered ${response.status}: ${await response.text()}`);
  return response;
}
