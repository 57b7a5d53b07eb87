/** Whether the text from here and the text from there are the same, in words. */

import { verdict } from "./strings.js";

export interface Verdict {
  /** Null where there is nothing to judge. */
  readonly equal: boolean | null;
  readonly sentence: string;
}

/** One side: its text, and whether it came to its own end. */
export interface Side {
  readonly text: string;
  readonly complete: boolean;
}

export function compare(here: Side | undefined, there: Side | undefined): Verdict {
  if (!here || !there) return { equal: null, sentence: verdict.nothing };
  const common = commonPrefix(here.text, there.text);
  if (here.text === there.text && here.complete && there.complete) {
    return { equal: true, sentence: verdict.same(here.text.length) };
  }
  const cutHere = !here.complete && common === here.text.length;
  const cutThere = !there.complete && common === there.text.length;
  if (cutHere || cutThere) return { equal: null, sentence: verdict.stopped(common) };
  return {
    equal: false,
    sentence: verdict.part(common, excerpt(here.text, common), excerpt(there.text, common)),
  };
}

function commonPrefix(a: string, b: string): number {
  let length = 0;
  while (length < a.length && length < b.length && a[length] === b[length]) length += 1;
  return length;
}

function excerpt(text: string, from: number): string {
  const piece = text.slice(from, from + 24);
  if (piece === "") return verdict.ends;
  return `“${piece}${text.length > from + 24 ? "…" : ""}”`;
}
