/** What a file says of itself before it is loaded. */

import { describe as group, expect, it } from "vitest";
import { describe } from "../page/described.js";
import { readHeader, type Scalar } from "../page/gguf.js";

const u32 = (value: number): number[] => [0, 8, 16, 24].map((shift) => (value >>> shift) & 255);
const u64 = (value: number): number[] => [...u32(value), 0, 0, 0, 0];
const text = (value: string): number[] => {
  const bytes = [...new TextEncoder().encode(value)];
  return [...u64(bytes.length), ...bytes];
};
const float64 = (value: number): number[] => [...new Uint8Array(new Float64Array([value]).buffer)];

/** A header by hand: the key, the number of the type, and the bytes of the value. */
function header(...values: [key: string, type: number, bytes: number[]][]): Uint8Array {
  const body = values.flatMap(([key, type, bytes]) => [...text(key), ...u32(type), ...bytes]);
  return Uint8Array.from([
    ...text("").slice(8),
    71,
    71,
    85,
    70,
    ...u32(3),
    ...u64(0),
    ...u64(values.length),
    ...body,
  ]);
}

const tokens = [...u32(8), ...u64(2), ...text("a"), ...text("bc")];

group("a header", () => {
  const whole = header(
    ["general.name", 8, text("é-bird")],
    ["general.file_type", 4, u32(7)],
    ["tokenizer.ggml.tokens", 9, tokens],
    ["ids", 9, [...u32(4), ...u64(2), ...u32(1), ...u32(2)]],
    ["flag", 7, [1]],
    ["small", 1, [255]],
    ["fledgling.eval.perplexity", 12, float64(12.4142)],
    ["rows", 10, u64(1200)],
  );

  it("gives its scalars and skips its arrays", () => {
    expect(readHeader(whole)).toEqual({
      complete: true,
      metadata: {
        "general.name": "é-bird",
        "general.file_type": 7,
        flag: true,
        small: -1,
        "fledgling.eval.perplexity": 12.4142,
        rows: 1200,
      },
    });
  });

  it("gives what there is of one that is cut anywhere, and never fails", () => {
    for (let length = 24; length < whole.length; length += 1) {
      const cut = readHeader(whole.subarray(0, length));
      expect(cut?.complete).toBe(false);
    }
    const upToType = readHeader(whole.subarray(0, 100));
    expect(upToType?.metadata["general.name"]).toBe("é-bird");
  });

  it("is refused when it is none", () => {
    expect(readHeader(new TextEncoder().encode("\xff\xd8 not a model at all"))).toBeUndefined();
    expect(readHeader(Uint8Array.from([71, 71, 85, 70, ...u32(1), ...u64(0), ...u64(0)]))).toBeUndefined();
  });

  it("with an absurd length or an unknown type ends there", () => {
    const absurd = header(
      ["general.name", 8, text("x")],
      ["k", 9, [...u32(4), 255, 255, 255, 255, 255, 255, 255, 127]],
    );
    expect(readHeader(absurd)).toEqual({ complete: false, metadata: { "general.name": "x" } });
    expect(readHeader(header(["k", 99, [0]]))).toEqual({ complete: false, metadata: {} });
  });
});

group("a description", () => {
  const tuned: Record<string, Scalar> = {
    "general.name": "quickstart",
    "general.size_label": "135M",
    "general.file_type": 15,
    "fledgling.base_model": "SmolLM2",
    "fledgling.run.name": "quickstart",
    "fledgling.data.rows": 1200,
    "fledgling.data.tokens": 45_000,
    "fledgling.train.valid_loss": 2,
  };

  it("says what it was fine-tuned on and how good it is", () => {
    expect(describe(tuned)).toEqual({
      name: "quickstart",
      sizeLabel: "135M",
      quantisation: "Q4_K_M",
      tuned: "fine-tuned on 1,200 rows, 45,000 tokens from SmolLM2",
      perplexity: "perplexity 7.39 on held-out rows",
    });
    const measured = { ...tuned, "fledgling.eval.perplexity": 27.5419, "fledgling.eval.text.name": "wt.txt" };
    expect(describe(measured).perplexity).toBe("perplexity 27.54 on wt.txt");
  });

  it("says nothing that the file does not", () => {
    expect(describe({ "fledgling.base_model": "SmolLM2", "general.file_type": 999 })).toEqual({});
  });
});
