/** The parts of the page that need no browser. */

import { describe, expect, it } from "vitest";
import { readdirSync, readFileSync } from "node:fs";
import { apiBase, readChunk } from "../page/api.js";
import { browserName, toTable } from "../page/benchmark.js";
import { compare } from "../page/compare.js";
import { explain } from "../page/explain.js";
import { fileName, formatBytes, formatDuration, formatRate } from "../page/format.js";
import { Rate } from "../page/rate.js";
import { Speed, thin } from "../page/speed.js";
import { serverSentEvents } from "../page/sse.js";
import * as strings from "../page/strings.js";
import { Heights } from "../page/windowing.js";
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

  it("does not judge where one side failed", () => {
    expect(compare(whole("a"), undefined).equal).toBeNull();
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

describe("an API", () => {
  it.each([
    ["http://127.0.0.1:8080", "http://127.0.0.1:8080/"],
    [" https://example.org/v1/ ", "https://example.org/"],
    ["https://example.org/llm/v1", "https://example.org/llm/"],
    ["https://example.org/v1x", "https://example.org/v1x/"],
  ])("%s is at %s", (written, base) => {
    expect(apiBase(written)).toBe(base);
  });

  it("is refused by an address that is none", () => {
    expect(() => apiBase("example")).toThrow(TypeError);
    expect(() => apiBase("file:///etc")).toThrow("no http");
  });

  it("streams text, the reason of its end, and the usage", () => {
    const choice = (rest: object): object => ({ choices: [{ index: 0, ...rest }] });
    expect(readChunk(choice({ delta: { content: "a" } }))).toEqual({ text: "a" });
    expect(readChunk(choice({ text: "b", finish_reason: "length" }))).toEqual({
      text: "b",
      finishReason: "length",
    });
    expect(readChunk({ choices: [], usage: { completion_tokens: 3, prompt_tokens: 9 } })).toEqual({
      text: "",
      tokens: 3,
      promptTokens: 9,
    });
    expect(() => readChunk({ error: { message: "the queue is full" } })).toThrow("the queue is full");
  });
});

describe("a long list", () => {
  const keys = Array.from({ length: 1000 }, (_, i) => `turn ${i}`);

  it("draws what is in view and near it, and keeps its whole height", () => {
    const heights = new Heights();
    heights.keys = keys;
    for (const key of keys) heights.measure(key, 100);
    expect(heights.span(0, 800, 200)).toEqual({ first: 0, end: 10, abovePx: 0, belowPx: 99_000 });
    expect(heights.span(50_000, 800, 200)).toEqual({
      first: 498,
      end: 510,
      abovePx: 49_800,
      belowPx: 49_000,
    });
    expect(heights.span(99_200, 800, 200)).toEqual({ first: 990, end: 1000, abovePx: 99_000, belowPx: 0 });
  });

  it("guesses what was not measured by what was", () => {
    const heights = new Heights();
    heights.keys = keys;
    heights.measure("turn 0", 40);
    heights.measure("turn 1", 60);
    expect(heights.span(0, 100, 0)).toMatchObject({ end: 2, belowPx: 998 * 50 });
    heights.keys = keys.slice(1, 3);
    expect(heights.span(0, 1000, 0)).toEqual({ first: 0, end: 2, abovePx: 0, belowPx: 0 });
    heights.keys = [];
    expect(heights.span(0, 1000, 0)).toEqual({ first: 0, end: 0, abovePx: 0, belowPx: 0 });
  });
});

describe("the speed of an answer", () => {
  it("is that of the last eight tokens", () => {
    const speed = new Speed();
    speed.add(1000);
    expect(speed.latest).toBeUndefined();
    for (let i = 1; i <= 20; i += 1) speed.add(1000 + i * 50);
    expect(speed.latest).toBeCloseTo(20);
    for (let i = 1; i <= 8; i += 1) speed.add(2000 + i * 100);
    expect(speed.latest).toBeCloseTo(10);
    expect(speed.rates).toHaveLength(28);
  });

  it("is drawn with few points, whose mean is its own", () => {
    const series = Array.from({ length: 1000 }, (_, i) => i);
    const points = thin(series, 100);
    expect(points).toHaveLength(100);
    expect(points[0]).toBe(4.5);
    expect(points[99]).toBe(994.5);
    expect(thin([1, 2], 100)).toEqual([1, 2]);
  });
});

describe("a benchmark", () => {
  it("is written as a row of a table", () => {
    const result = {
      model: "a|b",
      fileBytes: 1,
      device: "CPU",
      prefillTokens: 128,
      decodeTokens: 64,
      prefillTokensPerS: 100.04,
      decodeTokensPerS: 20,
      firstTokenMs: 1280.4,
      browser: "Firefox 153",
      date: "2026-01-02",
    };
    const [head, , row] = toTable(result).split("\n");
    expect(head).toBe(
      "| Model | Device | Prefill, tokens/s | Decode, tokens/s | First token, ms | Browser | Date |",
    );
    expect(row).toBe("| a\\|b | CPU | 100.0 | 20.0 | 1280 | Firefox 153 | 2026-01-02 |");
  });

  it.each([
    [
      "Mozilla/5.0 (X11) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/150.0.0.0 Safari/537.36 Edg/150.0",
      "Edge 150",
    ],
    ["Mozilla/5.0 (X11; rv:153.0) Gecko/20100101 Firefox/153.0", "Firefox 153"],
    [
      "Mozilla/5.0 (Macintosh) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.0 Safari/605.1.15",
      "Safari 26",
    ],
    ["curl", "curl"],
  ])("names the browser of %s", (userAgent, name) => {
    expect(browserName(userAgent)).toBe(name);
  });
});

describe("strings", () => {
  const folder = new URL("../page/", import.meta.url);
  const modules = readdirSync(folder)
    .filter((name) => name.endsWith(".ts") && name !== "strings.ts")
    .map((name) => readFileSync(new URL(name, folder), "utf8"))
    .join("\n");
  const page = readFileSync(new URL("../index.html", import.meta.url), "utf8");

  it.each(Object.keys(strings.html))("%s of the page is used", (name) => {
    expect(page.includes(`{{${name}}}`) || modules.includes(`.${name}`)).toBe(true);
  });

  it("are all that index.html says", () => {
    const body = page.slice(page.indexOf("<body"));
    const said = body.replace(/<[^>]*>/g, " ").replace(/\{\{\w+\}\}/g, " ");
    expect(said.match(/[A-Za-z]{2,}/g)).toBeNull();
  });

  const { dialogs, inside, library, loading, settings, shelf, talk, verdict } = strings;
  const parts = [dialogs, inside, library, loading, settings, shelf, talk, verdict];
  const names = parts.flatMap((part) => Object.keys(part));
  it.each([...new Set(names)])("%s is used by a module", (name) => {
    expect(new RegExp(`\\b${name}\\b`).test(modules)).toBe(true);
  });
});
