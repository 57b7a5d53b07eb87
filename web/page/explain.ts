/** What each error means to the person before the page, and what to do about it. */

import { FledglingError, type ErrorCode } from "../src/index.js";

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

const explanations: Record<ErrorCode, readonly [title: string, advice: string]> = {
  "not-gguf": [
    "This is not a GGUF file",
    "Choose a file that ends in .gguf, such as one written by fledgling export or downloaded for llama.cpp.",
  ],
  truncated: [
    "The file is not whole",
    "It ends before its last weight. Download or copy it again, and compare its size with the original.",
  ],
  "unsupported-model": [
    "This model is of a kind that does not run here",
    "Models of the GPT-2 and Llama families run, with weights in F32, F16, BF16, Q8_0, Q4_0 or Q4_1. Export yours with fledgling export --quant q8_0.",
  ],
  "no-tokenizer": [
    "The file has no tokenizer",
    "Without one, text cannot become tokens. Export the model again with fledgling export, which puts it in.",
  ],
  "no-webgpu": [
    "This browser offers no WebGPU",
    "Use the CPU instead: it is slower and gives the same text. Or try a current Chrome, Edge, Safari or Firefox, with hardware acceleration switched on.",
  ],
  "device-lost": [
    "The GPU was lost",
    "The driver reset it, or another program needed it. Load the model again; if it happens again, use the CPU.",
  ],
  "out-of-memory": [
    "There is not enough memory for this model",
    "Close other tabs, set a smaller context in the settings, or take a smaller file (Q8_0 or Q4_0).",
  ],
  "prompt-too-long": [
    "That is longer than the model can read",
    "Shorten it, begin a new conversation, or set a larger context in the settings if the model has one.",
  ],
  "bad-option": [
    "One of the settings cannot be used",
    "Put the settings back to their defaults and try again.",
  ],
  "no-chat-template": [
    "This model cannot chat",
    "Its file has no chat template. Switch to Complete: it continues the text that you write.",
  ],
  busy: ["The model is still writing", "Wait for the end of its answer, or stop it with Escape."],
  disposed: ["The model is no longer loaded", "Load it again."],
  internal: [
    "Something went wrong inside the engine",
    "Load the model again. If it happens again, please report it with the details below.",
  ],
  network: [
    "The file could not be downloaded",
    "Check the address and the connection. A server on another site must allow it (CORS); else download the file and drop it here.",
  ],
  crashed: [
    "The engine stopped unexpectedly",
    "Load the model again. The most common reason is memory: close other tabs or take a smaller model.",
  ],
};

const gpuTrouble: ReadonlySet<ErrorCode> = new Set(["no-webgpu", "device-lost", "out-of-memory", "internal"]);

const passing: ReadonlySet<ErrorCode> = new Set([
  "network",
  "truncated",
  "crashed",
  "device-lost",
  "out-of-memory",
  "internal",
]);

export function explain(thrown: unknown): Explanation {
  if (thrown instanceof FledglingError) {
    const [title, advice] = explanations[thrown.code];
    const { code } = thrown;
    return {
      title,
      advice,
      detail: `${code}: ${thrown.message}`,
      cpuHelps: gpuTrouble.has(code),
      mayPass: passing.has(code),
    };
  }
  const [title, advice] = explanations.internal;
  return { title, advice, detail: String(thrown), cpuHelps: false, mayPass: true };
}
