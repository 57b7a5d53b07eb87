/**
 * One answer of the model, as it is written: an async iterable of text pieces, or of steps with their
 * token ids, and a result with timings at the end.
 */

import type { Connection } from "./connection.js";
import { FledglingError } from "./errors.js";
import type { Prompt, Response } from "./protocol.js";
import { unreachable } from "./protocol.js";
import type { GenerateOptions, GenerationResult, SamplingOptions, Step } from "./types.js";

/** Lets the generations of one model take turns. */
export class Turn {
  #holder: Generation | undefined;
  #waiting: (() => void)[] = [];

  /**
   * Waits for a generation that has been cancelled but has not yet ended.
   *
   * # Errors
   * `busy` while another one is writing.
   */
  async take(generation: Generation): Promise<void> {
    while (this.#holder) {
      if (!this.#holder.cancelled) {
        throw new FledglingError("busy", "the model is still writing another answer");
      }
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
    this.#holder = generation;
  }

  release(): void {
    this.#holder = undefined;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resume of waiting) resume();
  }
}

export class Generation implements AsyncIterable<string> {
  readonly #connection: Connection;
  readonly #turn: Turn;
  readonly #prompt: Prompt;
  readonly #sampling: SamplingOptions;
  readonly #signal: AbortSignal | undefined;

  /** Steps that have arrived and were not asked for yet. */
  readonly #arrived: Step[] = [];
  #wake: () => void = () => undefined;
  #failure: { readonly error: unknown } | undefined;
  #started = false;
  #cancelled = false;
  #id: number | undefined;

  #promptTokens: readonly number[] | undefined;
  #text = "";
  readonly #tokenIds: number[] = [];
  #result: GenerationResult | undefined;

  /** Made by `Fledgling.generate` and `Fledgling.chat`. */
  constructor(connection: Connection, turn: Turn, prompt: Prompt, { signal, ...sampling }: GenerateOptions) {
    this.#connection = connection;
    this.#turn = turn;
    this.#prompt = prompt;
    this.#sampling = sampling;
    this.#signal = signal;
  }

  /** The ids that the prompt became, once the model has started on it. */
  get promptTokens(): readonly number[] | undefined {
    return this.#promptTokens;
  }

  /** What is known at the end; undefined until the worker has said that it is the end. */
  get result(): GenerationResult | undefined {
    return this.#result;
  }

  get cancelled(): boolean {
    return this.#cancelled;
  }

  /** Stops within a token. The iteration then ends without an error. */
  cancel(): void {
    if (this.#cancelled) return;
    this.#cancelled = true;
    if (this.#id !== undefined && !this.#connection.closed) {
      this.#connection.send({ type: "cancel", target: this.#id });
    }
  }

  /** Pieces of text as they come; each holds whole characters. */
  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    for await (const step of this.steps()) {
      if (step.text !== "") yield step.text;
    }
  }

  /**
   * Every token with its id and text. The work starts with the first step that is asked for.
   *
   * # Errors
   * Those of the engine, `busy`, `disposed`, `crashed`, and the reason of the signal when it is aborted.
   */
  async *steps(): AsyncGenerator<Step, void, undefined> {
    if (this.#started) throw new FledglingError("bad-option", "a generation can be read only once");
    this.#started = true;
    this.#signal?.throwIfAborted();
    const abort = (): void => {
      this.cancel();
      this.#fail(this.#signal?.reason);
    };
    this.#signal?.addEventListener("abort", abort, { once: true });
    try {
      await this.#start();
      for (;;) {
        const step = this.#arrived.shift();
        if (step) yield step;
        else if (this.#failure) throw this.#failure.error;
        else if (this.#result) return;
        else await new Promise<void>((resolve) => (this.#wake = resolve));
      }
    } finally {
      this.#signal?.removeEventListener("abort", abort);
      // A loop that is left early ends here, too: the model must not go on writing for nobody.
      if (!this.#result) this.cancel();
    }
  }

  /** Reads to the end and returns the result. */
  async finish(): Promise<GenerationResult> {
    const steps = this.steps();
    while (!(await steps.next()).done);
    if (!this.#result) throw new FledglingError("internal", "the generation ended without a result");
    return this.#result;
  }

  async #start(): Promise<void> {
    await this.#turn.take(this);
    try {
      this.#signal?.throwIfAborted();
      this.#id = this.#connection.send(
        { type: "start", prompt: this.#prompt, options: this.#sampling },
        {
          response: (response) => {
            this.#receive(response);
            if (this.#result) this.#turn.release();
          },
          failed: (error) => {
            this.#fail(error);
            this.#turn.release();
          },
        },
      );
    } catch (thrown) {
      this.#turn.release();
      throw thrown;
    }
  }

  #receive(response: Response): void {
    switch (response.type) {
      case "started":
        this.#promptTokens = response.promptTokens;
        break;
      case "step":
        this.#text += response.step.text;
        this.#tokenIds.push(response.step.token);
        this.#arrived.push(response.step);
        break;
      case "finished":
        this.#connection.done(response.id);
        this.#result = {
          text: this.#text,
          promptTokens: this.#promptTokens ?? [],
          tokenIds: this.#tokenIds,
          finishReason: response.finishReason,
          timings: response.timings,
        };
        break;
      case "progress":
      case "loaded":
      case "taken":
      case "tokens":
      case "failed":
        break;
      default:
        unreachable(response);
    }
    this.#wake();
  }

  #fail(error: unknown): void {
    this.#failure ??= { error };
    this.#arrived.length = 0;
    this.#wake();
  }
}
