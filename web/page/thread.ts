/**
 * The turns of a conversation, of which only those in and around the view are elements: a thousand turns
 * scroll as one does. Keeps what is being read in its place, and the end in sight while it grows, unless its
 * reader has scrolled up.
 */

import { TurnView, type TurnActions } from "./turn-view.js";
import type { Turn } from "./tree.js";
import { Heights } from "./windowing.js";

/** Pixels above and below the view that are drawn in advance. */
const marginPx = 900;
/** Nearer to the end than this counts as being there. */
const nearEndPx = 60;

export class Thread {
  readonly #scroller: HTMLElement;
  readonly #list: HTMLElement;
  readonly #actions: TurnActions;
  readonly #heights = new Heights();
  readonly #views = new Map<string, TurnView>();
  readonly #keyOf = new WeakMap<Element, string>();
  readonly #observer: ResizeObserver;
  #turns: readonly Turn[] = [];
  #frozen = false;
  #following = true;
  #scheduled = false;
  #lastTop = 0;

  /** `onFollow` hears whether the end is in sight. */
  constructor(
    scroller: HTMLElement,
    list: HTMLElement,
    actions: TurnActions,
    onFollow: (following: boolean) => void,
  ) {
    this.#scroller = scroller;
    this.#list = list;
    this.#actions = actions;
    this.#observer = new ResizeObserver((entries) => {
      this.#resized(entries);
    });
    this.#observer.observe(scroller);
    scroller.addEventListener("scroll", () => {
      if (!this.#visible) return;
      const { scrollTop, scrollHeight, clientHeight } = scroller;
      const near = scrollHeight - scrollTop - clientHeight < nearEndPx;
      // Growth moves the end away without anybody scrolling: only a way up ends the following.
      if (near || scrollTop < this.#lastTop - 1) this.#following = near;
      this.#lastTop = scrollTop;
      onFollow(this.#following);
      this.#schedule();
    });
  }

  /** Shows these turns. `frozen` while nothing may be asked. */
  show(turns: readonly Turn[], frozen: boolean): void {
    this.#turns = turns;
    this.#frozen = frozen;
    const keys = turns.map(({ question }) => question.id);
    this.#heights.keys = keys;
    const present = new Set(keys);
    for (const [key, view] of this.#views) if (!present.has(key)) this.#drop(key, view);
    this.#draw();
    if (this.#following) this.toEnd();
  }

  grew(key: string): void {
    this.#views.get(key)?.grew();
  }

  /** False while another view is shown in the same place. */
  get #visible(): boolean {
    return this.#list.offsetParent !== null;
  }

  toEnd(): void {
    this.#following = true;
    if (!this.#visible) return;
    // Rows that come into view may be higher than they were guessed to be.
    for (let i = 0; i < 3; i += 1) {
      this.#scroller.scrollTop = this.#scroller.scrollHeight;
      this.#draw();
    }
    this.#scroller.scrollTop = this.#lastTop = this.#scroller.scrollHeight;
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#draw();
    });
  }

  #draw(): void {
    if (!this.#visible) return;
    const scrolledPx = this.#scroller.scrollTop - this.#list.offsetTop;
    const span = this.#heights.span(scrolledPx, this.#scroller.clientHeight, marginPx);
    const anchor = this.#anchor();
    const before = anchor?.getBoundingClientRect().top ?? 0;
    const shown = new Set<Element>();
    let behind: Element | null = null;
    for (let idx = span.first; idx < span.end; idx += 1) {
      const turn = this.#turns[idx];
      if (!turn) continue;
      const { element } = this.#view(turn, idx);
      shown.add(element);
      const place: Element | null = behind ? behind.nextElementSibling : this.#list.firstElementChild;
      if (place !== element) this.#list.insertBefore(element, place);
      behind = element;
    }
    for (const element of [...this.#list.children]) if (!shown.has(element)) this.#leave(element);
    this.#list.style.paddingTop = `${span.abovePx}px`;
    this.#list.style.paddingBottom = `${span.belowPx}px`;
    for (const element of shown) this.#measure(element);
    if (anchor?.isConnected) {
      const moved = anchor.getBoundingClientRect().top - before;
      if (Math.abs(moved) > 0.5) this.#scroller.scrollTop += moved;
    }
  }

  /** The first turn that is in view. */
  #anchor(): Element | undefined {
    const top = this.#scroller.getBoundingClientRect().top;
    return [...this.#list.children].find((element) => element.getBoundingClientRect().bottom > top);
  }

  #view(turn: Turn, idx: number): TurnView {
    const key = turn.question.id;
    let view = this.#views.get(key);
    if (!view) {
      view = new TurnView(turn, this.#actions);
      this.#views.set(key, view);
      this.#keyOf.set(view.element, key);
      this.#observer.observe(view.element);
      view.update(turn, { idx, n: this.#turns.length, frozen: this.#frozen });
      this.#shownAs.set(view, { turn, frozen: this.#frozen, n: this.#turns.length });
      return view;
    }
    const last = this.#shownAs.get(view);
    if (last?.turn !== turn || last.frozen !== this.#frozen || last.n !== this.#turns.length) {
      view.update(turn, { idx, n: this.#turns.length, frozen: this.#frozen });
      this.#shownAs.set(view, { turn, frozen: this.#frozen, n: this.#turns.length });
    }
    return view;
  }

  /** What a view was drawn from, so that scrolling draws nothing twice. */
  readonly #shownAs = new WeakMap<TurnView, { turn: Turn; frozen: boolean; n: number }>();

  #measure(element: Element): void {
    const key = this.#keyOf.get(element);
    if (key !== undefined) this.#heights.measure(key, element.getBoundingClientRect().height);
  }

  #leave(element: Element): void {
    const key = this.#keyOf.get(element);
    const view = key === undefined ? undefined : this.#views.get(key);
    if (key !== undefined && view && !view.busy) this.#drop(key, view);
    else element.remove();
  }

  #drop(key: string, view: TurnView): void {
    this.#observer.unobserve(view.element);
    view.element.remove();
    this.#views.delete(key);
  }

  /** Heights have changed. What lies above the view must not push it. */
  #resized(entries: readonly ResizeObserverEntry[]): void {
    if (!this.#visible) return;
    for (const { target } of entries) if (target.isConnected) this.#measure(target);
    if (this.#following) this.#scroller.scrollTop = this.#lastTop = this.#scroller.scrollHeight;
    else this.#schedule();
  }
}
