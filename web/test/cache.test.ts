/** The cache on an origin private file system in memory, against a real HTTP server. */

import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Fledgling } from "../src/index.js";
import type { Progress } from "../src/types.js";
import { asWorker, codeOf, FakeWorker } from "./fake-worker.js";

/** A folder with the few methods of `FileSystemDirectoryHandle` that the cache uses. */
class FakeFolder {
  readonly files = new Map<string, Uint8Array>();
  readonly locked = new Set<string>();
  quotaBytes = Infinity;

  getDirectoryHandle = (): Promise<FakeFolder> => Promise.resolve(this);

  getFileHandle = (name: string, { create = false } = {}): Promise<FakeFile> => {
    if (!this.files.has(name)) {
      if (!create) return Promise.reject(new DOMException("no such file", "NotFoundError"));
      this.files.set(name, new Uint8Array());
    }
    return Promise.resolve(new FakeFile(this, name));
  };

  removeEntry = (name: string): Promise<void> => {
    this.files.delete(name);
    return Promise.resolve();
  };

  async *keys(): AsyncGenerator<string> {
    yield* await Promise.resolve(this.files.keys());
  }
}

class FakeFile {
  readonly #folder: FakeFolder;
  readonly #name: string;

  constructor(folder: FakeFolder, name: string) {
    this.#folder = folder;
    this.#name = name;
  }

  #bytes(): Uint8Array {
    return this.#folder.files.get(this.#name) ?? new Uint8Array();
  }

  getFile = (): Promise<File> => Promise.resolve(new File([this.#bytes().slice()], this.#name));

  createSyncAccessHandle = (): Promise<unknown> => {
    const { files, locked, quotaBytes } = this.#folder;
    const name = this.#name;
    if (locked.has(name)) {
      return Promise.reject(new DOMException("in use", "NoModificationAllowedError"));
    }
    locked.add(name);
    return Promise.resolve({
      truncate: (size: number) => files.set(name, this.#bytes().slice(0, size)),
      read: (into: Uint8Array, { at }: { at: number }) => {
        into.set(this.#bytes().subarray(at, at + into.length));
        return into.length;
      },
      write: (bytes: Uint8Array, { at }: { at: number }) => {
        if (at + bytes.length > quotaBytes) throw new DOMException("full", "QuotaExceededError");
        const grown = new Uint8Array(Math.max(at + bytes.length, this.#bytes().length));
        grown.set(this.#bytes());
        grown.set(bytes, at);
        files.set(name, grown);
        return bytes.length;
      },
      close: () => locked.delete(name),
    });
  };
}

const whole = new TextEncoder().encode(`GGUF${"0123456789".repeat(500)}`);
let folder: FakeFolder;
let server: Server;
let url: string;
let etag: string;
/** The connection breaks after this many bytes of an answer. */
let breakAfter: number;
let body: Uint8Array;
let requests: string[];

function keptLengths(): number[] {
  return Array.from(folder.files.values(), (bytes) => bytes.length);
}

function answer(request: IncomingMessage, response: ServerResponse): void {
  const from = Number(/bytes=(\d+)-/.exec(request.headers.range ?? "")?.[1] ?? 0);
  requests.push(`${request.method ?? ""}${request.headers.range ? ` from ${from}` : ""}`);
  const rest = body.subarray(from);
  response.writeHead(request.headers.range ? 206 : 200, { etag, "content-length": rest.length });
  if (request.method === "HEAD" || rest.length <= breakAfter) {
    response.end(request.method === "HEAD" ? undefined : rest);
    return;
  }
  response.write(rest.subarray(0, breakAfter));
  // Not before the client has kept what was sent, however slow the machine.
  void expect
    .poll(keptLengths, { timeout: 10_000 })
    .toContain(breakAfter)
    .then(() => response.destroy());
}

beforeEach(async () => {
  folder = new FakeFolder();
  vi.stubGlobal("navigator", { storage: { getDirectory: () => Promise.resolve(folder) } });
  server = createServer(answer);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/m.gguf`;
  etag = '"one"';
  breakAfter = Infinity;
  body = whole;
  requests = [];
});

afterEach(() => {
  vi.unstubAllGlobals();
  server.closeAllConnections();
  server.close();
});

async function load(): Promise<{ fileBytes: number; fromCache: boolean | undefined }> {
  const progress: Progress[] = [];
  const model = await Fledgling.loadIn(asWorker(new FakeWorker()), url, {
    cache: true,
    onProgress: (each) => progress.push(each),
  });
  return { fileBytes: model.info.fileBytes, fromCache: progress.at(-1)?.fromCache };
}

describe("cache", () => {
  it("keeps a download, takes it from there next time, lists and forgets it", async () => {
    expect(await load()).toEqual({ fileBytes: whole.length, fromCache: false });
    expect(await load()).toEqual({ fileBytes: whole.length, fromCache: true });
    expect(requests).toEqual(["GET", "HEAD"]);
    expect(await Fledgling.cached()).toEqual([{ url, sizeBytes: whole.length, keptBytes: whole.length }]);
    await Fledgling.forget(url);
    expect(folder.files.size).toBe(0);
    expect(await Fledgling.cached()).toEqual([]);
  });

  it("works without the server", async () => {
    await load();
    server.closeAllConnections();
    server.close();
    expect(await load()).toEqual({ fileBytes: whole.length, fromCache: true });
  });

  it("goes on with a download that broke off", async () => {
    breakAfter = 2000;
    expect(await codeOf(load())).toBe("network");
    expect(await Fledgling.cached()).toEqual([{ url, sizeBytes: whole.length, keptBytes: 2000 }]);
    breakAfter = Infinity;
    expect(await load()).toEqual({ fileBytes: whole.length, fromCache: false });
    expect(requests).toEqual(["GET", "HEAD", "GET from 2000"]);
    expect([...folder.files.values()].some((bytes) => Buffer.compare(bytes, whole) === 0)).toBe(true);
  });

  it("downloads anew when the server's file has changed, whole or in part", async () => {
    await load();
    etag = '"two"';
    expect(await load()).toEqual({ fileBytes: whole.length, fromCache: false });
    etag = '"three"';
    breakAfter = 100;
    await codeOf(load());
    etag = '"four"';
    breakAfter = Infinity;
    expect((await load()).fromCache).toBe(false);
    expect(requests.at(-1)).toBe("GET");
  });

  it("keeps nothing that the engine refuses", async () => {
    body = new TextEncoder().encode("<!doctype html> not found, but with status 200");
    expect(await codeOf(load())).toBe("not-gguf");
    expect(folder.files.size).toBe(0);
  });

  it("loads all the same when the storage is full, in use, or missing", async () => {
    folder.quotaBytes = 1000;
    expect((await load()).fileBytes).toBe(whole.length);
    folder.quotaBytes = Infinity;
    for (const name of folder.files.keys()) folder.locked.add(name);
    expect((await load()).fileBytes).toBe(whole.length);
    vi.stubGlobal("navigator", {});
    expect((await load()).fileBytes).toBe(whole.length);
    expect(await Fledgling.cached()).toEqual([]);
  });
});
