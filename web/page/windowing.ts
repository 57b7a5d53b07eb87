/** Which rows of a long list are to be drawn: heights that were measured, and a guess for those that were not. */

export interface Span {
  readonly first: number;
  /** One behind the last. */
  readonly end: number;
  /** Pixels above the first and below the last. */
  readonly abovePx: number;
  readonly belowPx: number;
}

export class Heights {
  readonly #measured = new Map<string, number>();
  #keys: readonly string[] = [];

  /** The rows from now on. Heights of rows that stay are kept. */
  set keys(keys: readonly string[]) {
    this.#keys = keys;
    const present = new Set(keys);
    for (const key of this.#measured.keys()) if (!present.has(key)) this.#measured.delete(key);
  }

  measure(key: string, px: number): void {
    this.#measured.set(key, px);
  }

  /** The mean of what was measured, so that the scroll bar tells the truth soon. */
  get #guess(): number {
    if (this.#measured.size === 0) return 160;
    let sum = 0;
    for (const px of this.#measured.values()) sum += px;
    return sum / this.#measured.size;
  }

  /** The rows that reach into the view, and those within a margin of it. */
  span(scrolledPx: number, viewPx: number, marginPx: number): Span {
    const guess = this.#guess;
    const from = scrolledPx - marginPx;
    const to = scrolledPx + viewPx + marginPx;
    let [first, end, abovePx, shownPx, top] = [-1, 0, 0, 0, 0];
    this.#keys.forEach((key, idx) => {
      const px = this.#measured.get(key) ?? guess;
      if (top + px > from && top < to) {
        if (first < 0) [first, abovePx] = [idx, top];
        end = idx + 1;
        shownPx += px;
      }
      top += px;
    });
    if (first < 0) return { first: 0, end: 0, abovePx: 0, belowPx: top };
    return { first, end, abovePx, belowPx: top - abovePx - shownPx };
  }
}
