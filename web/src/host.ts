/**
 * The worker's side: answers the requests of `protocol.ts` with one wasm module and one model.
 *
 * Knows neither `self` nor the real wasm module, so that it runs under node with a fake of either.
 */

import { FledglingError, toErrorData, type ErrorCode, type ErrorData } from "./errors.js";
import { unreachable, type LoadRequest, type Request, type Response, type StartRequest } from "./protocol.js";
import { openSource, Pushed, type OpenSource } from "./source.js";
import type { Device, FinishReason, Progress, Timings } from "./types.js";
import type { WasmGeneration, WasmLoader, WasmModel, WasmModule } from "./wasm.js";

/** Progress is reported at most this often. */
const progressIntervalMs = 50;

/** What is wrong with the file itself, so that keeping it would only fail again. */
const refusals: ReadonlySet<ErrorCode> = new Set([
  "not-gguf",
  "truncated",
  "unsupported-model",
  "no-tokenizer",
]);

/** What a worker has and node has not. */
export interface Surroundings {
  importWasm(): Promise<WasmModule>;
  /**
   * Lets messages that are waiting be handled. On the CPU a token is computed without ever waiting for
   * anything, so without it no `cancel` would be read before the text ends.
   */
  pause(): Promise<void>;
  /** What the browser calls its GPU, where it tells. */
  adapterName(): Promise<string | undefined>;
}

interface Active {
  readonly id: number;
  cancelled: boolean;
  generation: WasmGeneration | undefined;
}

export class Host {
  readonly #post: (response: Response) => void;
  readonly #around: Surroundings;
  readonly #pushed = new Pushed();
  #model: WasmModel | undefined;
  #active: Active | undefined;
  /** Set once the wasm module has trapped: its memory can no longer be trusted. */
  #trap: ErrorData | undefined;

  constructor(post: (response: Response) => void, around: Surroundings) {
    this.#post = post;
    this.#around = around;
  }

  /** Answers one request. Never rejects: failures are answers too. */
  async handle(request: Request): Promise<void> {
    try {
      if (this.#trap) throw new FledglingError(this.#trap.code, this.#trap.message);
      await this.#dispatch(request);
    } catch (thrown) {
      const error = toErrorData(thrown);
      if (thrown instanceof WebAssembly.RuntimeError) {
        this.#trap = { code: "internal", message: `the engine stopped (${error.message})` };
      }
      this.#post({ type: "failed", id: request.id, error });
    }
  }

  async #dispatch(request: Request): Promise<void> {
    switch (request.type) {
      case "load":
        return this.#load(request);
      case "chunk":
        await this.#pushed.chunk(request.bytes);
        this.#post({ type: "taken", id: request.id });
        return;
      case "end":
        return this.#pushed.end();
      case "start":
        return this.#start(request);
      case "cancel":
        this.#cancel(request.target);
        return;
      case "tokenize": {
        const tokens = Array.from(this.#loaded().tokenize(request.text));
        this.#post({ type: "tokens", id: request.id, tokens });
        return;
      }
      default:
        return unreachable(request);
    }
  }

  #loaded(): WasmModel {
    if (!this.#model) throw new FledglingError("disposed", "no model is loaded");
    return this.#model;
  }

  async #load({ id, source, device, nCtx }: LoadRequest): Promise<void> {
    // The connection opens while the wasm module compiles.
    const [opened, loader] = await Promise.allSettled([
      openSource(source, this.#pushed),
      this.#around.importWasm().then((wasm) => wasm.Loader.create(device)),
    ]);
    if (opened.status === "rejected") {
      if (loader.status === "fulfilled") loader.value.free();
      throw opened.reason;
    }
    const open = opened.value;
    try {
      if (loader.status === "rejected") throw loader.reason;
      const loadedBytes = await this.#feed(id, open, loader.value);
      const { fromCache } = open;
      this.#report(id, { phase: "prepare", loadedBytes, totalBytes: loadedBytes, fromCache });
      this.#model = await loader.value.finish(nCtx);
    } catch (thrown) {
      // Nobody reads on: let go of the connection, and of a page that still sends chunks.
      await open.chunks.return().catch(() => undefined);
      if (refusals.has(toErrorData(thrown).code)) await open.discard();
      throw thrown;
    }
    this.#post({ type: "loaded", id, info: this.#model.info, device: await this.#device(this.#model) });
  }

  async #device({ device }: WasmModel): Promise<Device> {
    if (device.kind === "cpu") return device;
    return { ...device, name: (await this.#around.adapterName()) ?? device.name };
  }

  /** Pushes the whole source into the loader and returns its length in bytes. */
  async #feed(id: number, open: OpenSource, loader: WasmLoader): Promise<number> {
    let loadedBytes = 0;
    let reportedAt = -Infinity;
    const report = (): void => {
      const totalBytes = open.totalBytes ?? loader.fileBytes ?? null;
      this.#report(id, { phase: "download", loadedBytes, totalBytes, fromCache: open.fromCache });
    };
    try {
      for await (const chunk of open.chunks) {
        loader.push(chunk);
        loadedBytes += chunk.byteLength;
        const now = performance.now();
        if (now - reportedAt < progressIntervalMs) continue;
        reportedAt = now;
        report();
      }
      report();
      return loadedBytes;
    } catch (thrown) {
      if (!(thrown instanceof WebAssembly.RuntimeError)) loader.free();
      throw thrown;
    }
  }

  #report(id: number, progress: Progress): void {
    this.#post({ type: "progress", id, progress });
  }

