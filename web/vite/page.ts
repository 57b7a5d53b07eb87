/** What building the page needs beside Vite: its strings, its policy, its service worker, and its budget. */

import { createHash } from "node:crypto";
import { readdirSync } from "node:fs";
import { gzipSync } from "node:zlib";
import type { Plugin } from "vite";
import { html as strings } from "../page/strings.js";

/** The built page may load nothing but its own files; a model may come from any https address. */
const policy = [
  "default-src 'none'",
  "script-src 'self' 'wasm-unsafe-eval'",
  "worker-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "manifest-src 'self'",
  "connect-src 'self' https: http://127.0.0.1:* http://localhost:*",
  "base-uri 'none'",
  "form-action 'none'",
].join("; ");

export function contentSecurityPolicy(): Plugin {
  return {
    name: "content-security-policy",
    apply: "build",
    transformIndexHtml: () => [
      {
        tag: "meta",
        attrs: { "http-equiv": "Content-Security-Policy", content: policy },
        injectTo: "head-prepend",
      },
    ],
  };
}

/** Fills `{{name}}` in index.html from page/strings.ts, so that all sentences stand in one file. */
export function fillStrings(): Plugin {
  return {
    name: "fill-strings",
    transformIndexHtml: {
      order: "pre",
      handler: (page) =>
        page.replace(/\{\{(\w+)\}\}/g, (_, name: string) => {
          const text = (strings as Record<string, string>)[name];
          if (text === undefined)
            throw new Error(`index.html asks for {{${name}}}: page/strings.ts has no such text`);
          return text;
        }),
    },
  };
}

/** Tells the service worker which files this build has. */
export function serviceWorker(publicFolder: string): Plugin {
  return {
    name: "service-worker",
    apply: "build",
    enforce: "post",
    generateBundle(_, bundle) {
      const worker = bundle["sw.js"];
      if (worker?.type !== "chunk") throw new Error("the service worker was not built");
      const hash = createHash("sha256");
      for (const name of Object.keys(bundle).sort()) {
        const file = bundle[name];
        if (file) hash.update(name).update(file.type === "chunk" ? file.code : file.source);
      }
      const built = Object.keys(bundle).filter((name) => name !== "sw.js" && !name.endsWith(".html"));
      const files = [...built, ...readdirSync(publicFolder)];
      const build = JSON.stringify({ files, hash: hash.digest("hex").slice(0, 16) });
      worker.code = worker.code.replaceAll("__BUILD__", build);
    },
  };
}

/** The first load, compressed, beside the runtime (worker, engine) and what comes later (service worker). */
const budgetBytes = 150_000;

/** Fails a build whose page has grown too large. */
export function sizeBudget(): Plugin {
  return {
    name: "size-budget",
    apply: "build",
    enforce: "post",
    generateBundle(_, bundle) {
      let sizeBytes = 0;
      for (const [name, file] of Object.entries(bundle)) {
        if (!/\.(js|css|html)$/.test(name) || /(^sw\.js|worker|fledgling_wasm)/.test(name)) continue;
        sizeBytes += gzipSync(file.type === "chunk" ? file.code : file.source).length;
      }
      this.info(`the page is ${(sizeBytes / 1000).toFixed(1)} kB in gzip`);
      if (sizeBytes > budgetBytes) {
        this.error(`the page is ${sizeBytes} bytes in gzip, its budget is ${budgetBytes} (vite/page.ts)`);
      }
    },
  };
}
