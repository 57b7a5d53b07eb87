// @ts-check
/** A plain static server on 127.0.0.1, as a static host would serve the page, with extra routes for tests. */

import { once } from "node:events";
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

/** @type {Record<string, string>} */
const types = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".css": "text/css",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
  ".png": "image/png",
  ".webmanifest": "application/manifest+json",
};

/**
 * @typedef {(request: import("node:http").IncomingMessage, response: import("node:http").ServerResponse) => void} Route
 * @typedef {{ base: string, close: () => Promise<void> }} Served
 */

/**
 * Serves a folder, and files of elsewhere by their path in `files`.
 *
 * @param {string} folder
 * @param {{ files?: Record<string, string>, routes?: Record<string, Route>, bytesPerS?: () => number }} [extra]
 * `bytesPerS` slows the extra files down, so that a test can watch one arrive.
 * @returns {Promise<Served>}
 */
export async function serve(folder, { files = {}, routes = {}, bytesPerS = () => Infinity } = {}) {
  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url ?? "/", "http://host").pathname);
    const route = routes[path];
    if (route) {
      route(request, response);
      return;
    }
    const inside = join(folder, normalize(path.endsWith("/") ? `${path}index.html` : path));
    const extra = files[path];
    void sendFile(extra ?? inside, request, response, extra ? bytesPerS() : Infinity);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("the server has no port");
  return {
    base: `http://127.0.0.1:${address.port}`,
    close: async () => {
      server.close();
      server.closeAllConnections();
      await once(server, "close");
    },
  };
}

/**
 * Sends a file, or the part of it that is asked for.
 *
 * @param {string} path
 * @param {import("node:http").IncomingMessage} request
 * @param {import("node:http").ServerResponse} response
 * @param {number} bytesPerS
 */
async function sendFile(path, request, response, bytesPerS) {
  const info = await stat(path).catch(() => undefined);
  if (!info?.isFile()) {
    response.writeHead(404).end();
    return;
  }
  const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "");
  const start = range ? Number(range[1]) : 0;
  const end = Math.min(range?.[2] ? Number(range[2]) : info.size - 1, info.size - 1);
  response.writeHead(range ? 206 : 200, {
    "content-type": types[extname(path)] ?? "application/octet-stream",
    "content-length": Math.max(0, end - start + 1),
    "accept-ranges": "bytes",
    etag: `"${info.size}-${info.mtimeMs}"`,
    ...(range && { "content-range": `bytes ${start}-${end}/${info.size}` }),
  });
  if (request.method === "HEAD") {
    response.end();
    return;
  }
  const chunks = createReadStream(path, { start, end });
  if (bytesPerS === Infinity) {
    chunks.pipe(response);
    return;
  }
  for await (const chunk of /** @type {AsyncIterable<Buffer>} */ (chunks)) {
    if (response.destroyed) return;
    response.write(chunk);
    await new Promise((resolve) => setTimeout(resolve, (1000 * chunk.length) / bytesPerS));
  }
  response.end();
}
