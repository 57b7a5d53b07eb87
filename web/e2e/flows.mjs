// @ts-check
/**
 * What a person does on the page, in a real browser, with the fake engine (which repeats what it is told), so that
 * it takes seconds and says the same every time:
 *
 *   npm run flows [-- --only TEXT]      after npm run build:fake
 *
 * The page lies in a sub-folder of its host. Screenshots go to web/test-results/. Exit code 1 when a flow fails.
 */

import assert from "node:assert/strict";
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { launch } from "./browser.mjs";
import { serve } from "./serve.mjs";

/** @typedef {import("playwright-core").Page} Page */
/** @typedef {import("playwright-core").BrowserContext} Context */
/** @typedef {{ violations: { id: string, impact: string, nodes: { html: string }[] }[] }} Axe */
/** @typedef {PerformanceEntry & { value: number, hadRecentInput: boolean }} Shift */
/** @typedef {{ page: Page, context: Context, base: string, host: Host }} Visit */

const root = fileURLToPath(new URL("..", import.meta.url));
const results = `${root}/test-results`;
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const { values } = parseArgs({ options: { only: { type: "string", default: "" } } });

const widths = [390, 768, 1440];
const schemes = /** @type {const} */ (["light", "dark"]);

/** A header that the shelf can read, and bytes that take a while to arrive. */
function modelFile() {
  const text = (/** @type {string} */ value) => {
    const length = Buffer.alloc(8);
    length.writeUInt32LE(value.length);
    return Buffer.concat([length, Buffer.from(value)]);
  };
  const u32 = (/** @type {number} */ value) => Buffer.from(Uint32Array.of(value).buffer);
  const float = (/** @type {number} */ value) => Buffer.from(Float64Array.of(value).buffer);
  const entries = [
    [text("general.file_type"), u32(4), u32(7)],
    [text("fledgling.run.name"), u32(8), text("birds")],
    [text("fledgling.base_model"), u32(8), text("SmolLM2")],
    [text("fledgling.data.rows"), u32(4), u32(1200)],
    [text("fledgling.eval.perplexity"), u32(12), float(12.4142)],
  ];
  const head = [Buffer.from("GGUF"), u32(3), Buffer.alloc(8), u32(entries.length), Buffer.alloc(4)];
  return Buffer.concat([...head, ...entries.flat(), Buffer.alloc(4_000_000)]);
}

class Host {
  bytesPerS = Infinity;
  /** What the API was sent last. */
  asked = "";
  /** @type {import("./serve.mjs").Served | undefined} */
  served;
  folder = "";

  async start() {
    this.folder = await mkdtemp(join(tmpdir(), "fledgling-flows-"));
    await symlink(join(root, "dist-fake"), join(this.folder, "sub"));
    await writeFile(join(this.folder, "model.gguf"), modelFile());
    const model = join(this.folder, "model.gguf");
    const offered = ["small.gguf", "large.gguf"].map((name, i) => ({
      name,
      url: `models/${name}`,
      sizeBytes: 4_000_000 * (i + 1),
    }));
    this.served = await serve(this.folder, {
      files: { "/sub/models/small.gguf": model, "/sub/models/large.gguf": model },
      bytesPerS: () => this.bytesPerS,
      routes: {
        "/sub/models.json": (_, response) => {
          response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(offered));
        },
        "/api/v1/models": (request, response) => {
          const allowed = request.headers.authorization === "Bearer right";
          response.writeHead(allowed ? 200 : 401, { "content-type": "application/json" });
          response.end(
            JSON.stringify(allowed ? { data: [{ id: "echo" }] } : { error: { message: "the key is wrong" } }),
          );
        },
        "/api/v1/chat/completions": (request, response) => {
          void this.echo(request, response);
        },
      },
    });
    return `${this.served.base}/sub/`;
  }

  /**
   * Repeats the last message as the fake engine does, or says something else when asked to differ.
   *
   * @param {import("node:http").IncomingMessage} request
   * @param {import("node:http").ServerResponse} response
   */
  async echo(request, response) {
    this.asked = "";
    for await (const chunk of /** @type {AsyncIterable<Buffer>} */ (request)) this.asked += chunk.toString();
    const last = /"content":"([^"]*)"\}\]/.exec(this.asked)?.[1] ?? "";
    const said = last.includes("differ") ? "Something else." : last;
    response.writeHead(200, { "content-type": "text/event-stream" });
    const send = (/** @type {unknown} */ data) => response.write(`data: ${JSON.stringify(data)}\n\n`);
    for (const piece of said.match(/\s*\S+/g) ?? []) send({ choices: [{ delta: { content: piece } }] });
    send({ choices: [{ delta: {}, finish_reason: "stop" }] });
    send({ choices: [], usage: { completion_tokens: 3, prompt_tokens: 5 } });
    response.end("data: [DONE]\n\n");
  }

  async stop() {
    await this.served?.close();
    this.served = undefined;
    await rm(this.folder, { recursive: true });
  }
}

