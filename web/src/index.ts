/**
 * `fledgling`: runs a small GPT from one GGUF file in a browser tab.
 *
 * ```ts
 * const model = await Fledgling.load("model.gguf", { device: "auto" });
 * for await (const piece of model.generate("Once upon a time", { maxTokens: 64 })) show(piece);
 * await model.dispose();
 * ```
 *
 * The model lives in a worker of its own; nothing is requested from anywhere but the given source.
 */

import { Cache, type CachedFile } from "./cache.js";
import { Connection, type WorkerLike } from "./connection.js";
import { FledglingError } from "./errors.js";
import { Generation, Turn } from "./generation.js";
import type { Source } from "./protocol.js";
import type { Device, GenerateOptions, LoadOptions, Message, ModelInfo, ModelSource } from "./types.js";

export { FledglingError, errorCodes, type ErrorCode } from "./errors.js";
export type { CachedFile } from "./cache.js";
export { Generation } from "./generation.js";
export type * from "./types.js";

export class Fledgling {
  readonly info: ModelInfo;
  readonly device: Device;
  readonly #connection: Connection;
  readonly #turn = new Turn();

  private constructor(connection: Connection, info: ModelInfo, device: Device) {
    this.#connection = connection;
    this.info = info;
    this.device = device;
  }

  /**
   * Loads a model from a URL, a file, bytes (they are copied) or a stream.
   *
   * # Errors
   * A `FledglingError`, or the signal's reason when the loading is aborted. After either, nothing is
   * left running.
   */
  static async load(source: ModelSource, options: LoadOptions = {}): Promise<Fledgling> {
    const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "fledgling" });
    return await Fledgling.loadIn(worker, source, options);
  }

  /** `load` in a worker that the caller has started: for bundlers with ways of their own, and for tests. */
  static async loadIn(
    worker: WorkerLike,
    source: ModelSource,
    { device = "auto", nCtx, cache = false, onProgress, signal }: LoadOptions = {},
  ): Promise<Fledgling> {
    const connection = new Connection(worker);
    const aborted = new FledglingError("disposed", "the loading was aborted");
    const abort = (): void => {
      connection.close(aborted);
    };
    signal?.addEventListener("abort", abort, { once: true });
    try {
      signal?.throwIfAborted();
      const loaded = connection.ask(
        { type: "load", source: describe(source, cache), device, nCtx },
        "loaded",
        (response) => {
          if (response.type === "progress") onProgress?.(response.progress);
        },
      );
      const pumped = source instanceof ReadableStream ? pump(connection, source) : undefined;
      const [answer] = await Promise.all([loaded, pumped]);
      return new Fledgling(connection, answer.info, answer.device);
    } catch (thrown) {
      connection.close(aborted);
      throw thrown === aborted ? signal?.reason : thrown;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  /** The files that `cache: true` has kept in this browser. */
  static async cached(): Promise<CachedFile[]> {
    return (await (await Cache.open())?.list()) ?? [];
  }

  /** Deletes a kept file. */
  static async forget(url: string): Promise<void> {
    await (await Cache.open())?.delete(url);
  }

  /** Continues a text. */
  generate(prompt: string, options: GenerateOptions = {}): Generation {
    return new Generation(this.#connection, this.#turn, { kind: "text", text: prompt }, options);
  }

  /** Answers a conversation, through the chat template of the file (`info.chat`). */
  chat(messages: readonly Message[], options: GenerateOptions = {}): Generation {
    return new Generation(this.#connection, this.#turn, { kind: "chat", messages }, options);
  }

  /** The token ids of a text, without any that a prompt gets added. */
  async tokenize(text: string): Promise<readonly number[]> {
    return (await this.#connection.ask({ type: "tokenize", text }, "tokens")).tokens;
  }

  /** Frees the memory and the GPU. What still runs, and every later call, fails with `disposed`. */
  dispose(): Promise<void> {
    this.#connection.close(new FledglingError("disposed", "the model has been disposed of"));
    return Promise.resolve();
  }
}

function describe(source: ModelSource, cache: boolean): Source {
  if (source instanceof ReadableStream) return { kind: "pushed" };
  if (source instanceof Blob) return { kind: "blob", blob: source };
  if (source instanceof ArrayBuffer) return { kind: "blob", blob: new Blob([source]) };
  // The worker's own base address differs from the page's.
  const base = "document" in globalThis ? document.baseURI : undefined;
  return { kind: "url", url: new URL(source, base).href, cache };
}

/** Sends a stream chunk by chunk, each when the engine has taken the one before. */
async function pump(connection: Connection, stream: ReadableStream<Uint8Array>): Promise<void> {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      await connection.ask({ type: "chunk", bytes: value }, "taken");
    }
    connection.send({ type: "end" });
  } catch (thrown) {
    await reader.cancel(thrown).catch(() => undefined);
    throw thrown;
  }
}
