/** Conversations in IndexedDB. Where the browser has none (a private window, say), nothing is kept. */

import { openDB, type DBSchema, type IDBPDatabase } from "idb";
import { isConversation, settle, titleOf, type Conversation } from "./tree.js";

interface Schema extends DBSchema {
  conversations: { key: string; value: Conversation; indexes: { updatedMs: number } };
}

/** A conversation in a list. */
export interface Entry {
  readonly id: string;
  readonly title: string;
  readonly updatedMs: number;
}

export class Store {
  readonly #db: IDBPDatabase<Schema>;

  private constructor(db: IDBPDatabase<Schema>) {
    this.#db = db;
  }

  /** Undefined where the browser keeps nothing. */
  static async open(name = "fledgling"): Promise<Store | undefined> {
    try {
      const db = await openDB<Schema>(name, 1, {
        upgrade: (made) => {
          made.createObjectStore("conversations", { keyPath: "id" }).createIndex("updatedMs", "updatedMs");
        },
        // Another tab wants a newer version: let it.
        blocking: (_current, _blocked, event) => {
          (event.target as IDBDatabase).close();
        },
      });
      return new Store(db);
    } catch {
      return undefined;
    }
  }

  /** The latest first. */
  async list(): Promise<Entry[]> {
    const all = await this.#db.getAllFromIndex("conversations", "updatedMs");
    return all
      .filter(isConversation)
      .map((tree) => ({ id: tree.id, title: titleOf(tree), updatedMs: tree.updatedMs }))
      .reverse();
  }

  async get(id: string): Promise<Conversation | undefined> {
    const kept: unknown = await this.#db.get("conversations", id);
    if (!isConversation(kept)) return undefined;
    settle(kept);
    return kept;
  }

  async put(tree: Conversation): Promise<void> {
    await this.#db.put("conversations", tree);
  }

  /** For good. */
  async delete(id: string): Promise<void> {
    await this.#db.delete("conversations", id);
  }

  async deleteAll(): Promise<void> {
    await this.#db.clear("conversations");
  }
}
