/**
 * What a caller of the package sees: options, progress, and what a model says about itself.
 *
 * Sizes are in bytes, times in milliseconds, rates per second.
 */

/** `auto` is WebGPU where it works and the CPU (WASM SIMD) where it does not. */
export type DeviceChoice = "auto" | "webgpu" | "cpu";

/** Where a model computes. `reason` says why it is not on the GPU, when it is not. */
export interface Device {
  readonly kind: "webgpu" | "cpu";
  readonly name: string;
  readonly reason: string | null;
}

/** What the file says about its model. */
export interface ModelInfo {
  readonly name: string;
  readonly architecture: string;
  readonly nLayer: number;
  readonly nEmbd: number;
  readonly nCtx: number;
  readonly vocabSize: number;
  /** True when the file carries a chat template, so that `chat()` works. */
  readonly chat: boolean;
  readonly fileBytes: number;
  /** The scalar metadata of the GGUF file, by its keys. */
  readonly metadata: Readonly<Record<string, string | number | boolean>>;
}

/**
 * The phases of loading: bytes arrive (`download`), the engine compiles and warms up (`prepare`).
 * `totalBytes` is null while nobody knows it yet.
 */
export interface Progress {
  readonly phase: "download" | "prepare";
  readonly loadedBytes: number;
  readonly totalBytes: number | null;
  /** True when the bytes come from the browser's own storage. */
  readonly fromCache: boolean;
}

/** What a model can be loaded from. A `string` is resolved against the page's address. */
export type ModelSource = string | URL | Blob | ArrayBuffer | ReadableStream<Uint8Array>;

export interface LoadOptions {
  device?: DeviceChoice;
  /** The context in tokens; not given, the model's own, but at most 4096. A smaller one needs less memory. */
  nCtx?: number;
  /**
   * Keep what is downloaded from a URL in the browser's storage, take it from there next time, and go on
   * with a download that broke off. The server is asked whether its file is still the same. Default: false.
   */
  cache?: boolean;
  onProgress?: (progress: Progress) => void;
  signal?: AbortSignal;
}

/** How tokens are chosen. Nothing given is greedy: always the most probable token. */
export interface SamplingOptions {
  maxTokens?: number;
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  seed?: number;
  stop?: readonly string[];
}

export interface GenerateOptions extends SamplingOptions {
  /** Aborting stops the model within a token and throws the signal's reason out of the iteration. */
  signal?: AbortSignal;
}

export interface Message {
  readonly role: "system" | "user" | "assistant";
  readonly content: string;
}

export type FinishReason = "stop" | "length";

/** One token and the text that it completes (empty while a UTF-8 character is still in parts). */
export interface Step {
  readonly token: number;
  readonly text: string;
  readonly finishReason: FinishReason | null;
}

export interface Timings {
  /** From the request to the first token: the prompt's way through the model. */
  readonly timeToFirstTokenMs: number;
  readonly totalMs: number;
  /** Tokens after the first, over the time after the first; null for fewer than two tokens. */
  readonly tokensPerSecond: number | null;
}

/** What is known once a generation has ended. */
export interface GenerationResult {
  readonly text: string;
  readonly promptTokens: readonly number[];
  readonly tokenIds: readonly number[];
  /** `cancelled` after `cancel()` or when the loop over it was left early. */
  readonly finishReason: FinishReason | "cancelled";
  readonly timings: Timings;
}
