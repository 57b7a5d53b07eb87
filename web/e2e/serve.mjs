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
};

/**
 * @typedef {(request: import("node:http").IncomingMessage, response: import("node:http").ServerResponse) => void} Route
 * @typedef {{ base: string, close: () => Promise<void> }} Served
 */

/**
 * Serves a folder, and files of elsewhere by their path in `files`.
 *
 * @param {string} folder
 * @param {{ files?: Record<string, string>, routes?: Record<string, Route> }} [extra]
 * @returns {Promise<Served>}
 */
export async function serve(folder, { files = {}, routes = {} } = {}) {
  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url ?? "/", "http://host").pathname);
    const route = routes[path];
    if (route) {
      route(request, response);
      return;
    }
    const inside = join(folder, normalize(path === "/" ? "/index.html" : path));
    void sendFile(files[path] ?? inside, response);
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
 * @param {string} path
 * @param {import("node:http").ServerResponse} response
 */
async function sendFile(path, response) {
  const info = await stat(path).catch(() => undefined);
  if (!info?.isFile()) {
    response.writeHead(404).end();
    return;
  }
  response.writeHead(200, {
    "content-type": types[extname(path)] ?? "application/octet-stream",
    "content-length": info.size,
  });
  createReadStream(path).pipe(response);
}
