/** How a turn looks: the question, one answer or two beside each other, and what can be done with them. */

import { copyFrom, iconButton, make, makeButton } from "./dom.js";
import { formatDuration, formatRate } from "./format.js";
import { renderMarkdown } from "./markdown.js";
import { talk as words } from "./strings.js";
import { judge } from "./talk.js";
import type { Answer, Answered, Mode, Node, Question, Turn } from "./tree.js";

export interface TurnActions {
  edit(question: Question, text: string): void;
  regenerate(question: Question): void;
  goOn(question: Question, answer: Answer): void;
  choose(node: Node): void;
}

/** What stands where among how many, and whether anything may be changed now. */
export interface Standing {
  readonly idx: number;
  readonly n: number;
  /** True while an answer is written or nobody is there to answer. */
  readonly frozen: boolean;
}

export class TurnView {
  readonly element = make("article", "turn");
  readonly #actions: TurnActions;
  readonly #askedRow = make("div", "asked-row");
  readonly #asked = make("div", "asked");
  readonly #askedTools = make("div", "turn-tools of-question");
  readonly #answers = make("div", "answers");
  readonly #verdict = make("p", "verdict");
  readonly #answerTools = make("div", "turn-tools");
  #first: SideView | undefined;
  #second: SideView | undefined;
  #turn: Turn;
  #standing: Standing | undefined;
  #editing = false;
  #waiting = false;

  constructor(turn: Turn, actions: TurnActions) {
    this.#turn = turn;
    this.#actions = actions;
  }

  /** True while leaving it would lose something: it is written or edited. */
  get busy(): boolean {
    return (
      this.#editing ||
      this.#turn.answer?.state === "writing" ||
      this.#turn.answer?.beside?.state === "writing"
    );
  }

  update(turn: Turn, standing: Standing): void {
    this.#turn = turn;
    this.#standing = standing;
    this.element.ariaPosInSet = String(standing.idx + 1);
    this.element.ariaSetSize = String(standing.n);
    this.element.ariaLabel = words.turn(standing.idx + 1, standing.n);
    this.element.dataset.last = String(standing.idx + 1 === standing.n);
    if (!this.#editing) this.#drawQuestion();
    this.#drawAnswers();
    this.#drawTools();
  }

  /** Draws what was written since, at most once a frame, however fast the tokens come. */
  grew(): void {
    if (this.#waiting) return;
    this.#waiting = true;
    requestAnimationFrame(() => {
      this.#waiting = false;
      this.#drawAnswers();
    });
  }

  #drawQuestion(): void {
    const { question, questions } = this.#turn;
    const frozen = this.#standing?.frozen ?? true;
    this.#asked.textContent = question.text;
    const edit = iconButton("edit", words.edit, () => {
      this.#edit();
    });
    edit.disabled = frozen;
    this.#askedTools.replaceChildren(...this.#versions(question, questions), edit);
    if (question.mode === "chat") {
      this.#askedRow.replaceChildren(this.#askedTools, this.#asked);
      this.element.replaceChildren(this.#askedRow, this.#answers);
    } else this.element.replaceChildren(this.#answers);
    this.element.append(this.#verdict, this.#answerTools);
  }

  #drawAnswers(): void {
    const { question, answer } = this.#turn;
    const given = question.mode === "complete" ? question.text : undefined;
    if (!answer) {
      this.#answers.replaceChildren();
      this.#verdict.hidden = true;
      return;
    }
    const two = answer.beside !== null;
    this.#answers.toggleAttribute("data-compare", two);
    this.#first = this.#side(this.#first, answer, given);
    this.#second = answer.beside ? this.#side(this.#second, answer.beside, given) : undefined;
    const sides = [this.#first.element, ...(this.#second ? [this.#second.element] : [])];
    if (this.#answers.childElementCount !== sides.length) this.#answers.replaceChildren(...sides);
    this.#verdict.hidden = !two;
    const judged = two ? judge(answer) : undefined;
    this.#verdict.textContent = judged?.sentence ?? words.comparing;
    if (typeof judged?.equal === "boolean") this.#verdict.dataset.equal = String(judged.equal);
    else delete this.#verdict.dataset.equal;
  }

  #side(view: SideView | undefined, side: Answered, given: string | undefined): SideView {
    const drawn = view ?? new SideView();
    const { answers, answer } = this.#turn;
    drawn.draw(side, given, answers.length > 1 ? answer : undefined);
    return drawn;
  }

  #drawTools(): void {
    const { question, answer, answers } = this.#turn;
    const frozen = this.#standing?.frozen ?? true;
    if (!answer || answer.state === "writing") {
      this.#answerTools.replaceChildren();
      return;
    }
    const copy = iconButton("copy", words.copy, () => {
      const text = question.mode === "complete" ? question.text + answer.text : answer.text;
      void copyFrom(copy, text, words.copied);
    });
    const again = iconButton("again", words.regenerate, () => {
      this.#actions.regenerate(question);
    });
    again.disabled = frozen;
    const tools = [copy, again];
    if (question.mode === "complete") {
      const onwards = makeButton(
        words.goOn,
        () => {
          this.#actions.goOn(question, answer);
        },
        { className: "quiet small" },
      );
      const edit = iconButton("edit", words.edit, () => {
        this.#edit();
      });
      onwards.disabled = edit.disabled = frozen;
      tools.push(edit, onwards);
    }
    this.#answerTools.replaceChildren(
      ...this.#versions(answer, answers),
      ...(question.mode === "complete" ? this.#versions(question, this.#turn.questions) : []),
      ...tools,
    );
  }

  /** `‹ 2 of 3 ›`, where there are several. */
  #versions<T extends Node>(shown: T, all: readonly T[]): HTMLElement[] {
    if (all.length < 2) return [];
    const idx = all.indexOf(shown);
    const step = (name: "back" | "forth", label: string, to: T | undefined): HTMLButtonElement => {
      const made = iconButton(name, label, () => {
        if (to) this.#actions.choose(to);
      });
      made.disabled = !to;
      return made;
    };
    const group = make("span", "versions");
    group.append(
      step("back", words.earlier, all[idx - 1]),
      make("span", "numbers", words.version(idx + 1, all.length)),
      step("forth", words.later, all[idx + 1]),
    );
    return [group];
  }

  /** The question as a field. Enter sends it, Escape leaves it as it was. */
  #edit(): void {
    const { question } = this.#turn;
    this.#editing = true;
    const form = make("form", "editing");
    const area = Object.assign(make("textarea"), { value: question.text, ariaLabel: words.editLabel });
    area.rows = Math.min(8, question.text.split("\n").length + 1);
    const leave = (): void => {
      this.#editing = false;
      this.#drawQuestion();
      this.element.querySelector<HTMLElement>(".turn-tools button:last-of-type")?.focus();
    };
    const send = make("button", "primary small", words.sendEdited);
    const row = make("div", "row end");
    row.append(makeButton(words.keepOld, leave, { className: "small" }), send);
    form.append(area, row);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = tidy(question.mode, area.value);
      if (text.trim() === "") return;
      leave();
      this.#actions.edit(question, text);
    });
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        leave();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    if (question.mode === "chat") this.#askedRow.replaceChildren(form);
    else this.element.prepend(form);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}

