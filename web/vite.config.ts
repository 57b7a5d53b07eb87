import { fileURLToPath } from "node:url";
import { defineConfig, type Plugin } from "vitest/config";

/** The built page may load nothing but its own files; a model may come from any https address. */
const policy = [
  "default-src 'none'",
  "script-src 'self' 'wasm-unsafe-eval'",
  "worker-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "connect-src 'self' https: http://127.0.0.1:* http://localhost:*",
  "base-uri 'none'",
  "form-action 'none'",
].join("; ");

function contentSecurityPolicy(): Plugin {
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

/** In the mode `fake` the page runs without the wasm module: for work on its look. */
function fakeEngine(): Plugin {
  const fake = fileURLToPath(new URL("test/fake-wasm.ts", import.meta.url));
  return {
    name: "fake-engine",
    enforce: "pre",
    resolveId: (id) => (id.endsWith("/wasm/fledgling_wasm.js") ? fake : null),
  };
}

export default defineConfig(({ mode }) => {
  const plugins = mode === "fake" ? [fakeEngine()] : [];
  return {
    base: "./",
    plugins: [...plugins, contentSecurityPolicy()],
    worker: { format: "es", plugins: () => plugins },
    build: { target: "es2022", modulePreload: { polyfill: false }, assetsInlineLimit: 0 },
    server: { host: "127.0.0.1" },
    // A busy machine is no failure.
    test: { include: ["test/**/*.test.ts"], testTimeout: 20_000 },
  };
});
