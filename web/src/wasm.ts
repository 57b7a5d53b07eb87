/**
 * The shape of the wasm module, as ARCHITECTURE.md ("The browser boundary") fixes it.
 *
 * Written by hand so that the package is typed without the generated file, and so that a change of the
 * boundary is a decision on both sides.
 */

import type { Device, DeviceChoice, Message, ModelInfo, SamplingOptions, Step } from "./types.js";

export interface WasmGeneration {
  readonly promptTokens: Uint32Array;
  next(): Promise<Step | undefined>;
  cancel(): void;
  free(): void;
}

export interface WasmModel {
  readonly info: ModelInfo;
  readonly device: Device;
  complete(prompt: string, options: SamplingOptions): WasmGeneration;
  chat(messages: readonly Message[], options: SamplingOptions): WasmGeneration;
  tokenize(text: string): Uint32Array;
  free(): void;
}

export interface WasmLoader {
  push(chunk: Uint8Array): void;
  readonly fileBytes: number | undefined;
  /** Consumes the loader: it must not be freed afterwards. */
  finish(nCtx?: number): Promise<WasmModel>;
  free(): void;
}

export interface WasmModule {
  /** wasm-bindgen's initialisation: fetches and instantiates the `.wasm` beside the script. */
  default(): Promise<unknown>;
  Loader: { create(device: DeviceChoice): Promise<WasmLoader> };
}
