// @ts-check
/**
 * Speed, memory and size of the CPU engine in a real Chromium, beside wllama (llama.cpp in WebAssembly): the same file,
 * prompt and one thread, in turns, each round in a browser of its own. `cargo xtask bench web` calls it:
 *
 *   node e2e/bench.mjs --peer FOLDER [--tokens 64] [--rounds 3] FILE.gguf…
 *
 * FOLDER holds `node_modules/@wllama/wllama`. Prints one row of medians for each file and program.
 */

import { readFile, readdir } from "node:fs/promises";
import { cpus } from "node:os";
import { basename, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { launchServer } from "./browser.mjs";
import { serve } from "./serve.mjs";
import { bundle, gzipBytes } from "./size.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const wllama = "/node_modules/@wllama/wllama/esm";
const blank = `<!doctype html><title>bench</title><link rel="icon" href="data:,">`;

/** A chat of 126 tokens in SmolLM2's form. */
const prompt = `<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
<|im_start|>user
The lighthouse keeper climbed the spiral stairs every evening to light the great lamp. From the top she could see the fishing boats returning to the harbour, the gulls circling above them, and the long grey line of the mainland far away. One night a storm came from the north and the lamp would not light. She took a small lantern, tied it to the railing, and stayed awake until the morning. Tell me how the story of the lighthouse keeper and her lantern should continue<|im_end|>
<|im_start|>assistant
`;

/**
 * @typedef {{ prompt: string, tokens: number }} Asked
 * @typedef {{ loadMs: number, promptTokens: number, prefill: number, decode: number, text: string }} Measured
 * @typedef {{ name: string, folder: string, bundle: string[], measure: (asked: Asked) => Promise<Measured> }} Program
 */

/** Runs inside the page. @param {Asked} asked @returns {Promise<Measured>} */
async function ours({ prompt, tokens }) {
  const address = "/lib/index.js";
  /** @type {unknown} */
  const module = await import(address);
  const { Fledgling } = /** @type {typeof import("../src/index.js")} */ (module);
  const blob = await (await fetch("/model.gguf")).blob();
  const startedAt = performance.now();
  const model = await Fledgling.load(blob, { device: "cpu", nCtx: 1024 });
  const loadMs = performance.now() - startedAt;
  await model.generate("Hello there, my friend", { maxTokens: 4 }).finish();
  const { timings, promptTokens, text } = await model.generate(prompt, { maxTokens: tokens }).finish();
  return {
    loadMs,
    promptTokens: promptTokens.length,
    prefill: (promptTokens.length * 1000) / timings.timeToFirstTokenMs,
    decode: timings.tokensPerSecond ?? 0,
    text,
  };
}

/**
 * What is used of the peer, whose package is not among ours.
 *
 * @typedef {{ prompt_n: number, prompt_per_second: number, predicted_per_second: number }} PeerTimings
 * @typedef {{ choices?: { text?: string }[], timings?: PeerTimings }} PeerChunk
 * @typedef {{
 *   setCompat?: (compat: null) => void,
 *   loadModel: (blobs: Blob[], options: object) => Promise<void>,
 *   createCompletion: (options: object) => Promise<AsyncIterable<PeerChunk>>,
 * }} Peer
 * @typedef {{ Wllama: new (paths: object, options: object) => Peer }} PeerModule
 */

/** Runs inside the page. @param {Asked} asked @returns {Promise<Measured>} */
async function theirs({ prompt, tokens }) {
  const address = "/node_modules/@wllama/wllama/esm/index.min.js";
  const wasm = "/node_modules/@wllama/wllama/esm/wasm/wllama.wasm";
  /** @type {unknown} */
  const module = await import(address);
  const { Wllama } = /** @type {PeerModule} */ (module);
  const blob = await (await fetch("/model.gguf")).blob();
  const silent = () => undefined;
  const logger = { debug: silent, log: silent, warn: silent, error: silent };
  const model = new Wllama({ default: wasm }, { logger });
  model.setCompat?.(null);
  const startedAt = performance.now();
  await model.loadModel([blob], { n_ctx: 1024, n_threads: 1, n_gpu_layers: 0, n_parallel: 1 });
  const loadMs = performance.now() - startedAt;
  const write = async (/** @type {string} */ text, /** @type {number} */ n) => {
    let written = "";
    /** @type {PeerTimings | undefined} */
    let timings;
    const stream = await model.createCompletion({
      prompt: text,
      max_tokens: n,
      temperature: 0,
      top_k: 1,
      stream: true,
      cache_prompt: false,
      timings_per_token: true,
    });
    for await (const chunk of stream) {
      written += chunk.choices?.[0]?.text ?? "";
      timings = chunk.timings ?? timings;
    }
    if (!timings) throw new Error("wllama told no timings");
    return { timings, written };
  };
  await write("Hello there, my friend", 4);
  const { timings, written } = await write(prompt, tokens);
  return {
    loadMs,
    promptTokens: timings.prompt_n,
    prefill: timings.prompt_per_second,
    decode: timings.predicted_per_second,
    text: written,
  };
}

/** The most memory that a renderer of this browser has had, in bytes. @param {number} browserPid */
async function rendererPeakBytes(browserPid) {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name)).map(Number);
  /** @type {Map<number, { parent: number, peak: number }>} */
  const processes = new Map();
  for (const pid of pids) {
    const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
    const command = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
    const field = (/** @type {string} */ name) =>
      Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(status)?.[1] ?? 0);
    const peak = command.includes("--type=renderer") ? 1024 * field("VmHWM") : 0;
    processes.set(pid, { parent: field("PPid"), peak });
  }
  const isOurs = (/** @type {number} */ pid) => {
    for (let at = pid; at > 1; at = processes.get(at)?.parent ?? 0) if (at === browserPid) return true;
    return false;
  };
  return Math.max(0, ...[...processes].filter(([pid]) => isOurs(pid)).map(([, { peak }]) => peak));
}

