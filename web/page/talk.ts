/** One conversation under way: asks who answers, writes what comes into the tree, and tells the page. */

import type { Answerer, End } from "./answerer.js";
import { compare, type Side, type Verdict } from "./compare.js";
import { endsModel, explain } from "./explain.js";
import type { SamplingOptions } from "../src/index.js";
import { presets, type Settings } from "./settings.js";
import { talk as words } from "./strings.js";
import * as trees from "./tree.js";
import type { Answer, Answered, Conversation, Mode, Node, Question } from "./tree.js";

export interface TalkEvents {
  /** Turns came or went, or began or ended to be written. */
  changed(): void;
  /** The answers to this question have grown. */
  grew(questionId: string): void;
  /** A token of the first answerer, for the drawing of its speed. */
  token(): void;
  ended(end: End): void;
  /** All answers to a question are there; the conversation may no longer be the open one. */
  written(tree: Conversation): void;
  announce(sentence: string): void;
  /** The model is gone. */
  lost(): void;
}

export class Talk {
  tree: Conversation = trees.newConversation(Date.now());
  /** Who answers; undefined until there is a model. */
  first: Answerer | undefined;
  /** Who answers beside it, if anybody. */
  second: Answerer | undefined;
  readonly #settings: Settings;
  readonly #events: TalkEvents;
  #stopping: AbortController | undefined;

  constructor(settings: Settings, events: TalkEvents) {
    this.#settings = settings;
    this.#events = events;
  }

  get writing(): boolean {
    return this.#stopping !== undefined;
  }

  stop(): void {
    this.#stopping?.abort();
  }

  open(tree: Conversation): void {
    this.stop();
    this.tree = tree;
    this.#events.changed();
  }

  /** Asks at the end of the conversation. Failures are shown in their place. */
  async ask(mode: Mode, text: string): Promise<void> {
    const last = trees.path(this.tree).at(-1);
    await this.#answer(trees.ask(this.tree, last?.answer?.id ?? null, mode, text));
  }

  /** Asks again, differently: a branch beside the question. */
  async edit(question: Question, text: string): Promise<void> {
    await this.#answer(trees.ask(this.tree, question.parent, question.mode, text));
  }

  /** Another answer, beside the one there is. */
  async regenerate(question: Question): Promise<void> {
    const before = this.tree.nodes.filter(({ parent }) => parent === question.id);
    await this.#answer(question, before.filter(trees.isAnswer));
  }

  /** Goes on writing behind a completion. */
  async goOn(question: Question, answer: Answer): Promise<void> {
    await this.#answer(trees.ask(this.tree, answer.id, "complete", question.text + answer.text));
  }

  choose(node: Node): void {
    if (this.writing) return;
    trees.choose(this.tree, node);
    this.#events.changed();
  }

  async #answer(question: Question, before: readonly Answer[] = []): Promise<void> {
    const { first, second, tree } = this;
    if (!first || this.writing) return;
    const { system } = this.#settings;
    const options = another(this.#settings.sampling, before, first);
    const answer = trees.answer(tree, question, empty(first), { system, options });
    if (second) answer.beside = empty(second);
    const stopping = new AbortController();
    this.#stopping = stopping;
    this.#events.changed();
    try {
      await Promise.all([
        this.#write(first, tree, question, answer, answer, stopping.signal),
        second &&
          answer.beside &&
          this.#write(second, tree, question, answer, answer.beside, stopping.signal),
      ]);
    } finally {
      this.#stopping = undefined;
      tree.updatedMs = Date.now();
      this.#events.written(tree);
      this.#events.changed();
    }
  }

  /** Writes one side. */
  async #write(
    from: Answerer,
    tree: Conversation,
    question: Question,
    answer: Answer,
    side: Answered,
    signal: AbortSignal,
  ): Promise<void> {
    const messages = trees.messagesFor(tree, question, answer.system);
    const asked = { mode: question.mode, messages, prompt: question.text };
    const isFirst = side === answer;
    try {
      const pieces = from.answer(asked, answer.options, signal);
      for (;;) {
        const next = await pieces.next();
        if (next.done) {
          finish(side, next.value);
          if (isFirst) this.#events.ended(next.value);
          break;
        }
        side.text += next.value.text;
        if (isFirst && next.value.counts) this.#events.token();
        this.#events.grew(question.id);
      }
      if (isFirst) this.#events.announce(words.answered(side.text));
    } catch (thrown) {
      this.#fail(from, side, thrown);
    }
    this.#events.grew(question.id);
  }

  #fail(from: Answerer, side: Answered, thrown: unknown): void {
    const { title, advice } = explain(thrown);
    side.state = "failed";
    side.failure =
      from.place === words.there
        ? `${words.serverSilent(thrown instanceof Error ? thrown.message : String(thrown))} ${words.serverAdvice}`
        : `${title}. ${advice}`;
    this.#events.announce(words.failed(side.failure));
    if (endsModel(thrown)) this.#events.lost();
  }
}

/**
 * The options for one more answer. The same options would give the same text, so they change where nobody has
 * changed them: another seed, and some freedom where there was none. An answer keeps the options that it had.
 */
function another(options: SamplingOptions, before: readonly Answer[], from: Answerer): SamplingOptions {
  const last = before.at(-1);
  if (last?.state !== "done" || last.detail !== from.detail) return options;
  const seed = (options.seed ?? 0) + before.length;
  return options.temperature ? { ...options, seed } : { ...options, ...presets.balanced, seed };
}

function empty({ place, detail }: Answerer): Answered {
  return {
    text: "",
    state: "writing",
    cut: false,
    place,
    detail,
    tokens: null,
    tokensPerSecond: null,
    firstTokenMs: null,
    failure: "",
  };
}

function finish(side: Answered, end: End): void {
  side.state = end.finishReason === "cancelled" ? "stopped" : "done";
  side.cut = end.finishReason === "length";
  side.tokens = end.tokens;
  side.tokensPerSecond = end.tokensPerSecond;
  side.firstTokenMs = end.firstTokenMs;
}

/** Whether both sides of an answer are the same; undefined while one is written. */
export function judge(answer: Answer): Verdict | undefined {
  const { beside } = answer;
  if (!beside || answer.state === "writing" || beside.state === "writing") return undefined;
  return compare(sideOf(answer), sideOf(beside));
}

function sideOf({ state, text }: Answered): Side | undefined {
  return state === "failed" ? undefined : { text, complete: state === "done" };
}
