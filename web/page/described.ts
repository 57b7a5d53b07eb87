/** What the metadata of a file say about its model, in words (docs/gguf-keys.md). */

import type { Metadata, Scalar } from "./gguf.js";
import { shelf } from "./strings.js";

export interface Described {
  readonly name: string | undefined;
  readonly sizeLabel: string | undefined;
  readonly quantisation: string | undefined;
  /** `fine-tuned on 1,200 rows from SmolLM2`. */
  readonly tuned: string | undefined;
  readonly perplexity: string | undefined;
}

/** llama.cpp's numbers of `general.file_type` (`llama_ftype` in its llama.h). */
const fileTypes: Readonly<Record<number, string>> = {
  0: "F32",
  1: "F16",
  2: "Q4_0",
  3: "Q4_1",
  7: "Q8_0",
  8: "Q5_0",
  9: "Q5_1",
  10: "Q2_K",
  11: "Q3_K_S",
  12: "Q3_K_M",
  13: "Q3_K_L",
  14: "Q4_K_S",
  15: "Q4_K_M",
  16: "Q5_K_S",
  17: "Q5_K_M",
  18: "Q6_K",
  32: "BF16",
};

export function describe(metadata: Metadata): Described {
  const text = (key: string): string | undefined => asText(metadata[key]);
  const number = (key: string): number | undefined => asNumber(metadata[key]);
  const type = number("general.file_type");
  return {
    name: text("general.name"),
    sizeLabel: text("general.size_label"),
    quantisation: type === undefined ? undefined : fileTypes[type],
    tuned: tuned(text, number),
    perplexity: perplexity(text, number),
  };
}

function tuned(
  text: (key: string) => string | undefined,
  number: (key: string) => number | undefined,
): string | undefined {
  const rows = number("fledgling.data.rows");
  const run = text("fledgling.run.name");
  if (rows === undefined && run === undefined) return undefined;
  const tokens = number("fledgling.data.tokens");
  const amount = [
    ...(rows === undefined ? [] : [shelf.rows(rows)]),
    ...(tokens === undefined ? [] : [shelf.tokens(tokens)]),
  ].join(", ");
  const base = text("fledgling.base_model") ?? text("general.base_model.0.name");
  return [shelf.tuned(amount || (run ?? "")), ...(base ? [shelf.tunedFrom(base)] : [])].join(" ");
}

function perplexity(
  text: (key: string) => string | undefined,
  number: (key: string) => number | undefined,
): string | undefined {
  const measured = number("fledgling.eval.perplexity");
  if (measured !== undefined) {
    return shelf.perplexity(measured.toFixed(2), text("fledgling.eval.text.name") ?? "");
  }
  const loss = number("fledgling.train.valid_loss");
  return loss === undefined ? undefined : shelf.perplexity(Math.exp(loss).toFixed(2), shelf.heldOut);
}

function asText(value: Scalar | undefined): string | undefined {
  return typeof value === "string" && value !== "" ? value : undefined;
}

function asNumber(value: Scalar | undefined): number | undefined {
  return typeof value === "number" && Number.isFinite(value) ? value : undefined;
}
