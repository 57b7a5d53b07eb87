/** The conversations of this browser: a list beside the conversation, and the store behind it. */

import { element, iconButton, make } from "./dom.js";
import { Store, type Entry } from "./store.js";
import { library as words } from "./strings.js";
import { titleOf, type Conversation } from "./tree.js";

export interface LibraryActions {
  open(tree: Conversation): void;
  /** The open conversation was deleted. */
  gone(): void;
  confirm(question: string): Promise<boolean>;
  say(sentence: string): void;
}

export class Library {
  readonly #actions: LibraryActions;
  readonly #store: Promise<Store | undefined> = Store.open();
  #entries: readonly Entry[] = [];
  #current = "";
  /** What was deleted stays so, also when an answer to it was still on its way. */
  readonly #deleted = new Set<string>();
  #warned = false;
  /** Writes one after the other, so that an old version never overtakes a new one. */
  #writing: Promise<void> = Promise.resolve();

  constructor(actions: LibraryActions) {
    this.#actions = actions;
  }

  get size(): number {
    return this.#entries.length;
  }

  async draw(current = this.#current): Promise<void> {
    this.#current = current;
    this.#entries = (await (await this.#store)?.list()) ?? [];
    const list = element("library-list");
    list.replaceChildren();
    let heading = "";
    for (const entry of this.#entries) {
      const day = dayOf(entry.updatedMs);
      if (day !== heading) {
        heading = day;
        list.append(make("li", "day", day));
      }
      list.append(this.#row(entry));
    }
    document.body.dataset.library = this.#entries.length === 0 ? "empty" : "filled";
    element("delete-all").hidden = this.#entries.length === 0;
  }

  /** Keeps a conversation as it is now. An empty one is not worth keeping. */
  save(tree: Conversation): Promise<void> {
    if (tree.nodes.length === 0 || this.#deleted.has(tree.id)) return Promise.resolve();
    this.#writing = this.#writing.then(async () => {
      const store = await this.#store;
      try {
        if (!store) throw new Error("no store");
        await store.put(tree);
      } catch {
        if (!this.#warned) this.#actions.say(words.notKept);
        this.#warned = true;
        return;
      }
      const known = this.#entries[0];
      const same = known?.id === tree.id && known.title === titleOf(tree);
      if (!same || this.#current !== tree.id) await this.draw(tree.id);
    });
    return this.#writing;
  }

  async delete(id: string, title: string): Promise<void> {
    if (!(await this.#actions.confirm(words.confirmDelete(title || words.untitled)))) return;
    this.#deleted.add(id);
    if (id === this.#current) this.#actions.gone();
    await this.#writing;
    await (await this.#store)?.delete(id);
    await this.draw();
    this.#actions.say(words.deleted);
  }

  async deleteAll(): Promise<void> {
    if (!(await this.#actions.confirm(words.confirmDeleteAll(this.#entries.length)))) return;
    for (const { id } of this.#entries) this.#deleted.add(id);
    this.#actions.gone();
    await this.#writing;
    await (await this.#store)?.deleteAll();
    await this.draw();
    this.#actions.say(words.deleted);
  }

  #row({ id, title }: Entry): HTMLElement {
    const row = make("li");
    const open = make("button", "quiet entry", title || words.untitled);
    open.type = "button";
    if (id === this.#current) open.ariaCurrent = "true";
    open.addEventListener("click", () => void this.#open(id));
    row.append(
      open,
      iconButton("bin", words.delete(title), () => void this.delete(id, title)),
    );
    return row;
  }

  async #open(id: string): Promise<void> {
    await this.#writing;
    const tree = await (await this.#store)?.get(id);
    if (!tree) return;
    this.#actions.open(tree);
    await this.draw(id);
  }
}

function dayOf(ms: number): string {
  const start = new Date();
  start.setHours(0, 0, 0, 0);
  if (ms >= start.getTime()) return words.today;
  return ms >= start.getTime() - 86_400_000 ? words.yesterday : words.earlier;
}
