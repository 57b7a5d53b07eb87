/**
 * The service worker: keeps the files of this build, and answers with them when the server does not.
 *
 * The page itself is asked for at the server first, so that a new build shows at once; files with a hash in
 * their name never change and come from the cache. Models and the API are none of its business: models are kept
 * by the package in the origin private file system.
 */

export {};

/** What this uses of a service worker's global; TypeScript's DOM library only knows pages. */
interface WorkerScope {
  readonly registration: { readonly scope: string };
  skipWaiting(): Promise<void>;
  readonly clients: { claim(): Promise<void> };
  addEventListener(
    type: "install" | "activate",
    listener: (event: { waitUntil(work: Promise<unknown>): void }) => void,
  ): void;
  addEventListener(
    type: "fetch",
    listener: (event: { readonly request: Request; respondWith(answer: Promise<Response>): void }) => void,
  ): void;
}

/** Filled in by the build: the files of it, and a hash of them all. */
declare const __BUILD__: { readonly files: readonly string[]; readonly hash: string };

const worker = globalThis as unknown as WorkerScope;
const build = __BUILD__;
const name = `fledgling-page-${build.hash}`;
const { scope } = worker.registration;
const files = new Set(build.files.map((file) => new URL(file, scope).href));

async function install(): Promise<void> {
  const cache = await caches.open(name);
  // Past the HTTP cache: what is kept must be of this build.
  await cache.addAll([scope, ...files].map((url) => new Request(url, { cache: "reload" })));
  await worker.skipWaiting();
}

async function activate(): Promise<void> {
  const old = (await caches.keys()).filter((key) => key.startsWith("fledgling-page-") && key !== name);
  await Promise.all(old.map((key) => caches.delete(key)));
  await worker.clients.claim();
}

async function page(request: Request): Promise<Response> {
  try {
    return await fetch(request);
  } catch (thrown) {
    const kept = await caches.match(scope);
    if (kept) return kept;
    throw thrown;
  }
}

async function file(request: Request): Promise<Response> {
  return (await caches.match(request, { ignoreSearch: true })) ?? fetch(request);
}

worker.addEventListener("install", (event) => {
  event.waitUntil(install());
});

worker.addEventListener("activate", (event) => {
  event.waitUntil(activate());
});

worker.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = request.url.split(/[?#]/, 1)[0] ?? "";
  if (request.method !== "GET") return;
  if (request.mode === "navigate" && [scope, `${scope}index.html`].includes(url)) {
    event.respondWith(page(request));
  } else if (files.has(url)) {
    event.respondWith(file(request));
  }
});
