/** The settings: what they are, their memory across visits, presets, and the link that carries them. */

import type { SamplingOptions } from "../src/index.js";

interface Range {
  readonly initial: number;
  readonly min: number;
  readonly max: number;
  readonly step: number;
  /** False for a number without a sensible range to slide over. */
  readonly slider: boolean;
}

export const numbers = {
  temperature: { initial: 0, min: 0, max: 2, step: 0.05, slider: true },
  topK: { initial: 40, min: 0, max: 200, step: 1, slider: true },
  topP: { initial: 0.95, min: 0.05, max: 1, step: 0.01, slider: true },
  minP: { initial: 0, min: 0, max: 0.5, step: 0.01, slider: true },
  repetitionPenalty: { initial: 1, min: 1, max: 2, step: 0.01, slider: true },
  maxTokens: { initial: 256, min: 1, max: 2048, step: 1, slider: true },
  seed: { initial: 1, min: 0, max: 4_294_967_295, step: 1, slider: false },
  nCtx: { initial: 0, min: 0, max: 131_072, step: 1, slider: false },
} as const satisfies Record<string, Range>;

export type NumberKey = keyof typeof numbers;
export const numberKeys = Object.keys(numbers) as NumberKey[];

export interface Values extends Record<NumberKey, number> {
  system: string;
  /** As written in the field: one a line, `\n` for a line break. */
  stop: string;
}

export const presets = {
  exact: { temperature: 0, topK: 40, topP: 0.95, minP: 0, repetitionPenalty: 1 },
  balanced: { temperature: 0.7, topK: 40, topP: 0.95, minP: 0.05, repetitionPenalty: 1.05 },
  playful: { temperature: 1.1, topK: 0, topP: 0.98, minP: 0.05, repetitionPenalty: 1.1 },
} as const satisfies Record<string, Partial<Values>>;

export type Preset = keyof typeof presets;

const storageKey = "fledgling.settings";

export function defaults(): Values {
  const entries = numberKeys.map((key) => [key, numbers[key].initial] as const);
  return { ...(Object.fromEntries(entries) as Record<NumberKey, number>), system: "", stop: "" };
}

export function inRange(key: NumberKey, value: number): boolean {
  const { min, max, step } = numbers[key];
  return value >= min && value <= max && (step < 1 || Number.isInteger(value));
}

/** Takes what is right of kept or sent values: an old or a broken entry costs its value only. */
function take(values: Values, entry: (key: string) => unknown): Values {
  const taken = { ...values };
  for (const key of numberKeys) {
    const value = entry(key);
    if (typeof value === "number" && inRange(key, value)) taken[key] = value;
  }
  for (const key of ["system", "stop"] as const) {
    const value = entry(key);
    if (typeof value === "string") taken[key] = value;
  }
  return taken;
}

/** The settings in the part of an address behind `#`; undefined when there are none. */
export function fromHash(hash: string): Values | undefined {
  const sent = new URLSearchParams(hash.replace(/^#/, ""));
  const known = [...numberKeys, "system", "stop"].filter((key) => sent.has(key));
  if (known.length === 0) return undefined;
  return take(defaults(), (key) => {
    const text = sent.get(key);
    return key === "system" || key === "stop" || text === null || text === "" ? text : Number(text);
  });
}

/** What differs from the defaults, as the part of an address behind `#`. Always says the temperature. */
export function toHash(values: Values): string {
  const initial = defaults();
  const keys = [...numberKeys, "system", "stop"] as const;
  const sent = keys.filter((key) => key === "temperature" || values[key] !== initial[key]);
  return `#${new URLSearchParams(sent.map((key) => [key, String(values[key])])).toString()}`;
}

/** The stop texts of the field. */
export function stopTexts(written: string): string[] {
  return written
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.replaceAll("\\n", "\n"));
}

export class Settings {
  #values = this.#restore();

  get values(): Readonly<Values> {
    return this.#values;
  }

  set<K extends keyof Values>(key: K, value: Values[K]): void {
    this.#values[key] = value;
    this.#keep();
  }

  replace(values: Readonly<Values>): void {
    this.#values = { ...values };
    this.#keep();
  }

  apply(preset: Preset): void {
    this.replace({ ...this.#values, ...presets[preset] });
  }

  /** The preset that these values are; undefined for none. */
  get preset(): Preset | undefined {
    return (Object.keys(presets) as Preset[]).find((name) =>
      Object.entries(presets[name]).every(([key, value]) => this.#values[key as NumberKey] === value),
    );
  }

  get system(): string {
    return this.#values.system.trim();
  }

  /** Undefined for the model's own. */
  get nCtx(): number | undefined {
    return this.#values.nCtx || undefined;
  }

  /** Settings that change nothing are left out. */
  get sampling(): SamplingOptions {
    const { temperature, topK, topP, minP, repetitionPenalty, maxTokens, seed } = this.#values;
    const stop = stopTexts(this.#values.stop);
    return {
      maxTokens,
      temperature,
      seed,
      ...(topK > 0 && { topK }),
      ...(topP < 1 && { topP }),
      ...(minP > 0 && { minP }),
      ...(repetitionPenalty !== 1 && { repetitionPenalty }),
      ...(stop.length > 0 && { stop }),
    };
  }

  #restore(): Values {
    try {
      const kept: unknown = JSON.parse(localStorage.getItem(storageKey) ?? "{}");
      if (typeof kept !== "object" || kept === null) return defaults();
      const entries = new Map(Object.entries(kept) as [string, unknown][]);
      return take(defaults(), (key) => entries.get(key));
    } catch {
      return defaults();
    }
  }

  #keep(): void {
    try {
      localStorage.setItem(storageKey, JSON.stringify(this.#values));
    } catch {
      // A browser that keeps nothing still has the settings until the page is left.
    }
  }
}
