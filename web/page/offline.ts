/** Keeps the page itself in the browser, so that it opens without a connection (sw.ts does the work). */

/** Resolves true when the page has just become available offline for the first time. */
export async function keepOffline(): Promise<boolean> {
  // In development there is nothing built to be kept; an insecure address has no service workers.
  if (!import.meta.env.PROD || !("serviceWorker" in navigator)) return false;
  try {
    const first = !navigator.serviceWorker.controller;
    await navigator.serviceWorker.register(new URL("sw.js", document.baseURI), { scope: "./" });
    await navigator.serviceWorker.ready;
    return first;
  } catch {
    // A convenience: without it the page needs the server.
    return false;
  }
}
