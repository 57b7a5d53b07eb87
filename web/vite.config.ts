import { fileURLToPath } from "node:url";
import { defineConfig, type Plugin } from "vitest/config";
import { contentSecurityPolicy, fillStrings, serviceWorker, sizeBudget } from "./vite/page.js";

const path = (relative: string): string => fileURLToPath(new URL(relative, import.meta.url));

/** In the mode `fake` the page runs without the wasm module: for work on its look, and for its flows. */
function fakeEngine(): Plugin {
  const fake = path("test/fake-wasm.ts");
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
    plugins: [
      ...plugins,
      fillStrings(),
      contentSecurityPolicy(),
      serviceWorker(path("public")),
      sizeBudget(),
    ],
    worker: { format: "es", plugins: () => plugins },
    build: {
      target: "es2022",
      modulePreload: { polyfill: false },
      assetsInlineLimit: 0,
      rolldownOptions: {
        input: { index: path("index.html"), sw: path("page/sw.ts") },
        output: {
          // The service worker's address must stay the same from build to build.
          entryFileNames: ({ name }) => (name === "sw" ? "sw.js" : "assets/[name]-[hash].js"),
        },
      },
    },
    server: { host: "127.0.0.1" },
    // A busy machine is no failure.
    test: { include: ["test/**/*.test.ts"], testTimeout: 20_000 },
  };
});
