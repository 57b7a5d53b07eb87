/**
 * The messages between the page and the worker: two discriminated unions by `type`.
 *
 * Every request carries an `id`; every response carries the id of the request that it answers. A `load`
 * is answered by any number of `progress` and one `loaded`; a `start` by one `started`, any number of
 * `step` and one `finished`; a `tokenize` by one `tokens`; each of them instead by one `failed`. A `chunk`
 * is answered by one `taken` (so that a fast stream waits for a slow engine). `cancel` has no answer of
 * its own: the generation that it names ends with `finished`.
 */

import type { ErrorData } from "./errors.js";
import type {
  Device,
  DeviceChoice,
  FinishReason,
  Message,
  ModelInfo,
  Progress,
  SamplingOptions,
  Step,
  Timings,
} from "./types.js";

export type Source =
  | { readonly kind: "url"; readonly url: string; readonly cache: boolean }
  | { readonly kind: "blob"; readonly blob: Blob }
  /** Bytes follow as `chunk` requests, then `end`. */
  | { readonly kind: "pushed" };

export type Prompt =
  | { readonly kind: "text"; readonly text: string }
  | { readonly kind: "chat"; readonly messages: readonly Message[] };

export interface LoadRequest {
  readonly type: "load";
  readonly id: number;
  readonly source: Source;
  readonly device: DeviceChoice;
  readonly nCtx: number | undefined;
}

export interface StartRequest {
  readonly type: "start";
  readonly id: number;
  readonly prompt: Prompt;
  readonly options: SamplingOptions;
}

export type Request =
  | LoadRequest
  | { readonly type: "chunk"; readonly id: number; readonly bytes: Uint8Array }
  | { readonly type: "end"; readonly id: number }
  | StartRequest
  | { readonly type: "cancel"; readonly id: number; readonly target: number }
  | { readonly type: "tokenize"; readonly id: number; readonly text: string };

export type Response =
  | { readonly type: "progress"; readonly id: number; readonly progress: Progress }
  | { readonly type: "loaded"; readonly id: number; readonly info: ModelInfo; readonly device: Device }
  | { readonly type: "taken"; readonly id: number }
  | { readonly type: "started"; readonly id: number; readonly promptTokens: readonly number[] }
  | { readonly type: "step"; readonly id: number; readonly step: Step }
  | {
      readonly type: "finished";
      readonly id: number;
      readonly finishReason: FinishReason | "cancelled";
      readonly timings: Timings;
    }
  | { readonly type: "tokens"; readonly id: number; readonly tokens: readonly number[] }
  | { readonly type: "failed"; readonly id: number; readonly error: ErrorData };

/** Closes a `switch` over one of the unions: a forgotten member is a compile error here. */
export function unreachable(value: never): never {
  throw new Error(`unknown message: ${JSON.stringify(value)}`);
}
