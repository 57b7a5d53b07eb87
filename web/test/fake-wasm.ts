/**
 * A module of the shape of the real one (`src/wasm.ts`) that repeats the prompt word by word. It stands
 * in for the engine in unit tests, and in `vite --mode fake` while working on the look of the page.
 */

import type { ErrorCode } from "../src/errors.js";
import type { Device, DeviceChoice, Message, ModelInfo, SamplingOptions, Step } from "../src/types.js";
import type { WasmGeneration, WasmLoader, WasmModel } from "../src/wasm.js";

function fail(code: ErrorCode, message: string): never {
  throw Object.assign(new Error(message), { code });
}

/** Things that happened, for tests to look at. */
export const fakeLog: string[] = [];

/** In a browser slow enough to be looked at; in unit tests as fast as it goes. */
const tokenDelayMs = "WorkerGlobalScope" in globalThis ? 45 : 0;

class FakeGeneration implements WasmGeneration {
  readonly promptTokens: Uint32Array;
  #pieces: string[];
  #next = 0;
  #cancelled = false;
  readonly #model: FakeModel;
  readonly #maxTokens: number;

  constructor(model: FakeModel, prompt: string, options: SamplingOptions) {
    this.#model = model;
    this.#pieces = prompt.match(/\s*\S+/g) ?? [];
    this.#maxTokens = options.maxTokens ?? 1000;
    this.promptTokens = model.tokenize(prompt);
  }

  async next(): Promise<Step | undefined> {
    const token = this.#next;
    const text = this.#pieces[token];
    if (text === undefined || this.#cancelled) return undefined;
    if (text.includes("trap!")) throw new WebAssembly.RuntimeError("unreachable");
    if (text.includes("lost!")) fail("device-lost", "the GPU was lost");
    if (tokenDelayMs > 0) await new Promise((resolve) => setTimeout(resolve, tokenDelayMs));
    this.#next += 1;
    const last = this.#next === this.#pieces.length;
    const finishReason = last ? "stop" : this.#next >= this.#maxTokens ? "length" : null;
    return { token, text, finishReason };
  }

  cancel(): void {
    fakeLog.push("cancel");
    this.#cancelled = true;
  }

  free(): void {
    fakeLog.push("free generation");
    this.#model.busy = false;
  }
}

class FakeModel implements WasmModel {
  busy = false;
  readonly info: ModelInfo;
  readonly device: Device;

  constructor(fileBytes: number, nCtx: number | undefined, device: DeviceChoice) {
    this.info = {
      name: "Fake 1M",
      architecture: "llama",
      nLayer: 2,
      nEmbd: 64,
      nCtx: nCtx ?? 2048,
      vocabSize: 512,
      chat: true,
      fileBytes,
      metadata: { "general.name": "Fake 1M", "general.license": "mit" },
    };
    this.device =
      device === "cpu"
        ? { kind: "cpu", name: "WASM SIMD", reason: "asked for" }
        : { kind: "webgpu", name: "Fake GPU", reason: null };
  }

  complete(prompt: string, options: SamplingOptions): WasmGeneration {
    if ((options.temperature ?? 0) < 0) fail("bad-option", "temperature must not be negative");
    if (this.busy) fail("busy", "another generation is running");
    this.busy = true;
    return new FakeGeneration(this, prompt, options);
  }

  chat(messages: readonly Message[], options: SamplingOptions): WasmGeneration {
    return this.complete(messages.at(-1)?.content ?? "", options);
  }

  tokenize(text: string): Uint32Array {
    return Uint32Array.from(text, (character) => character.codePointAt(0) ?? 0);
  }

  free(): void {
    fakeLog.push("free model");
  }
}

export class Loader implements WasmLoader {
  #bytes: number[] = [];
  #length = 0;
  readonly #device: DeviceChoice;
  fileBytes: number | undefined;

  private constructor(device: DeviceChoice) {
    this.#device = device;
  }

  static create(device: DeviceChoice): Promise<Loader> {
    return Promise.resolve(new Loader(device));
  }

  push(chunk: Uint8Array): void {
    this.#length += chunk.byteLength;
    if (this.#bytes.length < 8) this.#bytes.push(...chunk.subarray(0, 8));
    if (this.#bytes.length >= 4 && String.fromCharCode(...this.#bytes.slice(0, 4)) !== "GGUF") {
      fail("not-gguf", "the file does not begin with GGUF");
    }
  }

  async finish(nCtx?: number): Promise<WasmModel> {
    if (this.#length < 16) fail("truncated", "the file ends in its header");
    if (tokenDelayMs > 0) await new Promise((resolve) => setTimeout(resolve, 500));
    return new FakeModel(this.#length, nCtx, this.#device);
  }

  free(): void {
    fakeLog.push("free loader");
  }
}

export default function initialise(): Promise<void> {
  return Promise.resolve();
}
