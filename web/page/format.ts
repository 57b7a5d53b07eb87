/** Numbers as people read them. */

const units = ["B", "kB", "MB", "GB"];

/** `98.4 MB`: decimal units, three figures. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : 1;
  return `${value.toFixed(digits)} ${units[unit] ?? ""}`;
}

/** `0.42 s`, `12 s`, `3 min`. */
export function formatDuration(ms: number): string {
  const seconds = ms / 1000;
  if (seconds < 10) return `${seconds.toFixed(seconds < 1 ? 2 : 1)} s`;
  if (seconds < 90) return `${seconds.toFixed(0)} s`;
  return `${Math.round(seconds / 60)} min`;
}

/** `18.3 tokens/s`. */
export function formatRate(tokensPerSecond: number): string {
  return `${tokensPerSecond.toFixed(tokensPerSecond < 99.95 ? 1 : 0)} tokens/s`;
}

/** The last part of an address or path, readable. */
export function fileName(address: string): string {
  const path = address.split(/[?#]/, 1)[0] ?? "";
  const name = path.split("/").pop();
  if (!name) return address;
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}
