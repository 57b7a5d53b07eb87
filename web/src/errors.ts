/**
 * One error class with a stable `code`, on both sides of the worker boundary.
 *
 * The first thirteen codes come from the engine (runtime-wasm); the others are this package's own.
 */

export const errorCodes = [
  "not-gguf",
  "truncated",
  "unsupported-model",
  "no-tokenizer",
  "no-webgpu",
  "device-lost",
  "out-of-memory",
  "prompt-too-long",
  "bad-option",
  "no-chat-template",
  "busy",
  "disposed",
  "internal",
  /** The download failed: no connection, a status that is not 2xx, or a refusal by CORS. */
  "network",
  /** The worker died or could not be started. */
  "crashed",
] as const;

export type ErrorCode = (typeof errorCodes)[number];

/** An error as plain data, for the way through `postMessage`. */
export interface ErrorData {
  readonly code: ErrorCode;
  readonly message: string;
}

export class FledglingError extends Error {
  override readonly name = "FledglingError";
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

function isErrorCode(code: unknown): code is ErrorCode {
  return (errorCodes as readonly unknown[]).includes(code);
}

/** What was thrown, as data. A thing without a known code is `internal`, or `out-of-memory` if it says so. */
export function toErrorData(thrown: unknown): ErrorData {
  if (!(thrown instanceof Error)) return { code: "internal", message: String(thrown) };
  const code = "code" in thrown ? thrown.code : undefined;
  if (isErrorCode(code)) return { code, message: thrown.message };
  // A buffer that the browser cannot allocate is a RangeError without a code.
  if (thrown instanceof RangeError && /alloc|memory/i.test(thrown.message)) {
    return { code: "out-of-memory", message: thrown.message };
  }
  return { code: "internal", message: `${thrown.name}: ${thrown.message}` };
}

/** The error that crossed the boundary, as an `Error` again. */
export function fromErrorData(data: ErrorData): FledglingError {
  return new FledglingError(data.code, data.message);
}
