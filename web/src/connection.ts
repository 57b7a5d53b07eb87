/**
 * The page's side of the worker: sends requests, hands each response to whoever waits for its id,
 * and fails everything that waits when the worker dies.
 */

import { FledglingError, fromErrorData } from "./errors.js";
import type { Request, Response } from "./protocol.js";

/** What the connection needs of a `Worker`. */
export interface WorkerLike {
  postMessage(message: Request, transfer?: Transferable[]): void;
  addEventListener(type: "message", listener: (event: { readonly data: Response }) => void): void;
  addEventListener(type: "error", listener: (event: { readonly message?: string }) => void): void;
  addEventListener(type: "messageerror", listener: () => void): void;
  terminate(): void;
}

interface Waiting {
  response(response: Response): void;
  failed(error: FledglingError): void;
}

/** `Omit` for each member of a union. */
type WithoutId<T> = T extends unknown ? Omit<T, "id"> : never;

export class Connection {
  readonly #worker: WorkerLike;
  readonly #waiting = new Map<number, Waiting>();
  #lastId = 0;
  /** Why the connection is closed, once it is. */
  #closed: FledglingError | undefined;

  constructor(worker: WorkerLike) {
    this.#worker = worker;
    worker.addEventListener("message", (event) => {
      this.#receive(event.data);
    });
    worker.addEventListener("error", (event) => {
      const detail = event.message ? `: ${event.message}` : "";
      this.close(new FledglingError("crashed", `the worker stopped${detail}`));
    });
    worker.addEventListener("messageerror", () => {
      this.close(new FledglingError("crashed", "a message of the worker could not be read"));
    });
  }

  get closed(): FledglingError | undefined {
    return this.#closed;
  }

  /** Sends a request and returns its id. `waiting` hears every response to it until `done(id)`. */
  send(request: WithoutId<Request>, waiting?: Waiting, transfer: Transferable[] = []): number {
    if (this.#closed) throw this.#closed;
    const id = ++this.#lastId;
    if (waiting) this.#waiting.set(id, waiting);
    try {
      this.#worker.postMessage({ ...request, id }, transfer);
    } catch (cause) {
      this.#waiting.delete(id);
      throw new FledglingError("bad-option", `cannot be sent to the worker: ${String(cause)}`, { cause });
    }
    return id;
  }

  /**
   * Sends a request that has one answer of the type `last`, and resolves with it. Answers of other
   * types on the way go to `onOther`.
   */
  ask<T extends Response["type"]>(
    request: WithoutId<Request>,
    last: T,
    onOther?: (response: Response) => void,
    transfer?: Transferable[],
  ): Promise<Extract<Response, { type: T }>> {
    return new Promise((resolve, reject) => {
      const id = this.send(
        request,
        {
          response: (response) => {
            if (!isOfType(response, last)) {
              onOther?.(response);
              return;
            }
            this.done(id);
            resolve(response);
          },
          failed: reject,
        },
        transfer,
      );
    });
  }

  done(id: number): void {
    this.#waiting.delete(id);
  }

  /** Ends the worker; whatever waits, and whatever is asked later, fails with `reason`. */
  close(reason: FledglingError): void {
    if (this.#closed) return;
    this.#closed = reason;
    this.#worker.terminate();
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const each of waiting) each.failed(reason);
  }

  #receive(response: Response): void {
    const waiting = this.#waiting.get(response.id);
    if (response.type !== "failed") {
      waiting?.response(response);
      return;
    }
    this.#waiting.delete(response.id);
    waiting?.failed(fromErrorData(response.error));
  }
}

function isOfType<T extends Response["type"]>(
  response: Response,
  type: T,
): response is Extract<Response, { type: T }> {
  return response.type === type;
}
