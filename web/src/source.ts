/**
 * Where a model's bytes come from, in the worker: a URL, a Blob, or chunks that the page sends.
 *
 * All three end as one sequence of chunks in file order, so that the engine sees no difference.
 */

import { Cache, isSameVersion, versionOf, type Version } from "./cache.js";
import { FledglingError } from "./errors.js";
import type { Source } from "./protocol.js";

type Chunks = AsyncGenerator<Uint8Array, void, undefined>;

export interface OpenSource {
  /** To be read to its end or ended by `return()`, which lets go of connection and storage. */
  readonly chunks: Chunks;
  /** The length in bytes if the source knows it. */
  readonly totalBytes: number | null;
  readonly fromCache: boolean;
  /** Forgets what was kept: the engine has refused the file. */
  discard(): Promise<void>;
}

/** The receiving end of `chunk` requests. */
export class Pushed {
  readonly stream: ReadableStream<Uint8Array>;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;

  constructor() {
    const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
    this.stream = readable;
    this.#writer = writable.getWriter();
  }

  /** Resolves when the engine has asked for the chunk; rejects when it stopped reading. */
  async chunk(bytes: Uint8Array): Promise<void> {
    await this.#writer.ready;
    await this.#writer.write(bytes);
  }

  end(): Promise<void> {
    return this.#writer.close();
  }
}

/**
 * Opens a source.
 *
 * # Errors
 * `network` when the server cannot be reached or answers with a status other than 2xx.
 */
export async function openSource(source: Source, pushed: Pushed): Promise<OpenSource> {
  const plain = { fromCache: false, discard: () => Promise.resolve() };
  switch (source.kind) {
    case "blob":
      return { ...plain, chunks: readAll(source.blob.stream()), totalBytes: source.blob.size };
    case "pushed":
      return { ...plain, chunks: readAll(pushed.stream), totalBytes: null };
    case "url": {
      const cache = source.cache ? await Cache.open() : undefined;
      if (!cache) {
        const response = await get(source.url);
        return { ...plain, chunks: readNetwork(response), totalBytes: lengthOf(response) };
      }
      return openKept(source.url, cache);
    }
  }
}

/** A download by way of the cache: from there, from there on, or anew. */
async function openKept(url: string, cache: Cache): Promise<OpenSource> {
  const discard = (): Promise<void> => cache.delete(url);
  const kept = await cache.find(url);
  const current = kept && (await askVersion(url));
  if (kept && (current === "unreachable" || (current && isSameVersion(kept.version, current)))) {
    const { version, data } = kept;
    const totalBytes = version.sizeBytes;
    if (data.size === totalBytes) {
      return { chunks: readAll(data.stream()), totalBytes, fromCache: true, discard };
    }
    const chunks = data.size < totalBytes ? await resume(url, cache, version, data.size) : undefined;
    if (chunks) return { chunks, totalBytes, fromCache: false, discard };
  }
  const response = await get(url);
  const version = versionOf(response);
  const chunks = version ? readAndKeep(response, url, cache, version) : readNetwork(response);
  return { chunks, totalBytes: lengthOf(response), fromCache: false, discard };
}

/** What the server has now; undefined when it does not tell. */
async function askVersion(url: string): Promise<Version | "unreachable" | undefined> {
  try {
    const response = await fetch(url, { method: "HEAD" });
    return response.ok ? versionOf(response) : undefined;
  } catch {
    return "unreachable";
  }
}

/** The kept bytes, then the rest from the server; undefined when it does not send parts. */
async function resume(
  url: string,
  cache: Cache,
  version: Version,
  keptBytes: number,
): Promise<Chunks | undefined> {
  const response = await get(url, { range: `bytes=${keptBytes}-` });
  if (response.status !== 206 || lengthOf(response) !== version.sizeBytes - keptBytes) {
    await response.body?.cancel();
    return undefined;
  }
  const writer = await cache.write(url, version, keptBytes);
  if (!writer) {
    await response.body?.cancel();
    return undefined;
  }
  return (async function* () {
    try {
      yield* writer.kept();
      for await (const chunk of readNetwork(response)) {
        writer.append(chunk);
        yield chunk;
      }
    } finally {
      writer.close();
    }
  })();
}

async function* readAndKeep(response: Response, url: string, cache: Cache, version: Version): Chunks {
  const writer = await cache.write(url, version, 0);
  try {
    for await (const chunk of readNetwork(response)) {
      writer?.append(chunk);
      yield chunk;
    }
  } finally {
    writer?.close();
  }
}

async function get(url: string, headers: Record<string, string> = {}): Promise<Response> {
  const response = await fetch(url, { headers }).catch((cause: unknown) => {
    throw new FledglingError("network", `could not reach ${url}: ${String(cause)}`, { cause });
  });
  if (!response.ok || response.body === null) {
    throw new FledglingError("network", `${url} answered with status ${response.status}`);
  }
  return response;
}

function lengthOf({ headers }: Response): number | null {
  const length = headers.get("content-length");
  // With a content encoding the header counts compressed bytes, which is not what arrives here.
  return length === null || headers.has("content-encoding") ? null : Number(length);
}

/** A response's bytes; a connection that breaks off is `network`. */
async function* readNetwork({ body }: Response): Chunks {
  if (!body) return;
  const chunks = readAll(body);
  try {
    for (;;) {
      const { done, value } = await chunks.next().catch((cause: unknown) => {
        throw new FledglingError("network", `the file stopped arriving: ${String(cause)}`, { cause });
      });
      if (done) return;
      yield value;
    }
  } finally {
    await chunks.return();
  }
}

/** A stream's chunks. Not every browser can iterate over a stream itself. */
async function* readAll(stream: ReadableStream<Uint8Array>): Chunks {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
