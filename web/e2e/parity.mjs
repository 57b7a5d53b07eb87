// @ts-check
/**
 * Greedy tokens of a model from a real browser, through the built package, as one line of JSON:
 *
 *   node e2e/parity.mjs --model FILE --prompt TEXT --device webgpu --max-tokens 32 [--chat]
 *
 * prints {"device":{"kind","name","reason"},"promptTokens":[…],"tokenIds":[…],"text":…,"finishReason":…,
 * "tokensPerSecond":…,"timeToFirstTokenMs":…,"loadMs":…}. `--chat` sends the prompt through the file's
 * chat template. Exit code 1 and a sentence on standard error when anything fails.
 */

import { access } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { launch } from "./browser.mjs";
import { serve } from "./serve.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));

/** A page without an icon, so that the browser asks for none. */
const blank = `<!doctype html><title>parity</title><link rel="icon" href="data:,">`;

/** @typedef {{ prompt: string, device: "auto" | "webgpu" | "cpu", chat: boolean, maxTokens: number }} Asked */

/** @returns {Asked & { model: string, timeoutMs: number }} */
function readArguments() {
  const { values } = parseArgs({
    options: {
      model: { type: "string" },
      prompt: { type: "string" },
      device: { type: "string", default: "webgpu" },
      "max-tokens": { type: "string", default: "32" },
      chat: { type: "boolean", default: false },
      "timeout-s": { type: "string", default: "300" },
    },
  });
  const { model, prompt, device, chat } = values;
  if (!model || prompt === undefined) throw new Error("--model FILE and --prompt TEXT are needed");
  if (device !== "auto" && device !== "webgpu" && device !== "cpu") {
    throw new Error(`--device is auto, webgpu or cpu, not ${device}`);
  }
  const maxTokens = Number(values["max-tokens"]);
  if (!Number.isInteger(maxTokens) || maxTokens < 1) throw new Error("--max-tokens is a positive number");
  const timeoutMs = 1000 * Number(values["timeout-s"]);
  return { model: resolve(model), prompt, device, chat, maxTokens, timeoutMs };
}

async function main() {
  const { model, timeoutMs, ...asked } = readArguments();
  await access(model);
  for (const built of ["lib/index.js", "wasm/fledgling_wasm.js"]) {
    await access(`${root}/${built}`).catch(() => {
      throw new Error(`web/${built} is missing: build with cargo xtask web`);
    });
  }
  const served = await serve(root, {
    files: { "/model.gguf": model },
    routes: {
      "/": (_, response) => {
        response.writeHead(200, { "content-type": "text/html" }).end(blank);
      },
    },
  });
  const browser = await launch();
  try {
    const page = await browser.newPage();
    page.on("console", (message) => {
      process.stderr.write(`browser: ${message.text()}\n`);
    });
    await page.goto(`${served.base}/`);
    /** @type {Promise<never>} */
    const deadline = new Promise((_, reject) => {
      setTimeout(() => {
        reject(new Error(`no result within ${timeoutMs / 1000} s`));
      }, timeoutMs).unref();
    });
    const answer = await Promise.race([page.evaluate(generate, asked), deadline]);
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  } finally {
    await browser.close();
    await served.close();
  }
}

/**
 * Runs inside the page.
 *
 * @param {Asked} asked
 */
async function generate({ prompt, device, chat, maxTokens }) {
  const address = "/lib/index.js";
  /** @type {unknown} */
  const module = await import(address);
  const { Fledgling } = /** @type {typeof import("../src/index.js")} */ (module);
  try {
    const startedAt = performance.now();
    const model = await Fledgling.load("/model.gguf", { device });
    const loadMs = performance.now() - startedAt;
    const generation = chat
      ? model.chat([{ role: "user", content: prompt }], { maxTokens, temperature: 0 })
      : model.generate(prompt, { maxTokens, temperature: 0 });
    const { timings, ...result } = await generation.finish();
    return { device: model.device, ...result, ...timings, loadMs };
  } catch (thrown) {
    // Only the message of an error comes back through the browser's protocol: keep its code.
    const code = thrown instanceof Error && "code" in thrown ? `${String(thrown.code)}: ` : "";
    throw new Error(`${code}${thrown instanceof Error ? thrown.message : String(thrown)}`, { cause: thrown });
  }
}

main().catch((/** @type {unknown} */ error) => {
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`parity: ${message}\n`);
  process.exitCode = 1;
});
