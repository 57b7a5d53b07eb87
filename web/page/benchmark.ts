/** Measures the loaded model on this device, and writes it down so that it can be shown to others. */

import type { Fledgling } from "../src/index.js";
import { deviceName } from "./answerer.js";
import { inside as words } from "./strings.js";

export interface Benchmark {
  readonly model: string;
  readonly fileBytes: number;
  readonly device: string;
  readonly prefillTokens: number;
  readonly decodeTokens: number;
  readonly prefillTokensPerS: number;
  readonly decodeTokensPerS: number;
  readonly firstTokenMs: number;
  readonly browser: string;
  readonly date: string;
}

const rounds = 3;
const decodeTokens = 64;
/** About 128 tokens in any vocabulary of English. */
const text =
  "The young bird sat on the edge of the nest and looked at the sky for a long time. It knew every branch of the old tree, and the sound of the river, and the smell of the morning. ".repeat(
    3,
  );

/**
 * Reads some 128 tokens and writes 64, three times. The best round counts, as the least disturbed one.
 *
 * # Errors
 * Those of `generate`; the signal's reason.
 */
export async function measure(
  model: Fledgling,
  signal: AbortSignal,
  onRound: (round: number, rounds: number) => void,
): Promise<Benchmark> {
  let best: Pick<Benchmark, "prefillTokens" | "decodeTokensPerS" | "firstTokenMs"> | undefined;
  for (let round = 1; round <= rounds; round += 1) {
    onRound(round, rounds);
    // A beginning of its own keeps an engine that remembers prompts from skipping this one.
    const prompt = `${round}. ${text}`;
    const generation = model.generate(prompt, { maxTokens: decodeTokens, temperature: 0, signal });
    const { promptTokens, timings } = await generation.finish();
    const decodeTokensPerS = Math.max(timings.tokensPerSecond ?? 0, best?.decodeTokensPerS ?? 0);
    const firstTokenMs = Math.min(timings.timeToFirstTokenMs, best?.firstTokenMs ?? Infinity);
    best = { prefillTokens: promptTokens.length, decodeTokensPerS, firstTokenMs };
  }
  const { prefillTokens = 0, decodeTokensPerS = 0, firstTokenMs = 1 } = best ?? {};
  return {
    model: model.info.name,
    fileBytes: model.info.fileBytes,
    device: deviceName(model.device),
    prefillTokens,
    decodeTokens,
    prefillTokensPerS: (prefillTokens * 1000) / firstTokenMs,
    decodeTokensPerS,
    firstTokenMs,
    browser: browserName(navigator.userAgent),
    date: new Date().toISOString().slice(0, 10),
  };
}

/** `Firefox 153`: the most telling product of a user agent. */
export function browserName(userAgent: string): string {
  const products = ["Edg", "OPR", "Firefox", "HeadlessChrome", "Chrome", "Version"];
  for (const product of products) {
    const version = new RegExp(`${product}/(\\d+)`).exec(userAgent)?.[1];
    if (version === undefined) continue;
    const names: Record<string, string> = { Edg: "Edge", OPR: "Opera", Version: "Safari" };
    return `${names[product] ?? product} ${version}`;
  }
  return userAgent;
}

/** As a table in Markdown, to be pasted where people compare. */
export function toTable(result: Benchmark): string {
  const cells = [
    result.model,
    result.device,
    result.prefillTokensPerS.toFixed(1),
    result.decodeTokensPerS.toFixed(1),
    result.firstTokenMs.toFixed(0),
    result.browser,
    result.date,
  ];
  const row = (entries: readonly string[]): string =>
    `| ${entries.map((entry) => entry.replaceAll("|", "\\|")).join(" | ")} |`;
  return `${row(words.tuple)}\n|---|---|--:|--:|--:|---|---|\n${row(cells)}\n`;
}
