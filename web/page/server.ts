/**
 * The server that the page came from, when it is `fledgling serve`: its shelf of files, and its
 * OpenAI-compatible API. On a static host neither exists, and both say so with `undefined`.
 */

import type { FinishReason, Message, SamplingOptions } from "../src/index.js";
import { serverSentEvents } from "./sse.js";

export interface ShelfFile {
  readonly name: string;
  /** Absolute. */
  readonly url: string;
  readonly sizeBytes: number | undefined;
}

const address = (path: string): string => new URL(path, document.baseURI).href;

/** JSON of the own server; undefined when it has none there (a static host may answer with a page). */
async function getJson(path: string): Promise<unknown> {
  try {
    const response = await fetch(address(path), { headers: { accept: "application/json" } });
    if (!response.ok || !response.headers.get("content-type")?.includes("json")) return undefined;
    return await response.json();
  } catch {
    return undefined;
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

/** The files that the server offers; empty when it offers none. */
export async function fetchShelf(): Promise<readonly ShelfFile[]> {
  const files = await getJson("models.json");
  if (!Array.isArray(files)) return [];
  return files
    .filter(isRecord)
    .flatMap(({ name, url, sizeBytes }) =>
      typeof name === "string" && typeof url === "string"
        ? [{ name, url: address(url), sizeBytes: typeof sizeBytes === "number" ? sizeBytes : undefined }]
        : [],
    );
}

/** The name of the model that the API answers with; undefined when there is no API. */
export async function fetchApiModel(): Promise<string | undefined> {
  const answer = await getJson("v1/models");
  if (!isRecord(answer) || !Array.isArray(answer.data)) return undefined;
  const first: unknown = answer.data[0];
  return isRecord(first) && typeof first.id === "string" ? first.id : undefined;
}

export type Question =
  | { readonly mode: "chat"; readonly messages: readonly Message[] }
  | { readonly mode: "complete"; readonly prompt: string };

export interface Piece {
  readonly text: string;
  readonly finishReason: FinishReason | null;
}

/**
 * Asks the API what the model here is asked, and streams the answer.
 *
 * # Errors
 * An `Error` with the server's own words, or the signal's reason.
 */
export async function* askServer(
  model: string,
  question: Question,
  options: SamplingOptions,
  signal: AbortSignal,
): AsyncGenerator<Piece, void, undefined> {
  const chat = question.mode === "chat";
  const body = {
    model,
    stream: true,
    ...(chat ? { messages: question.messages } : { prompt: question.prompt }),
    ...apiOptions(options),
  };
  const response = await fetch(address(chat ? "v1/chat/completions" : "v1/completions"), {
    method: "POST",
    headers: { "content-type": "application/json", accept: "text/event-stream" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok || !response.body) throw new Error(await refusal(response));
  for await (const data of serverSentEvents(response.body)) {
    if (data === "[DONE]") return;
    const piece = readChunk(JSON.parse(data));
    if (piece) yield piece;
  }
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
  };
}

function readChunk(chunk: unknown): Piece | undefined {
  if (!isRecord(chunk)) return undefined;
  if (isRecord(chunk.error)) throw new Error(String(chunk.error.message));
  const choice: unknown = Array.isArray(chunk.choices) ? chunk.choices[0] : undefined;
  if (!isRecord(choice)) return undefined;
  const text = isRecord(choice.delta) ? choice.delta.content : choice.text;
  const reason = choice.finish_reason;
  return {
    text: typeof text === "string" ? text : "",
    finishReason: reason === "stop" || reason === "length" ? reason : null,
  };
}

async function refusal(response: Response): Promise<string> {
  const answer: unknown = await response.json().catch(() => undefined);
  if (isRecord(answer) && isRecord(answer.error) && typeof answer.error.message === "string") {
    return answer.error.message;
  }
  return `the server answered with status ${response.status}`;
}
