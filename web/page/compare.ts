/** Whether the text from here and the text from there are the same, in words. */

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

export function compare(here: Side, there: Side): Verdict {
  const common = commonPrefix(here.text, there.text);
  if (here.text === there.text && here.complete && there.complete) {
    return { equal: true, sentence: `The same text, all ${count(here.text, "character")} of it.` };
  }
  const cutHere = !here.complete && common === here.text.length;
  const cutThere = !there.complete && common === there.text.length;
  if (cutHere || cutThere) {
    return { equal: null, sentence: `Stopped; the same text up to there, ${common} characters of it.` };
  }
  return {
    equal: false,
    sentence: `They part after ${common} characters: here ${excerpt(here.text, common)}, there ${excerpt(there.text, common)}.`,
  };
}

function commonPrefix(a: string, b: string): number {
  let length = 0;
  while (length < a.length && length < b.length && a[length] === b[length]) length += 1;
  return length;
}

function excerpt(text: string, from: number): string {
  const piece = text.slice(from, from + 24);
  if (piece === "") return "it ends";
  return `“${piece}${text.length > from + 24 ? "…" : ""}”`;
}

function count(text: string, unit: string): string {
  return `${text.length} ${unit}${text.length === 1 ? "" : "s"}`;
}
