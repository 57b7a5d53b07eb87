/**
 * Downloaded model files, kept in the origin private file system.
 *
 * Each file is a pair in the folder `fledgling`: `HASH.json`, which says what the server said of it, and
 * `HASH.bin`, which grows while the bytes arrive. A file counts as whole only when its length is the
 * announced one, so that a download that broke off is never taken for a model, and can go on.
 *
 * Storage is a convenience: where it is missing, full or in use by another tab, loading goes on without it.
 */

/** How one version of a file differs from the next. */
export interface Version {
  readonly sizeBytes: number;
  readonly etag: string | null;
  readonly lastModified: string | null;
}

export interface CachedFile {
  readonly url: string;
  readonly sizeBytes: number;
  /** What is there of it; less than `sizeBytes` after a download that broke off. */
  readonly keptBytes: number;
}

interface Kept extends Version {
  readonly url: string;
}

/** In a worker a file handle can do this; TypeScript's DOM library only knows pages. */
interface SyncHandle {
  read(into: Uint8Array, options: { at: number }): number;
  write(bytes: Uint8Array, options: { at: number }): number;
  truncate(bytes: number): void;
  close(): void;
}

interface WorkerFileHandle extends FileSystemFileHandle {
  createSyncAccessHandle(): Promise<SyncHandle>;
}

const readChunkBytes = 1 << 20;

export function isSameVersion(a: Version, b: Version): boolean {
  if (a.sizeBytes !== b.sizeBytes) return false;
  if (a.etag !== null || b.etag !== null) return a.etag === b.etag;
  return a.lastModified !== null && a.lastModified === b.lastModified;
}

/** What a response says about the file; undefined when it does not say enough to recognise it again. */
export function versionOf({ headers }: Response): Version | undefined {
  const length = headers.get("content-length");
  const etag = headers.get("etag");
  const lastModified = headers.get("last-modified");
  // With a content encoding the length is that of the compressed bytes.
  if (length === null || headers.has("content-encoding")) return undefined;
  if (etag === null && lastModified === null) return undefined;
  return { sizeBytes: Number(length), etag, lastModified };
}

export class Cache {
  readonly #folder: FileSystemDirectoryHandle;

  private constructor(folder: FileSystemDirectoryHandle) {
    this.#folder = folder;
  }

  /** Undefined where the browser offers no storage (an insecure address, some private windows). */
  static async open(): Promise<Cache | undefined> {
    try {
      const root = await navigator.storage.getDirectory();
      return new Cache(await root.getDirectoryHandle("fledgling", { create: true }));
    } catch {
      return undefined;
    }
  }

  async list(): Promise<CachedFile[]> {
    const files: CachedFile[] = [];
    for await (const name of this.#folder.keys()) {
      if (!name.endsWith(".json")) continue;
      const record = await this.#record(name);
      const data = record && (await this.#data(name.replace(/json$/, "bin")));
      if (data) files.push({ url: record.url, sizeBytes: record.sizeBytes, keptBytes: data.size });
    }
    return files;
  }

  async delete(url: string): Promise<void> {
    const name = await nameOf(url);
    // The record first: without it the bytes are nobody's.
    for (const ending of ["json", "bin"]) {
      await this.#folder.removeEntry(`${name}.${ending}`).catch(() => undefined);
    }
  }

  /** What is kept of a file, whole or in part. */
  async find(url: string): Promise<{ readonly version: Version; readonly data: File } | undefined> {
    const name = await nameOf(url);
    const version = await this.#record(`${name}.json`);
    const data = version && (await this.#data(`${name}.bin`));
    return data && { version, data };
  }

  /**
   * Opens a file for writing behind its first `keptBytes`. Undefined when that cannot be: the storage is
   * full, or another tab is writing the same file.
   */
  async write(url: string, version: Version, keptBytes: number): Promise<CacheWriter | undefined> {
    const name = await nameOf(url);
    let handle: SyncHandle | undefined;
    try {
      const file = await this.#folder.getFileHandle(`${name}.bin`, { create: true });
      handle = await (file as WorkerFileHandle).createSyncAccessHandle();
      handle.truncate(keptBytes);
      await this.#putRecord(`${name}.json`, { ...version, url });
      return new CacheWriter(handle, keptBytes);
    } catch {
      handle?.close();
      return undefined;
    }
  }

  async #putRecord(name: string, record: Kept): Promise<void> {
    const file = await this.#folder.getFileHandle(name, { create: true });
    const handle = await (file as WorkerFileHandle).createSyncAccessHandle();
    try {
      const bytes = new TextEncoder().encode(JSON.stringify(record));
      handle.truncate(0);
      handle.write(bytes, { at: 0 });
    } finally {
      handle.close();
    }
  }

  async #record(name: string): Promise<Kept | undefined> {
    const file = await this.#data(name);
    if (!file) return undefined;
    try {
      const record: unknown = JSON.parse(await file.text());
      return isKept(record) ? record : undefined;
    } catch {
      return undefined;
    }
  }

  async #data(name: string): Promise<File | undefined> {
    try {
      return await (await this.#folder.getFileHandle(name)).getFile();
    } catch {
      return undefined;
    }
  }
}

/** A kept file that is being written. After a failure (the storage is full) it writes no more. */
export class CacheWriter {
  #handle: SyncHandle | undefined;
  #atBytes: number;

  constructor(handle: SyncHandle, atBytes: number) {
    this.#handle = handle;
    this.#atBytes = atBytes;
  }

  /** The bytes that were kept before. */
  *kept(): Generator<Uint8Array<ArrayBuffer>, void, undefined> {
    const endBytes = this.#atBytes;
    for (let at = 0; at < endBytes; at += readChunkBytes) {
      const chunk = new Uint8Array(Math.min(readChunkBytes, endBytes - at));
      if (this.#handle?.read(chunk, { at }) !== chunk.length) throw new Error("the kept file cannot be read");
      yield chunk;
    }
  }

  append(bytes: Uint8Array): void {
    try {
      const written = this.#handle?.write(bytes, { at: this.#atBytes });
      if (written !== bytes.length) this.close();
      this.#atBytes += bytes.length;
    } catch {
      this.close();
    }
  }

  close(): void {
    this.#handle?.close();
    this.#handle = undefined;
  }
}

function isKept(value: unknown): value is Kept {
  if (typeof value !== "object" || value === null) return false;
  const { url, sizeBytes, etag, lastModified } = value as Record<string, unknown>;
  const isText = (text: unknown): boolean => text === null || typeof text === "string";
  return typeof url === "string" && typeof sizeBytes === "number" && isText(etag) && isText(lastModified);
}

/** A file name for an address. */
async function nameOf(url: string): Promise<string> {
  const hash = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(url));
  return Array.from(new Uint8Array(hash), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
