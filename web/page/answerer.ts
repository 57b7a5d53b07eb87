/** Who answers: a model in this tab, or an API. Both are asked the same and answer the same way. */

import type { Fledgling, GenerationResult, Message, SamplingOptions } from "../src/index.js";
import { talk } from "./strings.js";
import type { Mode } from "./tree.js";

export interface Asked {
  readonly mode: Mode;
  /** For a chat. */
  readonly messages: readonly Message[];
  /** For a completion. */
  readonly prompt: string;
}

export interface Piece {
  readonly text: string;
  /** True when the piece is one token, so that its time says how fast the model is. */
  readonly counts: boolean;
}

export interface End {
  readonly finishReason: GenerationResult["finishReason"];
  readonly tokens: number | null;
  readonly promptTokens: number | null;
  readonly tokensPerSecond: number | null;
  readonly firstTokenMs: number | null;
}

export interface Answerer {
  /** Where: Here, There, or Beside. */
  readonly place: string;
  /** The device or the model. */
  readonly detail: string;
  /** False for a model without a chat template. */
  readonly chat: boolean;
  /** Yields the text; an abort ends it quietly, with what there is. */
  answer(asked: Asked, options: SamplingOptions, signal: AbortSignal): AsyncGenerator<Piece, End, undefined>;
}

/** A model in this tab. */
export class LocalAnswerer implements Answerer {
  readonly place: string;
  readonly detail: string;
  readonly chat: boolean;
  readonly model: Fledgling;

  constructor(model: Fledgling, place: string, detail: string) {
    this.model = model;
    this.place = place;
    this.detail = detail;
    this.chat = model.info.chat;
  }

  /**
   * # Errors
   * As `Fledgling.chat` and `Fledgling.generate`.
   */
  async *answer(
    asked: Asked,
    options: SamplingOptions,
    signal: AbortSignal,
  ): AsyncGenerator<Piece, End, undefined> {
    const generation =
      asked.mode === "chat"
        ? this.model.chat(asked.messages, options)
        : this.model.generate(asked.prompt, options);
    const stop = (): void => {
      generation.cancel();
    };
    signal.addEventListener("abort", stop);
    try {
      for await (const { text } of generation.steps()) yield { text, counts: true };
    } finally {
      signal.removeEventListener("abort", stop);
    }
    return endOf(generation.result);
  }
}

function endOf(result: GenerationResult | undefined): End {
  return {
    finishReason: result?.finishReason ?? "cancelled",
    tokens: result?.tokenIds.length ?? null,
    promptTokens: result?.promptTokens.length ?? null,
    tokensPerSecond: result?.timings.tokensPerSecond ?? null,
    firstTokenMs: result?.timings.timeToFirstTokenMs ?? null,
  };
}

export function deviceName({ kind, name }: Pick<Fledgling["device"], "kind" | "name">): string {
  const title = kind === "webgpu" ? "WebGPU" : "CPU";
  return name && !name.toLowerCase().startsWith(title.toLowerCase()) ? `${title} · ${name}` : name || title;
}

export const here = (model: Fledgling): LocalAnswerer =>
  new LocalAnswerer(model, talk.here, deviceName(model.device));
