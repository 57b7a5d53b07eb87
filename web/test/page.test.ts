/** The parts of the page that need no browser. */

import { describe, expect, it } from "vitest";
import { compare } from "../page/compare.js";
import { explain } from "../page/explain.js";
import { fileName, formatBytes, formatDuration, formatRate } from "../page/format.js";
import { Rate } from "../page/rate.js";
import { serverSentEvents } from "../page/sse.js";
import { errorCodes, FledglingError } from "../src/errors.js";

describe("numbers", () => {
  it.each([
    [0, "0 B"],
    [999, "999 B"],
    [1000, "1.0 kB"],
    [98_362_432, "98.4 MB"],
    [999_600, "1.0 MB"],
    [151_000_000, "151 MB"],
    [4_200_000_000, "4.2 GB"],
  ])("formats %i bytes as %s", (bytes, text) => {
    expect(formatBytes(bytes)).toBe(text);
  });

  it("formats durations, rates and names", () => {
    expect([420, 4200, 42_000, 180_000].map(formatDuration)).toEqual(["0.42 s", "4.2 s", "42 s", "3 min"]);
    expect(formatRate(18.34)).toBe("18.3 tokens/s");
    expect(fileName("https://example.org/a/model%20one.gguf?download=1")).toBe("model one.gguf");
    expect(fileName("https://example.org/")).toBe("https://example.org/");
    expect(fileName("a/100%.gguf")).toBe("100%.gguf");
  });
});

describe("rate", () => {
  it("is silent at first, then tells the speed of the last seconds", () => {
    const rate = new Rate();
    rate.add(0, 0);
    rate.add(100, 1000);
    expect(rate.bytesPerSecond).toBeNull();
    expect(rate.msLeft(2000)).toBeNull();
    for (let ms = 200; ms <= 10_000; ms += 100) rate.add(ms, ms * 10);
    expect(rate.bytesPerSecond).toBeCloseTo(10_000);
    expect(rate.msLeft(120_000)).toBeCloseTo(2000);
    // The connection slows to a tenth: after the window only that counts.
    for (let ms = 10_100; ms <= 16_000; ms += 100) rate.add(ms, 100_000 + (ms - 10_000));
    expect(rate.bytesPerSecond).toBeCloseTo(1000);
  });
});

describe("here or there", () => {
  const whole = (text: string): { text: string; complete: boolean } => ({ text, complete: true });

  it("says that both are the same", () => {
    expect(compare(whole("abc"), whole("abc"))).toEqual({
      equal: true,
      sentence: "The same text, all 3 characters of it.",
    });
  });

  it("says where they part", () => {
    expect(compare(whole("abcd"), whole("abXY"))).toEqual({
      equal: false,
      sentence: "They part after 2 characters: here “cd”, there “XY”.",
    });
    expect(compare(whole("ab"), whole("abc"))).toMatchObject({ equal: false });
  });

  it("does not judge what was stopped, unless it differs already", () => {
    expect(compare({ text: "ab", complete: false }, whole("abc")).equal).toBeNull();
    expect(compare(whole("abc"), { text: "ab", complete: false }).equal).toBeNull();
    expect(compare({ text: "aX", complete: false }, whole("abc")).equal).toBe(false);
  });
});

describe("server-sent events", () => {
  it.each([1, 2, 7, 1000])("reads them in pieces of %i bytes", async (size) => {
    const bytes = new TextEncoder().encode(
      ': hello\r\ndata: {"a":"é"}\r\n\r\ndata: two\ndata:lines\nid: 4\n\ndata: [DONE]\n\n',
    );
    const pieces = Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) =>
      bytes.slice(i * size, (i + 1) * size),
    );
    const events: string[] = [];
    for await (const data of serverSentEvents(new Blob(pieces).stream())) events.push(data);
    expect(events).toEqual(['{"a":"é"}', "two\nlines", "[DONE]"]);
  });
});

describe("explanations", () => {
  it.each(errorCodes)("%s says what it is and what to do", (code) => {
    const { title, advice, detail } = explain(new FledglingError(code, "the engine's words"));
    expect(title.length).toBeGreaterThan(10);
    expect(advice).toMatch(/[.)]$/);
    expect(detail).toBe(`${code}: the engine's words`);
  });
});