/** @param {Page} page @param {string} text */
async function ask(page, text) {
  await page.fill("#prompt", text);
  await page.keyboard.press("Enter");
}

/** @param {Page} page */
async function finished(page) {
  await page.waitForSelector("#send:visible");
}

/** @param {Page} page @param {string} text */
async function askAndWait(page, text) {
  await ask(page, text);
  await page.waitForSelector("#stop:visible");
  await finished(page);
}

/** @param {Visit} visit */
async function loaded({ page, base }) {
  await page.goto(`${base}?device=cpu&model=models/small.gguf`);
  await page.waitForSelector("#empty:visible");
}

/** Nothing serious that axe finds. @param {Page} page @param {string} where */
async function accessible(page, where) {
  await page.evaluate(axe);
  const found = await page.evaluate(async () => {
    const { axe: run } = /** @type {{ axe: { run(): Promise<Axe> } }} */ (
      /** @type {unknown} */ (globalThis)
    );
    return (await run.run()).violations.map(({ id, impact, nodes }) => ({
      id,
      impact,
      nodes: nodes.map(({ html }) => html.slice(0, 120)),
    }));
  });
  const serious = found.filter(({ impact }) => impact === "serious" || impact === "critical");
  assert.deepEqual(serious, [], `axe on ${where}`);
}

/** Each width in each colour scheme: nothing too wide, nothing serious for axe. @param {Page} page @param {string} name */
async function looksRight(page, name) {
  for (const colorScheme of schemes) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    for (const width of widths) {
      await page.setViewportSize({ width, height: width < 700 ? 844 : 900 });
      await page.waitForTimeout(100);
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(overflow <= 0, `${name} at ${width} is ${overflow} px too wide`);
      await page.screenshot({ path: `${results}/${name}-${width}-${colorScheme}.png` });
      await accessible(page, `${name} at ${width}, ${colorScheme}`);
    }
  }
  await page.emulateMedia({ colorScheme: "light", reducedMotion: "no-preference" });
  await page.setViewportSize({ width: 1440, height: 900 });
}

