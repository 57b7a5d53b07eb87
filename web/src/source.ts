/**
 * Where a model's bytes come from, in the worker: a URL, a Blob, or chunks that the page sends.
 *
 * All three end as one stream of chunks in file order, so that the engine sees no difference.
 */

import { FledglingError } from "./errors.js";
import type { Source } from "./protocol.js";

export interface OpenSource {
  readonly reader: ReadableStreamDefaultReader<Uint8Array>;
  /** The length in bytes if the source knows it. */
  readonly totalBytes: number | null;
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
  switch (source.kind) {
    case "blob":
      return { reader: source.blob.stream().getReader(), totalBytes: source.blob.size };
    case "pushed":
      return { reader: pushed.stream.getReader(), totalBytes: null };
    case "url":
      return download(source.url);
  }
}

async function download(url: string): Promise<OpenSource> {
  const response = await fetch(url).catch((cause: unknown) => {
    throw new FledglingError("network", `could not reach ${url}: ${String(cause)}`, { cause });
  });
  if (!response.ok || response.body === null) {
    throw new FledglingError("network", `${url} answered with status ${response.status}`);
  }
  // With a content encoding the header counts compressed bytes, which is not what arrives here.
  const encoded = response.headers.has("content-encoding");
  const length = encoded ? null : response.headers.get("content-length");
  return { reader: response.body.getReader(), totalBytes: length === null ? null : Number(length) };
}

/** The next chunk, or undefined at the end; a connection that breaks off is `network`. */
export async function readChunk(open: OpenSource): Promise<Uint8Array | undefined> {
  try {
    const { done, value } = await open.reader.read();
    return done ? undefined : value;
  } catch (cause) {
    throw new FledglingError("network", `the file stopped arriving: ${String(cause)}`, { cause });
  }
}
