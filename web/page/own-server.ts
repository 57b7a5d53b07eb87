/**
 * The server that the page came from, when it is `fledgling serve`: its shelf of files, and the name of its
 * API's model. On a static host there may be neither.
 */

import { isRecord } from "./api.js";
import type { Metadata, Scalar } from "./gguf.js";

export interface ShelfFile {
  readonly name: string;
  /** Absolute. */
  readonly url: string;
  readonly sizeBytes: number | undefined;
  /** What the server says about the file; empty when it says nothing. */
  readonly metadata: Metadata;
}

const address = (path: string): string => new URL(path, document.baseURI).href;

/** JSON of the own server; undefined when it has none there (a static host may answer with a page). */
async function getJson(path: string): Promise<unknown> {
  try {
    const response = await fetch(address(path), { headers: { accept: "application/json" } });
    if (!response.ok || !response.headers.get("content-type")?.includes("json")) return undefined;
    return await response.json();
  } catch {
    return undefined;
  }
}

/** The files that the server offers; empty when it offers none. */
export async function fetchShelf(): Promise<readonly ShelfFile[]> {
  const files = await getJson("models.json");
  if (!Array.isArray(files)) return [];
  return files.filter(isRecord).flatMap(({ name, url, sizeBytes, metadata }) => {
    if (typeof name !== "string" || typeof url !== "string") return [];
    const size = typeof sizeBytes === "number" ? sizeBytes : undefined;
    return [{ name, url: address(url), sizeBytes: size, metadata: scalarsOf(metadata) }];
  });
}

function scalarsOf(value: unknown): Metadata {
  if (!isRecord(value)) return {};
  const isScalar = (entry: [string, unknown]): entry is [string, Scalar] =>
    ["string", "number", "boolean"].includes(typeof entry[1]);
  return Object.fromEntries(Object.entries(value).filter(isScalar));
}

/** The name of the model that the own API answers with; undefined when there is no API. */
export async function fetchApiModel(): Promise<string | undefined> {
  const answer = await getJson("v1/models");
  if (!isRecord(answer) || !Array.isArray(answer.data)) return undefined;
  const first: unknown = answer.data[0];
  return isRecord(first) && typeof first.id === "string" ? first.id : undefined;
}