/** @type {Record<string, (visit: Visit) => Promise<void>>} */
const flows = {
  async "first visit"({ page, base }) {
    const startedAt = Date.now();
    await page.goto(base);
    await page.waitForSelector("#start:visible");
    console.log(`    ready to be used after ${Date.now() - startedAt} ms`);
    assert.equal((await page.textContent(".hello .lead"))?.match(/\./g)?.length, 3, "three sentences");
    assert.match((await page.textContent("#start")) ?? "", /smallest.*4\.0 MB/);
    const first = page.locator("#shelf-list li").first();
    await first.getByText("perplexity").waitFor();
    assert.match(
      (await first.textContent()) ?? "",
      /small\.gguf4\.0 MB · Q8_0fine-tuned on 1,200 rows from SmolLM2 · perplexity 12\.41/,
    );
    await looksRight(page, "models");
  },

  async "loading: bytes, cancel, resume, delete"({ page, base, host }) {
    host.bytesPerS = 2_000_000;
    await page.goto(base);
    await page.click("#start");
    await page.waitForFunction(() =>
      /MB of .* MB · .*\/s/.test(document.querySelector("#loading-numbers")?.textContent ?? ""),
    );
    await page.screenshot({ path: `${results}/loading.png` });
    await page.click("#cancel-load");
    const row = page.locator("#shelf-list li").first();
    await row.getByText("are here").waitFor();
    host.bytesPerS = Infinity;
    await row.getByRole("button", { name: "Resume small.gguf" }).click();
    await page.waitForSelector("#empty:visible");
    await page.click("#model-button");
    await row.getByText("In use").waitFor();
    await page.getByText(/used of .* that the browser allows/).waitFor();
    await row.getByRole("button", { name: "Delete small.gguf" }).click();
    await page.click("#confirm button[value=yes]");
    await page.waitForSelector("#kept", { state: "hidden" });
    await page.click("#back-to-talk");
    await page.waitForSelector("#prompt:focus");
  },

  async "a foreign file and a wrong address say what to do"({ page, base }) {
    await page.goto(base);
    await page.fill("#address", `${base}models/none.gguf`);
    await page.keyboard.press("Enter");
    await page.waitForSelector("#load-error:visible");
    assert.match((await page.textContent("#load-error-detail")) ?? "", /network: .*404/);
    const photo = {
      name: "photo.jpg",
      mimeType: "image/jpeg",
      buffer: Buffer.from("\xff\xd8\xff\xe0 JFIF", "latin1"),
    };
    await page.setInputFiles("#file", photo);
    await page.getByText("This is not a GGUF file").waitFor();
    await looksRight(page, "error");
  },

  async "streamed Markdown is safe, and the page does not jump"(visit) {
    const { page } = visit;
    await loaded(visit);
    const text = [
      "# Title\n\nSome **bold** text with `code`.\n\n```python\nfor i in range(3):\n    print(i)\n```\n\n- one\n- two\n",
      "| a | b |\n|---|---|\n| 1 | 2 |\n\n<script>alert(1)</script> <img src=x onerror=alert(1)>",
      "[bad](javascript:alert(1)) ![pic](https://example.org/x.png) [good](https://example.org/)",
    ].join("\n");
    await ask(page, text);
    await page.waitForSelector("#stop:visible");
    await page.evaluate(() => {
      document.body.dataset.shifted = "0";
      new PerformanceObserver((list) => {
        for (const entry of /** @type {Shift[]} */ (list.getEntries())) {
          if (entry.hadRecentInput) continue;
          document.body.dataset.shifted = String(Number(document.body.dataset.shifted) + entry.value);
        }
      }).observe({ type: "layout-shift", buffered: false });
    });
    await finished(page);
    const answer = page.locator(".answer .text");
    assert.equal(await answer.locator("script, img, [onerror]").count(), 0);
    assert.deepEqual(
      await answer.locator("a").evaluateAll((links) => links.map((link) => link.getAttribute("href"))),
      [null, "https://example.org/"],
    );
    assert.match((await answer.textContent()) ?? "", /<script>alert\(1\)<\/script>/, "tags are text");
    assert.equal(await answer.locator(".code-bar span").textContent(), "python");
    await answer.locator(".code button").click();
    assert.equal(
      await page.evaluate(() => navigator.clipboard.readText()),
      "for i in range(3):\n    print(i)\n",
    );
    const shifted = Number(await page.getAttribute("body", "data-shifted"));
    console.log(`    layout shift while streaming: ${shifted.toFixed(4)}`);
    assert.ok(shifted < 0.1, "no layout jump while streaming");
    await looksRight(page, "talk");
  },

  async "Enter sends, Shift+Enter breaks, Escape stops"(visit) {
    const { page } = visit;
    await loaded(visit);
    await page.focus("#prompt");
    await page.keyboard.type("one");
    await page.keyboard.press("Shift+Enter");
    await page.keyboard.type(`two ${"more ".repeat(200)}`);
    assert.match(await page.inputValue("#prompt"), /^one\ntwo/);
    await page.keyboard.press("Enter");
    await page.waitForFunction(
      () => (document.querySelector(".answer .text")?.textContent ?? "").length > 20,
    );
    await page.keyboard.press("Escape");
    await finished(page);
    assert.match((await page.textContent(".facts")) ?? "", /stopped/);
  },

  async "another answer, an edit, branches, and a visit later"(visit) {
    const { page, base } = visit;
    await loaded(visit);
    await askAndWait(page, "First question");
    await askAndWait(page, "Second question");
    await page.locator(".turn").last().getByRole("button", { name: "Another answer" }).click();
    await page.getByText("temperature 0.7, seed 2").waitFor();
    await page.locator(".turn").last().getByRole("button", { name: "Earlier version" }).click();
    await page.getByText("1 of 2").waitFor();
    await page.locator(".turn").first().hover();
    await page.locator(".turn").first().getByRole("button", { name: "Edit" }).click();
    await page.keyboard.press("Control+A");
    await page.keyboard.type("Edited question");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#stop:visible");
    await finished(page);
    assert.equal(await page.locator(".turn").count(), 1, "the edit is a branch of its own");
    await page.locator(".turn").first().getByRole("button", { name: "Earlier version" }).click();
    assert.equal(await page.locator(".turn").count(), 2, "and the old one is still there");
    await page.goto(base);
    await page.getByRole("button", { name: "First question", exact: true }).click();
    assert.deepEqual(await page.locator(".asked").allTextContents(), ["First question", "Second question"]);
    assert.ok(await page.isDisabled("#send"), "nobody answers without a model");
  },

  async "export, and deletion for good"(visit) {
    const { page } = visit;
    await loaded(visit);
    await askAndWait(page, "Keep this");
    for (const [id, ending, holds] of /** @type {const} */ ([
      ["#export-markdown", ".md", "## You\n\nKeep this"],
      ["#export-json", ".json", '"messages"'],
    ])) {
      await page.click("#more-button");
      const [download] = await Promise.all([page.waitForEvent("download"), page.click(id)]);
      assert.ok(download.suggestedFilename().endsWith(ending));
      assert.ok((await readFile(await download.path(), "utf8")).includes(holds));
    }
    await page.click("#more-button");
    await page.click("#delete-talk");
    await page.click("#confirm button[value=yes]");
    await page.waitForSelector("#empty:visible");
    const kept = await page.evaluate(
      () =>
        /** @type {Promise<number>} */ (
          new Promise((resolve, reject) => {
            const open = indexedDB.open("fledgling");
            open.onerror = reject;
            open.onsuccess = () => {
              const count = open.result.transaction("conversations").objectStore("conversations").count();
              count.onsuccess = () => {
                resolve(count.result);
              };
            };
          })
        ),
    );
    assert.equal(kept, 0);
  },

  async "completion goes on where it ended"(visit) {
    const { page } = visit;
    await loaded(visit);
    await page.check("input[name=mode][value=complete]", { force: true });
    await askAndWait(page, "Once upon");
    await page.getByRole("button", { name: "Go on" }).click();
    await page.waitForSelector("#stop:visible");
    await finished(page);
    assert.deepEqual(await page.locator(".given").allTextContents(), ["Once upon", "Once uponOnce upon"]);
  },

  async "settings: a preset, stop texts, and a link that carries them"(visit) {
    const { page, context } = visit;
    await loaded(visit);
    await page.click("#settings-button");
    await page.getByRole("button", { name: /^Balanced/ }).click();
    await page.fill("#setting-stop", "END");
    await page.fill("#setting-system", "Speak like a bird.");
    await page.click("#settings-link");
    const link = await page.evaluate(() => navigator.clipboard.readText());
    await looksRight(page, "settings");
    const other = await context.newPage();
    await other
      .evaluate(() => {
        localStorage.clear();
      })
      .catch(() => undefined);
    await other.goto(link);
    await other.getByText("These settings came with the link").waitFor();
    await other.waitForSelector("#empty:visible");
    await other.click("#settings-button");
    assert.equal(await other.inputValue("#setting-temperature"), "0.7");
    assert.equal(await other.inputValue("#setting-stop"), "END");
    assert.equal(await other.inputValue("#setting-system"), "Speak like a bird.");
    await other.fill("#setting-topP", "7");
    const kept = await other.evaluate(() => localStorage.getItem("fledgling.settings") ?? "");
    assert.match(kept, /"topP":0.95/, "a value out of range is not taken");
    await other.close();
  },

  async "here and there: an API with a key, and whether the texts are equal"(visit) {
    const { page, base, host } = visit;
    await loaded(visit);
    await page.click("#beside-button");
    await page.check("input[name=beside][value=api]");
    await page.fill("#api-url", base.replace("/sub/", "/api/v1"));
    await page.fill("#api-key", "wrong");
    await page.getByRole("button", { name: "Use it" }).click();
    await page.getByText("That API cannot be used: the key is wrong.").waitFor();
    await accessible(page, "the dialog with an error");
    await page.fill("#api-key", "right");
    await page.getByRole("button", { name: "Use it" }).click();
    await page.getByText("Beside: echo").waitFor();
    await askAndWait(page, "The same on both sides");
    assert.equal(await page.getAttribute(".verdict", "data-equal"), "true");
    assert.equal(await page.textContent(".verdict"), "The same text, all 22 characters of it.");
    assert.match(host.asked, /"messages":\[\{"role":"user","content":"The same on both sides"\}\]/);
    await askAndWait(page, "Now differ, please");
    assert.equal(await page.locator(".verdict").last().getAttribute("data-equal"), "false");
    await looksRight(page, "here-and-there");
  },

  async "two models beside each other"(visit) {
    const { page } = visit;
    await loaded(visit);
    await page.click("#beside-button");
    await page.check("input[name=beside][value=model]");
    await page.getByRole("button", { name: "Use it" }).click();
    await page.getByText("Which model should answer beside it?").waitFor();
    await page.getByRole("button", { name: "Load large.gguf" }).click();
    await page.getByText("answers beside").waitFor();
    await askAndWait(page, "Hello to both");
    assert.equal(await page.locator(".answer").count(), 2);
    assert.equal(await page.getAttribute(".verdict", "data-equal"), "true");
  },

  async "a thousand turns scroll smoothly"({ page, base }) {
    await page.goto(base);
    await page.waitForSelector("#start:visible");
    await page.evaluate(seed, 40);
    await page.evaluate(seed, 1000);
    await page.reload();
    const openedAt = Date.now();
    await page.getByRole("button", { name: "Question 0", exact: true }).click();
    await page.getByText("Question 999", { exact: true }).waitFor();
    console.log(`    1,000 turns open in ${Date.now() - openedAt} ms`);
    assert.ok((await page.locator(".turn").count()) < 40, "only what is near the view is drawn");
    const long = await frameMs(page);
    await page.getByRole("button", { name: "Question 0 of 40", exact: true }).click();
    await page.getByText("Question 39 of 40", { exact: true }).waitFor();
    const short = await frameMs(page);
    console.log(
      `    a frame while scrolling, median: ${long.toFixed(0)} ms, and ${short.toFixed(0)} ms in 40 turns`,
    );
    assert.ok(long < 1.5 * short + 17, "a thousand turns scroll as forty do");
    await page.getByRole("button", { name: "Question 0", exact: true }).click();
    await page.evaluate(() => {
      document.querySelector("#main")?.scrollTo(0, 0);
    });
    await page.getByText("Question 0", { exact: true }).last().waitFor();
    assert.equal(await page.locator(".turn").first().getAttribute("aria-posinset"), "1");
    await page.click("#to-end");
    await page.getByText("Question 999", { exact: true }).waitFor();
  },

  async "a model that is lost can be loaded again"(visit) {
    const { page } = visit;
    await loaded(visit);
    await askAndWait(page, "now lost! indeed");
    await page.locator(".error-text", { hasText: "The GPU was lost." }).waitFor();
    await page.getByRole("button", { name: "Load it again" }).click();
    await page.waitForFunction(() => document.body.dataset.view === "talk");
    await askAndWait(page, "and again");
    assert.equal((await page.locator(".answer .text").last().textContent())?.trim(), "and again");
  },

  async "look inside, and a benchmark to share"(visit) {
    const { page } = visit;
    await loaded(visit);
    await page.click("#inside-button");
    await askAndWait(page, "count these seven tokens one by one");
    assert.match((await page.textContent("#inside-now")) ?? "", /Written7 tokens/);
    assert.ok(await page.locator("#plot .line").getAttribute("d"));
    await page.click("#bench-start");
    await page.getByText(/reads .* tokens\/s, writes .* tokens\/s/).waitFor();
    await page.click("#bench-copy");
    assert.match(
      await page.evaluate(() => navigator.clipboard.readText()),
      /^\| Model .*\n.*\n\| Fake 1M \| CPU/,
    );
    await looksRight(page, "inside");
  },

  async "keyboard, drawer and theme"(visit) {
    const { page, base } = visit;
    await loaded(visit);
    await askAndWait(page, "Hello");
    await page.setViewportSize({ width: 390, height: 844 });
    await page.focus("#library-button");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#new-talk:focus");
    await accessible(page, "the drawer");
    await page.keyboard.press("Escape");
    await page.waitForSelector("#library", { state: "hidden" });
    await page.goto(base);
    await page.waitForSelector("#start:visible");
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement?.className), "skip");
    const background = () => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
    const before = await background();
    await page.click("#theme-button");
    assert.notEqual(await background(), before);
    await page.reload();
    assert.notEqual(await background(), before, "the choice is kept");
  },

  async "offline: the page and the model without a server"(visit) {
    const { page, base, host } = visit;
    await loaded(visit);
    await page.evaluate(() => navigator.serviceWorker.ready.then(() => undefined));
    await page.waitForFunction(() => navigator.serviceWorker.controller !== null);
    const manifest = await page.evaluate(async () => (await fetch("manifest.webmanifest")).text());
    assert.match(manifest, /"display": "standalone"/);
    await host.served?.close();
    host.served = undefined;
    await page.goto(`${base}?device=cpu&model=models/small.gguf`);
    await page.waitForSelector("#empty:visible");
    await askAndWait(page, "without a server");
    assert.equal((await page.textContent(".answer .text"))?.trim(), "without a server");
  },
};

