/** The conversation with one loaded model: asks it, streams its answers, and asks the server the same. */

import {
  FledglingError,
  type Fledgling,
  type GenerationResult,
  type Message,
  type Timings,
} from "../src/index.js";
import { compare, type Side } from "./compare.js";
import { AnswerView, TurnView } from "./conversation.js";
import { formatDuration, formatRate } from "./format.js";
import { askServer, type Question } from "./server.js";
import type { Settings } from "./settings.js";

export interface Asked {
  readonly text: string;
  readonly mode: Question["mode"];
  /** The name of the server's model to compare with; undefined for no comparison. */
  readonly compareWith: string | undefined;
}

export interface TalkEvents {
  /** A new turn to be shown. */
  turn(element: HTMLElement): void;
  /** How fast the model here was. */
  speed(timings: Timings): void;
  /** Something that a screen reader should say. */
  announce(sentence: string): void;
}

export class Talk {
  readonly model: Fledgling;
  readonly #settings: Settings;
  readonly #events: TalkEvents;
  readonly #history: Message[] = [];
  #stop: (() => void) | undefined;

  constructor(model: Fledgling, settings: Settings, events: TalkEvents) {
    this.model = model;
    this.#settings = settings;
    this.#events = events;
  }

  get writing(): boolean {
    return this.#stop !== undefined;
  }

  stop(): void {
    this.#stop?.();
  }

  /** Asks, and resolves when all answers are there. Failures are shown in their place. */
  async ask({ text, mode, compareWith }: Asked): Promise<void> {
    const question = this.#question(text, mode);
    const turn = new TurnView(mode === "chat" ? text : undefined, compareWith !== undefined);
    const given = mode === "complete" ? text : undefined;
    const { device } = this.model;
    const here = turn.add(new AnswerView("Here", deviceName(device.kind, device.name), given));
    const there =
      compareWith === undefined
        ? undefined
        : turn.add(new AnswerView("There", `API · ${compareWith}`, given));
    this.#events.turn(turn.element);
    const stopping = new AbortController();
    this.#stop = () => {
      stopping.abort();
    };
    try {
      const [sideHere, sideThere] = await Promise.all([
        this.#answerHere(question, here, stopping.signal),
        there && compareWith !== undefined
          ? this.#answerThere(compareWith, question, there, stopping.signal)
          : undefined,
      ]);
      if (sideHere) this.#remember(question, sideHere.text);
      if (there) turn.judge(judge(sideHere, sideThere));
    } finally {
      this.#stop = undefined;
    }
  }

  #question(text: string, mode: Question["mode"]): Question {
    if (mode === "complete") return { mode, prompt: text };
    const { system } = this.#settings;
    const opening: Message[] = system ? [{ role: "system", content: system }] : [];
    return { mode, messages: [...opening, ...this.#history, { role: "user", content: text }] };
  }

  #remember(question: Question, answer: string): void {
    const asked = question.mode === "chat" ? question.messages.at(-1) : undefined;
    if (asked) this.#history.push(asked, { role: "assistant", content: answer });
  }

  /** The side of the model here; undefined when it failed. */
  async #answerHere(question: Question, view: AnswerView, stopping: AbortSignal): Promise<Side | undefined> {
    const generation =
      question.mode === "chat"
        ? this.model.chat(question.messages, this.#settings.sampling)
        : this.model.generate(question.prompt, this.#settings.sampling);
    stopping.addEventListener("abort", () => {
      generation.cancel();
    });
    try {
      for await (const piece of generation) view.append(piece);
    } catch (thrown) {
      view.fail(thrown);
      if (thrown instanceof FledglingError) this.#events.announce(`Failed: ${thrown.message}`);
      return undefined;
    }
    const { result } = generation;
    if (!result) return undefined;
    view.end("done", factsOf(result));
    this.#events.speed(result.timings);
    this.#events.announce(`Answer: ${result.text}`);
    return { text: result.text, complete: result.finishReason !== "cancelled" };
  }

  /** The side of the server; undefined when it failed. */
  async #answerThere(
    model: string,
    question: Question,
    view: AnswerView,
    stopping: AbortSignal,
  ): Promise<Side | undefined> {
    const startedAt = performance.now();
    let complete = false;
    let firstAt: number | undefined;
    try {
      for await (const piece of askServer(model, question, this.#settings.sampling, stopping)) {
        if (piece.text) firstAt ??= performance.now();
        view.append(piece.text);
        complete ||= piece.finishReason !== null;
      }
    } catch (thrown) {
      if (!stopping.aborted) {
        view.failWith(
          `The server did not answer: ${thrown instanceof Error ? thrown.message : String(thrown)}`,
        );
        return undefined;
      }
    }
    const now = performance.now();
    const facts = complete ? [formatDuration(now - startedAt)] : ["stopped"];
    if (firstAt !== undefined) facts.push(`first text after ${formatDuration(firstAt - startedAt)}`);
    view.end("done", facts);
    return { text: view.written, complete };
  }
}

function judge(here: Side | undefined, there: Side | undefined): ReturnType<typeof compare> {
  if (here && there) return compare(here, there);
  return { equal: null, sentence: "Nothing to compare: one of the two did not answer." };
}

export function deviceName(kind: "webgpu" | "cpu", name: string): string {
  const title = kind === "webgpu" ? "WebGPU" : "CPU";
  return name && !name.toLowerCase().startsWith(title.toLowerCase()) ? `${title} · ${name}` : name || title;
}

function factsOf(result: GenerationResult): string[] {
  const { tokenIds, finishReason, timings } = result;
  const facts = [`${tokenIds.length} token${tokenIds.length === 1 ? "" : "s"}`];
  if (timings.tokensPerSecond !== null) facts.push(formatRate(timings.tokensPerSecond));
  facts.push(`first after ${formatDuration(timings.timeToFirstTokenMs)}`);
  if (finishReason === "length") facts.push("cut at the longest answer");
  if (finishReason === "cancelled") facts.push("stopped");
  return facts;
}
