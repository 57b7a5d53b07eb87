/** The package end to end under node: a real message channel between the client and `Host`, a fake engine. */

import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Fledgling } from "../src/index.js";
import type { Progress } from "../src/types.js";
import * as fakeWasm from "./fake-wasm.js";
import { asWorker, codeOf, FakeWorker } from "./fake-worker.js";

const gguf = new TextEncoder().encode("GGUF____________________________");

async function load(worker = new FakeWorker()): Promise<Fledgling> {
  return Fledgling.loadIn(asWorker(worker), new Blob([gguf]));
}

async function collect<T>(pieces: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const piece of pieces) all.push(piece);
  return all;
}

beforeEach(() => {
  fakeWasm.fakeLog.length = 0;
});

describe("load", () => {
  it.each([
    ["a blob", () => new Blob([gguf])],
    ["an array buffer", () => gguf.slice().buffer],
    ["a stream", () => new Blob([gguf.slice(0, 5), gguf.slice(5)]).stream()],
  ])("takes %s", async (_, source) => {
    const progress: Progress[] = [];
    const model = await Fledgling.loadIn(asWorker(new FakeWorker()), source(), {
      device: "cpu",
      nCtx: 77,
      onProgress: (each) => progress.push(each),
    });
    expect(model.info).toMatchObject({ name: "Fake 1M", fileBytes: gguf.length, nCtx: 77 });
    expect(model.device.kind).toBe("cpu");
    expect(progress.at(-1)).toEqual({
      phase: "prepare",
      loadedBytes: gguf.length,
      totalBytes: gguf.length,
      fromCache: false,
    });
  });

  it.each([
    ["not-gguf", new Blob(["PK\u0003\u0004 something else entirely"])],
    ["truncated", new Blob(["GGUF"])],
  ])("rejects with %s, frees the loader or leaves it consumed, and ends the worker", async (code, source) => {
    const worker = new FakeWorker();
    expect(await codeOf(Fledgling.loadIn(asWorker(worker), source))).toBe(code);
    expect(worker.terminated).toBe(true);
  });

  it("stops a stream whose bytes are refused", async () => {
    let cancelled = false;
    const endless = new ReadableStream<Uint8Array>({
      pull: (controller) => {
        controller.enqueue(new Uint8Array(1000));
      },
      cancel: () => {
        cancelled = true;
      },
    });
    expect(await codeOf(Fledgling.loadIn(asWorker(new FakeWorker()), endless))).toBe("not-gguf");
    await expect.poll(() => cancelled, { timeout: 10_000 }).toBe(true);
  });

  it("rejects with the signal's reason when aborted, before and during", async () => {
    const reason = new Error("enough");
    const before = Fledgling.loadIn(asWorker(new FakeWorker()), new Blob([gguf]), {
      signal: AbortSignal.abort(reason),
    });
    await expect(before).rejects.toBe(reason);
    const controller = new AbortController();
    const worker = new FakeWorker();
    const hanging = new ReadableStream<Uint8Array>();
    const during = Fledgling.loadIn(asWorker(worker), hanging, { signal: controller.signal });
    controller.abort(reason);
    await expect(during).rejects.toBe(reason);
    expect(worker.terminated).toBe(true);
  });

  it("rejects with crashed when the worker dies, and with internal when the module cannot be had", async () => {
    const worker = new FakeWorker();
    const loading = Fledgling.loadIn(asWorker(worker), new ReadableStream<Uint8Array>());
    worker.crash("boom");
    expect(await codeOf(loading)).toBe("crashed");
    const noModule = new FakeWorker(() => Promise.reject(new Error("no such file")));
    expect(await codeOf(load(noModule))).toBe("internal");
  });
});