/** Runs inside the page: puts a long conversation into its store. @param {number} nTurns */
function seed(nTurns) {
  const id = `${nTurns} turns`;
  const suffix = nTurns < 1000 ? ` of ${nTurns}` : "";
  /** @type {unknown[]} */
  const nodes = [];
  /** @type {string | null} */
  let parent = null;
  for (let i = 0; i < nTurns; i += 1) {
    nodes.push({ role: "user", id: `q${i}`, parent, mode: "chat", text: `Question ${i}${suffix}`, atMs: 0 });
    const text = `Answer **${i}** ${"and more of it ".repeat((i * 7) % 60)}\n\n\`\`\`js\nconst n = ${i};\n\`\`\`\n`;
    const facts = { tokens: 9, tokensPerSecond: 9, firstTokenMs: 9, failure: "", cut: false, beside: null };
    const made = { place: "Here", detail: "CPU", system: "", options: {}, state: "done" };
    nodes.push({ role: "assistant", id: `a${i}`, parent: `q${i}`, text, ...facts, ...made });
    parent = `a${i}`;
  }
  return new Promise((resolve, reject) => {
    const open = indexedDB.open("fledgling");
    open.onerror = reject;
    open.onsuccess = () => {
      const change = open.result.transaction("conversations", "readwrite");
      change
        .objectStore("conversations")
        .put({ id, version: 1, createdMs: 0, updatedMs: 1, nodes, chosen: {} });
      change.oncomplete = () => {
        resolve(undefined);
      };
    };
  });
}