/** @param {Program} program @param {string} model @param {Asked} asked */
async function run(program, model, asked) {
  const served = await serve(program.folder, {
    files: { "/model.gguf": model },
    routes: {
      "/": (_, response) => void response.writeHead(200, { "content-type": "text/html" }).end(blank),
    },
  });
  const { browser, pid, close } = await launchServer();
  try {
    const page = await browser.newPage();
    page.setDefaultTimeout(300_000);
    await page.goto(`${served.base}/`);
    const measured = await page.evaluate(program.measure, asked);
    return { ...measured, peakBytes: await rendererPeakBytes(pid) };
  } finally {
    await close();
    await served.close();
  }
}

/** @param {number[]} values */
const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      peer: { type: "string" },
      tokens: { type: "string", default: "64" },
      rounds: { type: "string", default: "3" },
    },
  });
  if (!values.peer || positionals.length === 0) throw new Error("--peer FOLDER and a model are needed");
  const asked = { prompt, tokens: Number(values.tokens) };
  /** @type {Program[]} */
  const programs = [
    {
      name: "Fledgling",
      folder: root,
      bundle,
      measure: ours,
    },
    {
      name: "wllama",
      folder: resolve(values.peer),
      bundle: [`${wllama}/index.min.js`, `${wllama}/wasm/wllama.wasm`],
      measure: theirs,
    },
  ];
  console.log(
    `${cpus()[0]?.model ?? "unknown CPU"}, ${cpus().length} cores; one thread; medians of ${values.rounds} rounds`,
  );
  console.log(
    "| file | program | load ms | prefill tokens/s | decode tokens/s | renderer MB | js + wasm, gzip kB |",
  );
  console.log("|---|---|--:|--:|--:|--:|--:|");
  for (const model of positionals.map((path) => resolve(path))) {
    /** @type {Awaited<ReturnType<typeof run>>[][]} */
    const rounds = [];
    for (let i = 0; i < Number(values.rounds); i++) {
      const round = [];
      for (const program of programs) round.push(await run(program, model, asked));
      rounds.push(round);
    }
    for (const [i, program] of programs.entries()) {
      const of = (/** @type {"loadMs" | "prefill" | "decode" | "peakBytes"} */ key) =>
        median(rounds.flatMap((round) => round[i]?.[key] ?? []));
      const kb = (await gzipBytes(program.folder, program.bundle)) / 1000;
      const cells = [of("loadMs"), of("prefill"), of("decode"), of("peakBytes") / 1e6, kb];
      const name = basename(model);
      console.log(
        `| ${name} | ${program.name} | ${cells.map((cell) => cell.toFixed(cell < 100 ? 1 : 0)).join(" | ")} |`,
      );
    }
    const [one, other] = rounds[0] ?? [];
    if (one && other) {
      let same = 0;
      while (same < one.text.length && one.text[same] === other.text[same]) same += 1;
      const verdict = one.text === other.text ? "are the same" : `part after ${same} characters`;
      console.log(`prompt of ${one.promptTokens} and ${other.promptTokens} tokens; texts ${verdict}`);
    }
  }
}

main().catch((/** @type {unknown} */ error) => {
  process.stderr.write(`bench: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
});