describe("load from a URL", () => {
  let server: Server;
  let base: string;

  beforeEach(async () => {
    server = createServer((request, response) => {
      if (request.url === "/ok.gguf") response.writeHead(200, { "content-length": gguf.length }).end(gguf);
      else if (request.url === "/broken.gguf") {
        response.writeHead(200, { "content-length": 1000 }).write(gguf);
        setTimeout(() => response.destroy(), 20);
      } else response.writeHead(404).end();
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });

  afterEach(() => {
    server.closeAllConnections();
    server.close();
  });

  it("downloads", async () => {
    const progress: Progress[] = [];
    const model = await Fledgling.loadIn(asWorker(new FakeWorker()), `${base}/ok.gguf`, {
      onProgress: (each) => progress.push(each),
    });
    expect(model.info.fileBytes).toBe(gguf.length);
    expect(progress[0]).toMatchObject({ phase: "download", totalBytes: gguf.length });
  });

  it("says network for a status, a broken connection and no server", async () => {
    const fetchModel = (url: string): Promise<string> =>
      codeOf(Fledgling.loadIn(asWorker(new FakeWorker()), url));
    expect(await fetchModel(`${base}/missing.gguf`)).toBe("network");
    expect(await fetchModel(`${base}/broken.gguf`)).toBe("network");
    expect(await fetchModel("http://127.0.0.1:1/x.gguf")).toBe("network");
    expect(fakeWasm.fakeLog).toEqual(["free loader", "free loader", "free loader"]);
  });
});

describe("generation", () => {
  it("streams text, and knows ids, reason and timings at the end", async () => {
    const model = await load();
    const generation = model.generate("the quick brown fox");
    expect(await collect(generation)).toEqual(["the", " quick", " brown", " fox"]);
    expect(generation.result).toMatchObject({
      text: "the quick brown fox",
      tokenIds: [0, 1, 2, 3],
      finishReason: "stop",
      promptTokens: Array.from("the quick brown fox", (c) => c.codePointAt(0)),
    });
    expect(generation.result?.timings.tokensPerSecond).toBeGreaterThan(0);
    expect(fakeWasm.fakeLog).toEqual(["free generation"]);
  });

  it("passes options on, and steps tell the token ids", async () => {
    const model = await load();
    const generation = model.chat([{ role: "user", content: "a b c d" }], { maxTokens: 2 });
    expect(await collect(generation.steps())).toEqual([
      { token: 0, text: "a", finishReason: null },
      { token: 1, text: " b", finishReason: "length" },
    ]);
    expect(generation.result?.finishReason).toBe("length");
  });

  it("tokenizes", async () => {
    const model = await load();
    expect(await model.tokenize("ab")).toEqual([97, 98]);
  });

  it("carries codes of the engine across", async () => {
    const model = await load();
    expect(await codeOf(model.generate("x", { temperature: -1 }).finish())).toBe("bad-option");
    expect(await codeOf(model.generate("a lost! b").finish())).toBe("device-lost");
    expect((await model.generate("still works").finish()).text).toBe("still works");
  });

  it("answers busy to a second one, and is free again afterwards", async () => {
    const model = await load();
    const first = model.generate("a b c");
    const steps = first.steps();
    await steps.next();
    expect(await codeOf(model.generate("x").finish())).toBe("busy");
    while (!(await steps.next()).done);
    expect((await model.generate("x").finish()).text).toBe("x");
  });

  const long = "word ".repeat(10_000);

  it("stops on abort with the signal's reason, within a token", async () => {
    const model = await load();
    const controller = new AbortController();
    const reason = new Error("enough");
    const generation = model.generate(long, { signal: controller.signal });
    let n = 0;
    const reading = (async () => {
      for await (const piece of generation) if (piece && ++n === 3) controller.abort(reason);
    })();
    await expect(reading).rejects.toBe(reason);
    // The next one waits for the end of the cancelled one instead of failing with busy.
    expect((await model.generate("next").finish()).text).toBe("next");
    expect(generation.result?.finishReason).toBe("cancelled");
    expect(generation.result?.tokenIds.length).toBeLessThan(1000);
  });

  it("cancel() and leaving the loop end it quietly and free it", async () => {
    const model = await load();
    const generation = model.generate(long);
    let n = 0;
    for await (const piece of generation) if (piece && ++n === 3) generation.cancel();
    expect(generation.result?.finishReason).toBe("cancelled");
    for await (const piece of model.generate(long)) if (piece) break;
    expect((await model.generate("next").finish()).text).toBe("next");
    expect(fakeWasm.fakeLog.filter((line) => line === "free generation")).toHaveLength(3);
  });

  it("refuses a signal that is already aborted, and to be read twice", async () => {
    const model = await load();
    const reason = new Error("no");
    const aborted = model.generate("x", { signal: AbortSignal.abort(reason) });
    await expect(aborted.finish()).rejects.toBe(reason);
    const once = model.generate("x");
    await once.finish();
    expect(await codeOf(once.finish())).toBe("bad-option");
  });

  it("stays failed after the wasm module has trapped, and never touches its objects again", async () => {
    const model = await load();
    expect(await codeOf(model.generate("a trap! b").finish())).toBe("internal");
    expect(await codeOf(model.tokenize("x"))).toBe("internal");
    expect(fakeWasm.fakeLog).toEqual([]);
  });
});

describe("the end", () => {
  it("dispose fails what runs and what comes later, and ends the worker", async () => {
    const worker = new FakeWorker();
    const model = await load(worker);
    const running = model.generate("a b c").steps();
    await running.next();
    await model.dispose();
    await model.dispose();
    expect(worker.terminated).toBe(true);
    expect(await codeOf(collect({ [Symbol.asyncIterator]: () => running }))).toBe("disposed");
    expect(await codeOf(model.generate("x").finish())).toBe("disposed");
    expect(await codeOf(model.tokenize("x"))).toBe("disposed");
  });

  it("a crash fails everything that waits and everything later", async () => {
    const worker = new FakeWorker();
    const model = await load(worker);
    const tokens = model.tokenize("x");
    const text = model.generate("a b c").finish();
    await Promise.resolve();
    worker.crash("out of stack");
    expect(await codeOf(tokens)).toBe("crashed");
    expect(await codeOf(text)).toBe("crashed");
    expect(await codeOf(model.generate("x").finish())).toBe("crashed");
  });
});
