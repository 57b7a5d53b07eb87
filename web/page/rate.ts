/** Speed and time left of a download, over a sliding window so that both follow the connection calmly. */

const windowMs = 4000;
/** Before this, a speed would be a guess. */
const settlingMs = 400;

export class Rate {
  readonly #samples: { readonly atMs: number; readonly bytes: number }[] = [];

  add(atMs: number, bytes: number): void {
    this.#samples.push({ atMs, bytes });
    while (this.#samples.length > 2 && (this.#samples[1]?.atMs ?? atMs) < atMs - windowMs) {
      this.#samples.shift();
    }
  }

  /** Null until there is something to tell. */
  get bytesPerSecond(): number | null {
    const first = this.#samples[0];
    const last = this.#samples.at(-1);
    if (!first || !last || last.atMs - first.atMs < settlingMs) return null;
    return ((last.bytes - first.bytes) * 1000) / (last.atMs - first.atMs);
  }

  msLeft(totalBytes: number): number | null {
    const speed = this.bytesPerSecond;
    const last = this.#samples.at(-1);
    if (!speed || !last) return null;
    return (Math.max(0, totalBytes - last.bytes) / speed) * 1000;
  }
}