/** A message has no space around it; the text to go on from keeps every one. */
export function tidy(mode: Mode, text: string): string {
  return mode === "chat" ? text.trim() : text;
}

/** One answer as it is written. */
class SideView {
  readonly element = make("section", "answer");
  readonly #place = make("strong");
  readonly #detail = make("span");
  readonly #text = make("div", "text");
  readonly #facts = make("footer", "facts");
  readonly #failure = make("p", "error-text");

  constructor() {
    const where = make("header", "where");
    where.append(this.#place, this.#detail);
    this.#failure.setAttribute("role", "alert");
    this.element.append(where, this.#text, this.#failure, this.#facts);
  }

  /** `varied` is the answer whose options are worth telling: those of one among several. */
  draw(side: Answered, given: string | undefined, varied: Answer | undefined): void {
    this.element.dataset.state = side.state;
    this.element.ariaBusy = String(side.state === "writing");
    this.#place.textContent = side.place;
    this.#detail.textContent = side.detail;
    this.#text.classList.toggle("plain", given !== undefined);
    if (given === undefined) renderMarkdown(this.#text, side.text);
    else this.#text.replaceChildren(make("span", "given", given), make("span", "", side.text));
    if (this.#failure.textContent !== side.failure) this.#failure.textContent = side.failure;
    this.#failure.hidden = side.failure === "";
    this.#facts.replaceChildren(...factsOf(side, varied).map((fact) => make("span", "", fact)));
  }
}

function factsOf(side: Answered, varied: Answer | undefined): string[] {
  const facts: string[] = [];
  if (side.tokens !== null) facts.push(words.tokens(side.tokens));
  if (side.tokensPerSecond !== null) facts.push(formatRate(side.tokensPerSecond));
  if (side.firstTokenMs !== null) facts.push(words.first(formatDuration(side.firstTokenMs)));
  if (varied && side.state !== "writing") {
    facts.push(words.options(varied.options.temperature ?? 0, varied.options.seed ?? 0));
  }
  if (side.cut) facts.push(words.cut);
  if (side.state === "stopped") facts.push(words.stopped);
  if (side.state === "interrupted") facts.push(words.interrupted);
  return facts;
}
