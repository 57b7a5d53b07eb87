/** A worker that runs in this thread, for unit tests. */

import type { WorkerLike } from "../src/connection.js";
import { Host } from "../src/host.js";
import { FledglingError } from "../src/index.js";
import type { Request, Response } from "../src/protocol.js";
import type { WasmModule } from "../src/wasm.js";
import * as fakeWasm from "./fake-wasm.js";

/** A real `Host` behind a real `MessageChannel`. */
export class FakeWorker extends EventTarget {
  readonly requests: Request[] = [];
  terminated = false;
  readonly #channel = new MessageChannel();

  constructor(importWasm: () => Promise<WasmModule> = () => Promise.resolve(fakeWasm)) {
    super();
    const { port1, port2 } = this.#channel;
    const host = new Host(
      (response: Response) => {
        port2.postMessage(response);
      },
      {
        importWasm,
        pause: () => new Promise(setImmediate),
        adapterName: () => Promise.resolve(undefined),
      },
    );
    port2.onmessage = (event: MessageEvent<Request>) => {
      this.requests.push(event.data);
      void host.handle(event.data);
    };
    port1.onmessage = (event: MessageEvent<Response>) => {
      this.dispatchEvent(new MessageEvent("message", { data: event.data }));
    };
  }

  postMessage(message: Request): void {
    this.#channel.port1.postMessage(message);
  }

  crash(message: string): void {
    this.dispatchEvent(Object.assign(new Event("error"), { message }));
  }

  terminate(): void {
    this.terminated = true;
    this.#channel.port1.close();
  }
}

export const asWorker = (worker: FakeWorker): WorkerLike => worker as unknown as WorkerLike;

/** The code of the `FledglingError` that a promise rejects with. */
export async function codeOf(promise: Promise<unknown>): Promise<string> {
  const thrown: unknown = await promise.then(
    () => "nothing was thrown",
    (error: unknown) => error,
  );
  return thrown instanceof FledglingError ? thrown.code : String(thrown);
}
