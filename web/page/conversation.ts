/** How a conversation looks: turns with a question, one answer or two beside each other, and a verdict. */

import type { Verdict } from "./compare.js";
import { make } from "./dom.js";
import { explain } from "./explain.js";
import { renderMarkdown } from "./markdown.js";

export type AnswerState = "waiting" | "writing" | "done" | "failed";

/** One answer as it is written. */
export class AnswerView {
  readonly element = make("section", "answer");
  readonly #text = make("div", "text");
  readonly #facts = make("footer", "facts");
  /** The text that a completion continues; undefined for an answer in a chat. */
  readonly #given: string | undefined;
  #written = "";
  #drawn = -1;

  constructor(place: string, detail: string, given: string | undefined) {
    this.#given = given;
    const where = make("header", "where");
    where.append(make("strong", "", place), make("span", "", detail));
    if (given !== undefined) this.#text.classList.add("plain");
    this.element.append(where, this.#text, this.#facts);
    this.state = "writing";
    this.#draw();
  }

  set state(state: AnswerState) {
    this.element.dataset.state = state;
    this.element.ariaBusy = String(state === "writing");
  }

  get written(): string {
    return this.#written;
  }

  append(text: string): void {
    this.#written += text;
    if (this.#drawn < 0) return;
    // At most once a frame, however fast the tokens come.
    this.#drawn = -1;
    requestAnimationFrame(() => {
      this.#draw();
    });
  }

  end(state: AnswerState, facts: readonly string[]): void {
    this.state = state;
    this.#draw();
    this.#facts.replaceChildren(...facts.map((fact) => make("span", "", fact)));
  }

  fail(thrown: unknown): void {
    const { title, advice, detail } = explain(thrown);
    this.#showFailure(`${title}. ${advice}`, detail);
  }

  failWith(sentence: string): void {
    this.#showFailure(sentence, "");
  }

  #showFailure(sentence: string, detail: string): void {
    this.end("failed", []);
    const note = make("p", "error-text", sentence);
    note.title = detail;
    note.setAttribute("role", "alert");
    this.#facts.before(note);
  }

  #draw(): void {
    this.#drawn = this.#written.length;
    if (this.#given === undefined) renderMarkdown(this.#text, this.#written);
    else this.#text.replaceChildren(make("span", "given", this.#given), make("span", "", this.#written));
  }
}

/** A question with its answers. */
export class TurnView {
  readonly element = make("article", "turn");
  readonly #answers = make("div", "answers");
  readonly #verdict = make("p", "verdict");

  constructor(question: string | undefined, compared: boolean) {
    if (question !== undefined) this.element.append(make("div", "asked", question));
    this.element.append(this.#answers);
    if (compared) {
      this.#answers.dataset.compare = "";
      this.#verdict.textContent = "Comparing…";
      this.element.append(this.#verdict);
    }
  }

  add(answer: AnswerView): AnswerView {
    this.#answers.append(answer.element);
    return answer;
  }

  judge({ equal, sentence }: Verdict): void {
    if (equal !== null) this.#verdict.dataset.equal = String(equal);
    this.#verdict.textContent = sentence;
  }
}

/** Keeps the end of a scrolling element in sight while it grows, unless its reader has scrolled up. */
export function followEnd(scroller: HTMLElement, growing: HTMLElement): void {
  let following = true;
  scroller.addEventListener("scroll", () => {
    following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
  });
  new ResizeObserver(() => {
    if (following) scroller.scrollTop = scroller.scrollHeight;
  }).observe(growing);
}
