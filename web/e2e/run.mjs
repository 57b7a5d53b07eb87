// @ts-check
/**
 * The page in a real browser, as a person uses it:
 *
 *   npm run e2e -- --model FILE                      serves web/dist itself
 *   npm run e2e -- --model FILE --base-url URL       the page of a running `fledgling serve`
 *
 * Loads the model on WebGPU and on the CPU, reads a streamed answer, stops one, hands it a foreign file,
 * and with `--base-url` compares with the API. Screenshots go to web/test-results/. Exit code 1 on the first failure.
 */

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { launch } from "./browser.mjs";
import { serve } from "./serve.mjs";

/** @typedef {import("playwright-core").Page} Page */

const root = fileURLToPath(new URL("..", import.meta.url));
const results = `${root}/test-results`;
const question = "What is the capital of France?";
const sizes = [
  { width: 390, height: 844 },
  { width: 768, height: 1024 },
  { width: 1440, height: 900 },
];

const { values } = parseArgs({
  options: {
    model: { type: "string" },
    "base-url": { type: "string" },
    dist: { type: "string", default: `${root}/dist` },
    device: { type: "string", multiple: true, default: ["webgpu", "cpu"] },
    "timeout-s": { type: "string", default: "180" },
  },
});
const timeout = 1000 * Number(values["timeout-s"]);

/** A page that fails the run when anything is thrown in it or asked of another host. */
async function open(
  /** @type {import("playwright-core").BrowserContext} */ context,
  /** @type {string} */ base,
) {
  const page = await context.newPage();
  page.setDefaultTimeout(timeout);
  /** @type {string[]} */
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(error.message));
  page.on("console", (message) => {
    // A static host has no shelf and no API: their 404 are expected.
    if (message.type() === "error" && !message.text().includes("404")) wrong.push(message.text());
  });
  page.on("request", (request) => {
    if (/^https?:/.test(request.url()) && !request.url().startsWith(base))
      wrong.push(`asked ${request.url()}`);
  });
  return { page, wrong };
}

/** @param {Page} page */
const answers = (page) => page.locator(".answer .text");

/** @param {Page} page @param {string} text */
async function ask(page, text) {
  await page.fill("#prompt", text);
  await page.keyboard.press("Enter");
}

/** @param {Page} page */
async function finished(page) {
  await page.waitForSelector("#send:visible");
}

/** Makes answers longer or shorter by the settings dialog. @param {Page} page @param {number} tokens */
async function setLongest(page, tokens) {
  await page.click("#settings-button");
  await page.fill("#setting-maxTokens", String(tokens));
  await page.keyboard.press("Escape");
}

/** @param {Page} page @param {string} device */
async function answersAndStops(page, device) {
  await page.waitForSelector("#empty:visible");
  const line = await page.textContent("#device-line");
  assert.match(line ?? "", device === "cpu" ? /CPU/ : /WebGPU/, `runs on ${device}`);
  await setLongest(page, 24);
  await ask(page, question);
  const lengths = await watchGrowth(page);
  await finished(page);
  const text = (await answers(page).last().textContent()) ?? "";
  assert.ok(text.trim().length > 0, "there is an answer");
  assert.ok(lengths.size >= 3, `the text streams: ${lengths.size} lengths were seen`);
  const facts = (await page.locator(".facts").last().textContent()) ?? "";
  assert.match(facts, /\d+ tokens.*tokens\/s/, "the speed is told");
  console.log(`ok  ${device}: ${line}: “${text.trim().slice(0, 60)}…” (${facts})`);
  await stops(page, device);
}

/** The lengths of the last answer while it is written. @param {Page} page */
async function watchGrowth(page) {
  const lengths = new Set();
  await page.waitForSelector("#stop:visible");
  while (await page.isVisible("#stop")) {
    lengths.add(((await answers(page).last().textContent()) ?? "").length);
    await page.waitForTimeout(15);
  }
  return lengths;
}

/** @param {Page} page @param {string} device */
async function stops(page, device) {
  await setLongest(page, 400);
  await ask(page, "Write a long story about a young bird.");
  await page.waitForFunction(
    () => (document.querySelector(".turn:last-child .text")?.textContent ?? "").length > 10,
  );
  const before = Date.now();
  await page.keyboard.press("Escape");
  await finished(page);
  const facts = (await page.locator(".facts").last().textContent()) ?? "";
  assert.match(facts, /stopped/, "the answer says that it was stopped");
  console.log(`ok  ${device}: Escape stops within ${Date.now() - before} ms`);
}

/** @param {Page} page */
async function refusesForeignFile(page) {
  const photo = {
    name: "photo.jpg",
    mimeType: "image/jpeg",
    buffer: Buffer.from("\xff\xd8\xff\xe0 JFIF", "latin1"),
  };
  await page.setInputFiles("#file", photo);
  await page.waitForSelector("#load-error:visible");
  assert.equal(await page.textContent("#load-error-title"), "This is not a GGUF file");
  assert.match((await page.textContent("#load-error-detail")) ?? "", /^photo.jpg\nnot-gguf: /);
  console.log("ok  a foreign file is refused with what to do");
}

/** @param {Page} page */
async function hereAndThereAgree(page) {
  await page.click("#clear");
  await setLongest(page, 24);
  await page.click("#beside-button");
  await page.check("input[name=beside][value=server]");
  await page.getByRole("button", { name: "Use it" }).click();
  await ask(page, question);
  await page.waitForSelector(".verdict[data-equal]");
  const verdict = await page.textContent(".verdict");
  assert.equal(await page.getAttribute(".verdict", "data-equal"), "true", verdict ?? "");
  console.log(`ok  here and there: ${verdict}`);
}

/** @param {Page} page @param {string} name */
async function takeScreenshots(page, name) {
  for (const colorScheme of /** @type {const} */ (["light", "dark"])) {
    await page.emulateMedia({ colorScheme });
    for (const size of sizes) {
      await page.setViewportSize(size);
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(overflow <= 0, `${name} at ${size.width} is ${overflow} px too wide`);
      await page.screenshot({ path: `${results}/${name}-${size.width}-${colorScheme}.png` });
    }
  }
  await page.emulateMedia({ colorScheme: "light" });
}

async function main() {
  if (!values.model) throw new Error("--model FILE is needed");
  const model = resolve(values.model);
  await mkdir(results, { recursive: true });
  const served = values["base-url"] ? undefined : await serve(values.dist, { files: { "/m.gguf": model } });
  const base = served?.base ?? values["base-url"] ?? "";
  const browser = await launch();
  try {
    const context = await browser.newContext();
    for (const device of values.device) {
      const { page, wrong } = await open(context, base);
      const address = served ? `?device=${device}&model=m.gguf` : `?device=${device}`;
      await page.goto(`${base}/${address}`);
      await answersAndStops(page, device);
      if (!served) await hereAndThereAgree(page);
      await takeScreenshots(page, `talk-${device}`);
      assert.deepEqual(wrong, []);
      await page.close();
    }
    const { page, wrong } = await open(context, base);
    await page.goto(`${base}/?device=cpu`);
    if (served) await takeScreenshots(page, "welcome");
    await refusesForeignFile(page);
    await takeScreenshots(page, "error");
    await page.setInputFiles("#file", model);
    await page.waitForSelector("#empty:visible");
    console.log("ok  the file picker loads the model");
    await takeScreenshots(page, "ready");
    assert.deepEqual(wrong, []);
  } finally {
    await browser.close();
    await served?.close();
  }
}

main().catch((/** @type {unknown} */ error) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
