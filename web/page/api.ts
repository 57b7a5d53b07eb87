/** An OpenAI-compatible API: the server's own, or another one that the person before the page named. */

import type { SamplingOptions } from "../src/index.js";
import type { Answerer, Asked, End, Piece } from "./answerer.js";
import { serverSentEvents } from "./sse.js";
import { talk } from "./strings.js";

export interface Api {
  /** Absolute; `v1/…` is below it. */
  readonly base: string;
  /** Empty for none. */
  readonly key: string;
  readonly model: string;
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

/** The address of an API as people write it: with or without a slash or `/v1` at its end. */
export function apiBase(written: string): string {
  const url = new URL(written.trim());
  if (url.protocol !== "https:" && url.protocol !== "http:")
    throw new TypeError(`${url.protocol} is no http`);
  const path = url.pathname.replace(/\/+$/, "").replace(/\/v1$/, "");
  return `${url.origin}${path}/`;
}

/**
 * The names of an API's models.
 *
 * # Errors
 * An `Error` with the reason when it does not answer as such an API does.
 */
export async function apiModels(base: string, key: string): Promise<string[]> {
  const response = await fetch(new URL("v1/models", base), { headers: authorization(key) });
  if (!response.ok) throw new Error(await refusal(response));
  const answer: unknown = await response.json();
  if (!isRecord(answer) || !Array.isArray(answer.data)) throw new Error("it lists no models");
  return answer.data.filter(isRecord).flatMap(({ id }) => (typeof id === "string" ? [id] : []));
}

export class ApiAnswerer implements Answerer {
  readonly place: string;
  readonly detail: string;
  readonly chat = true;
  readonly #api: Api;

  constructor(api: Api) {
    this.#api = api;
    this.place = talk.there;
    this.detail = talk.api(api.model);
  }

  /**
   * Streams the answer.
   *
   * # Errors
   * An `Error` with the server's own words.
   */
  async *answer(
    asked: Asked,
    options: SamplingOptions,
    signal: AbortSignal,
  ): AsyncGenerator<Piece, End, undefined> {
    const startedAt = performance.now();
    let firstAt: number | undefined;
    let end: Pick<End, "finishReason" | "tokens" | "promptTokens"> = {
      finishReason: "cancelled",
      tokens: null,
      promptTokens: null,
    };
    try {
      for await (const { text, ...rest } of this.#stream(asked, options, signal)) {
        if (text) {
          firstAt ??= performance.now();
          yield { text, counts: false };
        }
        end = { ...end, ...rest };
      }
    } catch (thrown) {
      if (!signal.aborted) throw thrown;
    }
    const decodeMs = performance.now() - (firstAt ?? 0);
    return {
      ...end,
      firstTokenMs: firstAt === undefined ? null : firstAt - startedAt,
      tokensPerSecond: end.tokens !== null && end.tokens > 1 ? ((end.tokens - 1) * 1000) / decodeMs : null,
    };
  }

  async *#stream(asked: Asked, options: SamplingOptions, signal: AbortSignal): AsyncGenerator<Chunk> {
    const { base, key, model } = this.#api;
    const chat = asked.mode === "chat";
    const response = await fetch(new URL(chat ? "v1/chat/completions" : "v1/completions", base), {
      method: "POST",
      headers: { "content-type": "application/json", accept: "text/event-stream", ...authorization(key) },
      body: JSON.stringify({
        model,
        stream: true,
        stream_options: { include_usage: true },
        ...(chat ? { messages: asked.messages } : { prompt: asked.prompt }),
        ...apiOptions(options),
      }),
      signal,
    });
    if (!response.ok || !response.body) throw new Error(await refusal(response));
    for await (const data of serverSentEvents(response.body)) {
      if (data === "[DONE]") return;
      yield readChunk(JSON.parse(data));
    }
  }
}

function authorization(key: string): Record<string, string> {
  return key ? { authorization: `Bearer ${key}` } : {};
}

function apiOptions(options: SamplingOptions): Record<string, unknown> {
  return {
    max_tokens: options.maxTokens,
    temperature: options.temperature ?? 0,
    top_k: options.topK,
    top_p: options.topP,
    min_p: options.minP,
    repetition_penalty: options.repetitionPenalty,
    seed: options.seed,
    stop: options.stop,
  };
}

interface Chunk {
  readonly text: string;
  readonly finishReason?: "stop" | "length";
  readonly tokens?: number;
  readonly promptTokens?: number;
}

/** One event of the stream: text, the reason of the end, or the usage behind it. */
export function readChunk(chunk: unknown): Chunk {
  if (!isRecord(chunk)) return { text: "" };
  if (isRecord(chunk.error)) throw new Error(String(chunk.error.message));
  const { usage } = chunk;
  const counts = isRecord(usage)
    ? {
        ...(typeof usage.completion_tokens === "number" && { tokens: usage.completion_tokens }),
        ...(typeof usage.prompt_tokens === "number" && { promptTokens: usage.prompt_tokens }),
      }
    : {};
  const choice: unknown = Array.isArray(chunk.choices) ? chunk.choices[0] : undefined;
  if (!isRecord(choice)) return { text: "", ...counts };
  const text = isRecord(choice.delta) ? choice.delta.content : choice.text;
  const reason = choice.finish_reason;
  return {
    text: typeof text === "string" ? text : "",
    ...counts,
    ...((reason === "stop" || reason === "length") && { finishReason: reason }),
  };
}

async function refusal(response: Response): Promise<string> {
  const answer: unknown = await response.json().catch(() => undefined);
  if (isRecord(answer) && isRecord(answer.error) && typeof answer.error.message === "string") {
    return answer.error.message;
  }
  return `it answered with status ${response.status}`;
}
