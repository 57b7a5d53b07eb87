/** How fast tokens come: a smoothed rate for each token, for the line that is drawn while a model writes. */

/** A rate is that of this many tokens. */
const windowTokens = 8;

export class Speed {
  readonly #atMs: number[] = [];
  readonly #rates: number[] = [];

  /** A token has come. */
  add(atMs: number): void {
    this.#atMs.push(atMs);
    const n = this.#atMs.length;
    const from = Math.max(0, n - 1 - windowTokens);
    const ms = atMs - (this.#atMs[from] ?? atMs);
    if (n > 1 && ms > 0) this.#rates.push(((n - 1 - from) * 1000) / ms);
  }

  /** Tokens a second, one for each token behind the first. */
  get rates(): readonly number[] {
    return this.#rates;
  }

  get latest(): number | undefined {
    return this.#rates.at(-1);
  }
}

/** At most `n` points of a series, each the mean of its share. */
export function thin(series: readonly number[], n: number): number[] {
  if (series.length <= n) return [...series];
  return Array.from({ length: n }, (_, i) => {
    const share = series.slice(
      Math.floor((i * series.length) / n),
      Math.floor(((i + 1) * series.length) / n),
    );
    return share.reduce((sum, value) => sum + value, 0) / share.length;
  });
}
