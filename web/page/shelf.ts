/** The shelf: the files that the server offers and those in this browser, with what each of them is. */

import { Fledgling, type CachedFile } from "../src/index.js";
import { Cache } from "../src/cache.js";
import { describe } from "./described.js";
import { button, element, iconButton, make, makeButton } from "./dom.js";
import { fileName, formatBytes } from "./format.js";
import { readHeader, type Metadata } from "./gguf.js";
import type { ShelfFile } from "./own-server.js";
import { shelf as words } from "./strings.js";

export interface ShelfActions {
  load(url: string): void;
  confirm(question: string): Promise<boolean>;
  say(sentence: string): void;
}

/** What to read of a header: most of it is the vocabulary, which only a file that is near is worth. */
const nearHeaderBytes = 16 << 20;
const farHeaderBytes = 64 << 10;

const isNear = (url: string): boolean => /^(127\.|localhost$|\[::1\]$)/.test(new URL(url).hostname);

export class Shelf {
  readonly #actions: ShelfActions;
  #offered: readonly ShelfFile[] = [];
  #current: string | undefined;
  readonly #metadata = new Map<string, Promise<Metadata>>();

  constructor(actions: ShelfActions) {
    this.#actions = actions;
    button("persist").addEventListener("click", () => void this.#persist());
  }

  /** The file with the fewest bytes that the server offers. */
  get smallest(): ShelfFile | undefined {
    return [...this.#offered].sort((a, b) => (a.sizeBytes ?? Infinity) - (b.sizeBytes ?? Infinity))[0];
  }

  set offered(files: readonly ShelfFile[]) {
    this.#offered = files;
    void this.draw();
  }

  /** The address of the model that is loaded. */
  set current(url: string | undefined) {
    this.#current = url;
  }

  async draw(): Promise<void> {
    const cached = await Fledgling.cached();
    const keptOf = new Map(cached.map((file) => [file.url, file]));
    element("shelf-list").replaceChildren(
      ...this.#offered.map((file) => this.#row(file, keptOf.get(file.url))),
    );
    element("shelf").hidden = this.#offered.length === 0;
    const offered = new Set(this.#offered.map(({ url }) => url));
    const others = cached.filter(({ url }) => !offered.has(url));
    element("kept-list").replaceChildren(
      ...others.map((file) =>
        this.#row({ name: fileName(file.url), url: file.url, sizeBytes: file.sizeBytes, metadata: {} }, file),
      ),
    );
    element("kept").hidden = cached.length === 0;
    element("kept-list").hidden = others.length === 0;
    if (cached.length > 0) await this.#drawStorage();
  }

  #row(file: ShelfFile, kept: CachedFile | undefined): HTMLElement {
    const row = make("li");
    const label = make("div", "what");
    const facts = make("span", "soft numbers facts-line");
    label.append(make("span", "name", file.name), facts);
    row.append(label);
    const whole = kept && kept.keptBytes === kept.sizeBytes;
    const size = file.sizeBytes === undefined ? [] : [formatBytes(file.sizeBytes)];
    const part =
      kept && !whole ? [words.kept(formatBytes(kept.keptBytes), formatBytes(kept.sizeBytes))] : size;
    facts.textContent = part.join("");
    if (kept && !whole) label.append(keptBar(kept));
    if (this.#current === file.url) row.append(make("span", "badge", words.inUse));
    const verb = kept && !whole ? words.resume : words.load;
    const action = makeButton(
      verb,
      () => {
        this.#actions.load(file.url);
      },
      { label: `${verb} ${file.name}` },
    );
    row.append(action);
    if (kept) {
      const forget = iconButton("bin", `${words.delete} ${file.name}`, () => void this.#forget(file));
      row.append(forget);
    }
    void this.#describe(file, Boolean(whole)).then((metadata) => {
      const { quantisation, sizeLabel, tuned, perplexity } = describe(metadata);
      facts.textContent = [...part, sizeLabel, quantisation].filter(Boolean).join(" · ");
      const more = [tuned, perplexity].filter(Boolean).join(" · ");
      if (more) label.append(make("span", "soft facts-line", more));
    });
    return row;
  }

  #describe(file: ShelfFile, whole: boolean): Promise<Metadata> {
    const key = `${file.url} ${whole ? "kept" : "offered"}`;
    let known = this.#metadata.get(key);
    if (!known) {
      known = readMetadata(file, whole);
      this.#metadata.set(key, known);
    }
    return known;
  }

  async #forget({ name, url }: ShelfFile): Promise<void> {
    if (!(await this.#actions.confirm(words.confirmDelete(name)))) return;
    await Fledgling.forget(url);
    this.#metadata.delete(`${url} kept`);
    await this.draw();
    button("choose").focus();
  }

  async #drawStorage(): Promise<void> {
    const storage = (await navigator.storage.estimate().catch(() => undefined)) ?? {};
    const { usage, quota } = storage;
    const persisted = await navigator.storage.persisted().catch(() => false);
    const used =
      usage !== undefined && quota !== undefined
        ? `${words.used(formatBytes(usage), formatBytes(quota))}. `
        : "";
    element("storage").textContent = used + (persisted ? words.persisted : words.notPersisted);
    button("persist").hidden = persisted;
  }

  async #persist(): Promise<void> {
    const agreed = await navigator.storage.persist().catch(() => false);
    if (!agreed) this.#actions.say(words.persistRefused);
    await this.#drawStorage();
  }
}

/** How much of a broken download is there. */
function keptBar({ keptBytes, sizeBytes }: CachedFile): HTMLElement {
  const bar = Object.assign(make("progress", "kept-bar"), { max: sizeBytes, value: keptBytes });
  bar.setAttribute("aria-label", words.kept(formatBytes(keptBytes), formatBytes(sizeBytes)));
  return bar;
}

/** From the server's list, the kept file, or the beginning of the offered one; empty when none tells. */
async function readMetadata(file: ShelfFile, whole: boolean): Promise<Metadata> {
  if (Object.keys(file.metadata).length > 0) return file.metadata;
  try {
    const data = whole ? (await (await Cache.open())?.find(file.url))?.data : undefined;
    const bytes = data
      ? await data.slice(0, nearHeaderBytes).arrayBuffer()
      : await firstBytes(file.url, isNear(file.url) ? nearHeaderBytes : farHeaderBytes);
    return bytes ? (readHeader(new Uint8Array(bytes))?.metadata ?? {}) : {};
  } catch {
    return {};
  }
}

/** Undefined from a server that would send the whole file. */
async function firstBytes(url: string, nBytes: number): Promise<ArrayBuffer | undefined> {
  const response = await fetch(url, { headers: { range: `bytes=0-${nBytes - 1}` } });
  if (response.status === 206) return response.arrayBuffer();
  await response.body?.cancel();
  return undefined;
}
