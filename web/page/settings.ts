/** The settings: what they are, their fields in the dialog, and their memory across visits. */

import type { SamplingOptions } from "../src/index.js";

interface NumberSetting {
  readonly label: string;
  readonly help: string;
  readonly initial: number;
  readonly min: number;
  readonly max: number;
  readonly step: number;
  /** False for a number without a sensible range to slide over. */
  readonly slider: boolean;
}

const numbers = {
  temperature: {
    label: "Temperature",
    help: "0 always takes the most likely token: calm, and the same every time. Higher is more surprising.",
    initial: 0,
    min: 0,
    max: 2,
    step: 0.05,
    slider: true,
  },
  topK: {
    label: "Top-k",
    help: "Choose among the k most likely tokens only. 0 is no limit.",
    initial: 40,
    min: 0,
    max: 200,
    step: 1,
    slider: true,
  },
  topP: {
    label: "Top-p",
    help: "Choose among the likeliest tokens that together hold this share of the probability. 1 is no limit.",
    initial: 0.95,
    min: 0.05,
    max: 1,
    step: 0.01,
    slider: true,
  },
  minP: {
    label: "Min-p",
    help: "Leave out tokens less likely than this share of the best one. 0 is no limit.",
    initial: 0,
    min: 0,
    max: 0.5,
    step: 0.01,
    slider: true,
  },
  repetitionPenalty: {
    label: "Repetition penalty",
    help: "Above 1, tokens that were already written become less likely. 1 changes nothing.",
    initial: 1,
    min: 1,
    max: 2,
    step: 0.01,
    slider: true,
  },
  maxTokens: {
    label: "Longest answer",
    help: "In tokens. A token is a piece of a word, about four letters of English.",
    initial: 256,
    min: 1,
    max: 2048,
    step: 1,
    slider: true,
  },
  seed: {
    label: "Seed",
    help: "The same seed gives the same text, on every device.",
    initial: 1,
    min: 0,
    max: 4294967295,
    step: 1,
    slider: false,
  },
  nCtx: {
    label: "Context",
    help: "How many tokens the model can look back on. 0 takes the model's own; less needs less memory. Counts from the next loading on.",
    initial: 0,
    min: 0,
    max: 131072,
    step: 1,
    slider: false,
  },
} as const satisfies Record<string, NumberSetting>;

type NumberKey = keyof typeof numbers;
type Values = Record<NumberKey, number> & { system: string };

const storageKey = "fledgling.settings";

function defaults(): Values {
  const entries = Object.entries(numbers).map(([key, { initial }]) => [key, initial] as const);
  return { ...(Object.fromEntries(entries) as Record<NumberKey, number>), system: "" };
}

/** What was kept, checked: an old or a broken entry costs its value only. */
function restore(): Values {
  const values = defaults();
  let kept: unknown;
  try {
    kept = JSON.parse(localStorage.getItem(storageKey) ?? "{}");
  } catch {
    return values;
  }
  if (typeof kept !== "object" || kept === null) return values;
  const entries = new Map(Object.entries(kept) as [string, unknown][]);
  for (const key of Object.keys(numbers) as NumberKey[]) {
    const value = entries.get(key);
    if (typeof value === "number" && inRange(key, value)) values[key] = value;
  }
  const system = entries.get("system");
  if (typeof system === "string") values.system = system;
  return values;
}

function inRange(key: NumberKey, value: number): boolean {
  return value >= numbers[key].min && value <= numbers[key].max;
}

export class Settings {
  #values = restore();

  get system(): string {
    return this.#values.system;
  }

  /** Undefined for the model's own. */
  get nCtx(): number | undefined {
    return this.#values.nCtx || undefined;
  }

  /** Settings that change nothing are left out. */
  get sampling(): SamplingOptions {
    const { temperature, topK, topP, minP, repetitionPenalty, maxTokens, seed } = this.#values;
    return {
      maxTokens,
      temperature,
      seed,
      ...(topK > 0 && { topK }),
      ...(topP < 1 && { topP }),
      ...(minP > 0 && { minP }),
      ...(repetitionPenalty !== 1 && { repetitionPenalty }),
    };
  }

  reset(): void {
    this.#values = defaults();
    this.#keep();
  }

  /** Fills the dialog with fields that write back here. */
  render(into: HTMLElement): void {
    into.replaceChildren(
      ...(Object.keys(numbers) as NumberKey[]).map((key) => this.#numberField(key)),
      this.#systemField(),
    );
  }

  #numberField(key: NumberKey): HTMLElement {
    const { label, help, min, max, step, slider } = numbers[key];
    const attributes = { min: String(min), max: String(max), step: String(step) };
    const exact = Object.assign(document.createElement("input"), {
      ...attributes,
      type: "number",
      id: `setting-${key}`,
      required: true,
      value: String(this.#values[key]),
    });
    const range = Object.assign(document.createElement("input"), { ...attributes, type: "range" });
    range.value = exact.value;
    range.setAttribute("aria-label", label);
    const take = (from: HTMLInputElement, other: HTMLInputElement): void => {
      if (!from.checkValidity()) return;
      other.value = from.value;
      this.#values[key] = from.valueAsNumber;
      this.#keep();
    };
    exact.addEventListener("input", () => {
      take(exact, range);
    });
    range.addEventListener("input", () => {
      take(range, exact);
    });
    return field(exact.id, label, help, slider ? [exact, range] : [exact]);
  }

  #systemField(): HTMLElement {
    const area = Object.assign(document.createElement("textarea"), {
      id: "setting-system",
      rows: 3,
      value: this.#values.system,
      placeholder: "The model's own",
    });
    area.addEventListener("input", () => {
      this.#values.system = area.value.trim();
      this.#keep();
    });
    return field(area.id, "System message", "Tells the model, before a conversation, how to behave.", [area]);
  }

  #keep(): void {
    try {
      localStorage.setItem(storageKey, JSON.stringify(this.#values));
    } catch {
      // A browser that keeps nothing still has the settings until the page is left.
    }
  }
}

function field(id: string, label: string, help: string, inputs: readonly HTMLElement[]): HTMLElement {
  const element = Object.assign(document.createElement("div"), { className: "setting" });
  const caption = Object.assign(document.createElement("label"), { htmlFor: id, textContent: label });
  const explanation = Object.assign(document.createElement("p"), {
    className: "help",
    id: `${id}-help`,
    textContent: help,
  });
  inputs[0]?.setAttribute("aria-describedby", explanation.id);
  element.append(caption, ...inputs, explanation);
  return element;
}
