// @ts-check
/** A headless Chromium with WebGPU on SwiftShader, so that a machine without a GPU can test it. */

import { accessSync, constants } from "node:fs";
import { chromium } from "playwright-core";

const flags = [
  "--no-sandbox",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--enable-unsafe-webgpu",
  "--use-webgpu-adapter=swiftshader",
];

/** `FLEDGLING_CHROMIUM`, or a browser in one of the usual places. */
function executable() {
  const wanted = process.env.FLEDGLING_CHROMIUM;
  const places = wanted
    ? [wanted]
    : ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
  for (const place of places) {
    try {
      accessSync(place, constants.X_OK);
      return place;
    } catch {
      // Next.
    }
  }
  throw new Error(`no Chromium at ${places.join(", ")}; install one or set FLEDGLING_CHROMIUM`);
}

export function launch() {
  return chromium.launch({ executablePath: executable(), args: flags, timeout: 60_000 });
}

/** The same with the number of its process, for measuring what it takes. */
export async function launchServer() {
  const server = await chromium.launchServer({ executablePath: executable(), args: flags, timeout: 60_000 });
  const browser = await chromium.connect(server.wsEndpoint());
  return { browser, pid: server.process().pid ?? 0, close: () => server.close() };
}
