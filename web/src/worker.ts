/** The worker's entry: connects `Host` to this worker's messages and to the real wasm module. */

import { adapterName } from "./adapter.js";
import { Host } from "./host.js";
import type { Request, Response } from "./protocol.js";
import type { WasmModule } from "./wasm.js";

async function importWasm(): Promise<WasmModule> {
  const wasm: unknown = await import("../wasm/fledgling_wasm.js");
  const module = wasm as WasmModule;
  await module.default();
  return module;
}

const { port1, port2 } = new MessageChannel();

/** One macrotask by way of a message; `setTimeout` would cost 4 ms a token. */
function pause(): Promise<void> {
  return new Promise((resolve) => {
    port1.onmessage = () => {
      resolve();
    };
    port2.postMessage(null);
  });
}

const host = new Host(
  (response: Response) => {
    postMessage(response);
  },
  { importWasm, pause, adapterName },
);

addEventListener("message", (event: MessageEvent<Request>) => {
  void host.handle(event.data);
});

// A trap inside the wasm module's own tasks rejects nothing that anybody waits for. Thrown here, it reaches
// the page as an error of this worker, which ends every request with `crashed`.
addEventListener("unhandledrejection", (event) => {
  setTimeout(() => {
    throw event.reason;
  });
});