  async #start({ id, prompt, options }: StartRequest): Promise<void> {
    const startedAt = performance.now();
    const model = this.#loaded();
    if (this.#active) throw new FledglingError("busy", "the model is still writing another answer");
    const active: Active = { id, cancelled: false, generation: undefined };
    this.#active = active;
    try {
      active.generation =
        prompt.kind === "text" ? model.complete(prompt.text, options) : model.chat(prompt.messages, options);
      this.#post({ type: "started", id, promptTokens: Array.from(active.generation.promptTokens) });
      // A cancel that is already waiting must not cost the whole prompt.
      await this.#around.pause();
      await this.#steps(active, active.generation, startedAt);
    } catch (thrown) {
      // After a trap the object is part of the wreck; touching it would trap again.
      if (thrown instanceof WebAssembly.RuntimeError) active.generation = undefined;
      throw thrown;
    } finally {
      this.#active = undefined;
      active.generation?.free();
    }
  }

  async #steps(active: Active, generation: WasmGeneration, startedAt: number): Promise<void> {
    const { id } = active;
    let firstAt: number | undefined;
    let nTokens = 0;
    let finishReason: FinishReason | null = null;
    while (!active.cancelled && finishReason === null) {
      const step = await generation.next();
      if (!step) break;
      firstAt ??= performance.now();
      nTokens += 1;
      finishReason = step.finishReason;
      this.#post({ type: "step", id, step });
      await this.#around.pause();
    }
    const timings = measure(startedAt, firstAt, nTokens);
    this.#post({ type: "finished", id, finishReason: finishReason ?? "cancelled", timings });
  }

  #cancel(target: number): void {
    if (this.#active?.id !== target) return;
    this.#active.cancelled = true;
    this.#active.generation?.cancel();
  }
}

function measure(startedAt: number, firstAt: number | undefined, nTokens: number): Timings {
  const endedAt = performance.now();
  const decodeMs = firstAt === undefined ? 0 : endedAt - firstAt;
  return {
    timeToFirstTokenMs: (firstAt ?? endedAt) - startedAt,
    totalMs: endedAt - startedAt,
    tokensPerSecond: nTokens > 1 && decodeMs > 0 ? ((nTokens - 1) * 1000) / decodeMs : null,
  };
}
