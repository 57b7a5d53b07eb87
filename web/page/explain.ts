/** What each error means to the person before the page, and what can be done about it. */

import { FledglingError, type ErrorCode } from "../src/index.js";
import { errors } from "./strings.js";

export interface Explanation {
  readonly title: string;
  readonly advice: string;
  /** For those who want to report it. */
  readonly detail: string;
  /** True when the CPU could do what failed here. */
  readonly cpuHelps: boolean;
  /** True when the same may work another time. */
  readonly mayPass: boolean;
}

const gpuTrouble: ReadonlySet<ErrorCode> = new Set([
  "no-webgpu",
  "device-lost",
  "out-of-memory",
  "unsupported-model",
  "internal",
]);

const passing: ReadonlySet<ErrorCode> = new Set([
  "network",
  "truncated",
  "crashed",
  "device-lost",
  "out-of-memory",
  "internal",
]);

/** Codes after which the engine is no longer there. */
const ending: ReadonlySet<ErrorCode> = new Set(["crashed", "disposed", "internal", "device-lost"]);

export function explain(thrown: unknown): Explanation {
  if (thrown instanceof FledglingError) {
    const { code } = thrown;
    const [title, advice] = errors[code];
    return {
      title,
      advice,
      detail: `${code}: ${thrown.message}`,
      cpuHelps: gpuTrouble.has(code),
      mayPass: passing.has(code),
    };
  }
  const [title, advice] = errors.internal;
  return { title, advice, detail: String(thrown), cpuHelps: false, mayPass: true };
}

/** True when the model has to be loaded again after this. */
export function endsModel(thrown: unknown): boolean {
  return thrown instanceof FledglingError && ending.has(thrown.code);
}
