/**
 * The scalar metadata of a GGUF file from the bytes of its header, to say what a file is before it is loaded.
 *
 * The engine reads and checks a file itself; this only shows. Layout: ggml's docs/gguf.md, version 3.
 */

export type Scalar = string | number | boolean;
export type Metadata = Readonly<Record<string, Scalar>>;

export interface Header {
  readonly metadata: Metadata;
  /** False when the bytes end before the metadata do. */
  readonly complete: boolean;
}

/** Texts beyond this are left out: a whole `tokenizer.json` may be among them. */
const textBytes = 16 << 10;

/** Bytes of a value by its type; 8 is a string, 9 an array. */
const sizes: Readonly<Record<number, number>> = {
  0: 1,
  1: 1,
  2: 2,
  3: 2,
  4: 4,
  5: 4,
  6: 4,
  7: 1,
  10: 8,
  11: 8,
  12: 8,
};

class Ended extends Error {}

class Reader {
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  take(length: number): number {
    const at = this.#at;
    if (!(length >= 0) || at + length > this.#view.byteLength) throw new Ended();
    this.#at += length;
    return at;
  }

  u32(): number {
    return this.#view.getUint32(this.take(4), true);
  }

  u64(): number {
    return Number(this.#view.getBigUint64(this.take(8), true));
  }

  /** Undefined for one that is too long to be shown. */
  text(): string | undefined {
    const length = this.u64();
    const at = this.take(length);
    if (length > textBytes) return undefined;
    return new TextDecoder().decode(new Uint8Array(this.#view.buffer, this.#view.byteOffset + at, length));
  }

  /** Undefined for an array, which is skipped, and for a text that is too long. */
  value(type: number): Scalar | undefined {
    if (type === 8) return this.text();
    if (type === 9) {
      this.#skipArray();
      return undefined;
    }
    const at = this.take(sizes[type] ?? NaN);
    const view = this.#view;
    switch (type) {
      case 0:
        return view.getUint8(at);
      case 1:
        return view.getInt8(at);
      case 2:
        return view.getUint16(at, true);
      case 3:
        return view.getInt16(at, true);
      case 4:
        return view.getUint32(at, true);
      case 5:
        return view.getInt32(at, true);
      case 6:
        return view.getFloat32(at, true);
      case 7:
        return view.getUint8(at) !== 0;
      case 10:
        return Number(view.getBigUint64(at, true));
      case 11:
        return Number(view.getBigInt64(at, true));
      default:
        return view.getFloat64(at, true);
    }
  }

  #skipArray(): void {
    const type = this.u32();
    const length = this.u64();
    if (type === 8) for (let i = 0; i < length; i += 1) this.take(this.u64());
    else this.take(length * (sizes[type] ?? NaN));
  }
}

/** Undefined when the bytes are no GGUF of version 2 or 3. */
export function readHeader(bytes: Uint8Array): Header | undefined {
  const reader = new Reader(bytes);
  const metadata: Record<string, Scalar> = {};
  try {
    if (reader.u32() !== 0x46554747 || ![2, 3].includes(reader.u32())) return undefined;
    reader.u64();
    const nValues = reader.u64();
    for (let i = 0; i < nValues; i += 1) {
      const key = reader.text();
      const value = reader.value(reader.u32());
      if (key !== undefined && value !== undefined) metadata[key] = value;
    }
    return { metadata, complete: true };
  } catch (thrown) {
    if (thrown instanceof Ended) return { metadata, complete: false };
    throw thrown;
  }
}