/** The median time of a frame while a person scrolls fast. @param {Page} page */
async function frameMs(page) {
  const frames = await page.evaluate(scrollUpAndDown);
  return frames.sort((a, b) => a - b)[Math.floor(frames.length / 2)] ?? 0;
}

/** Runs inside the page: scrolls, and returns the time of each frame in milliseconds. */
async function scrollUpAndDown() {
  const main = document.querySelector("#main");
  if (!main) return [];
  /** @type {number[]} */
  const frames = [];
  let before = performance.now();
  for (let i = 0; i < 120; i += 1) {
    main.scrollTop += i % 40 < 20 ? -300 : 300;
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    frames.push(now - before);
    before = now;
  }
  return frames;
}

async function main() {
  await mkdir(results, { recursive: true });
  const browser = await launch();
  let failed = 0;
  try {
    for (const [name, flow] of Object.entries(flows)) {
      if (!name.includes(values.only)) continue;
      const host = new Host();
      const base = await host.start();
      const context = await browser.newContext({ permissions: ["clipboard-read", "clipboard-write"] });
      const page = await context.newPage();
      page.setDefaultTimeout(30_000);
      await page.setViewportSize({ width: 1440, height: 900 });
      /** @type {string[]} */
      const wrong = [];
      page.on("pageerror", (error) => wrong.push(error.stack ?? error.message));
      page.on("console", (message) => {
        // What a host does not have, and what a flow asks for on purpose.
        const expected = /404|401|ERR_CONNECTION_REFUSED/;
        if (message.type() === "error" && !expected.test(message.text())) wrong.push(message.text());
      });
      page.on("request", (request) => {
        const own = base.replace("/sub/", "/");
        if (/^https?:/.test(request.url()) && !request.url().startsWith(own))
          wrong.push(`asked ${request.url()}`);
      });
      const startedAt = Date.now();
      try {
        await flow({ page, context, base, host });
        assert.deepEqual(wrong, []);
        console.log(`ok  ${name} (${Date.now() - startedAt} ms)`);
      } catch (error) {
        failed += 1;
        console.error(`FAILED  ${name}: ${error instanceof Error ? error.message : String(error)}`);
        if (wrong.length > 0) console.error(wrong.join("\n"));
        await page
          .screenshot({ path: `${results}/failed-${name.replace(/\W+/g, "-")}.png` })
          .catch(() => undefined);
      } finally {
        await context.close();
        await host.stop();
      }
    }
  } finally {
    await browser.close();
  }
  if (failed > 0) process.exitCode = 1;
}

main().catch((/** @type {unknown} */ error) => {
  console.error(error);
  process.exitCode = 1;
});
