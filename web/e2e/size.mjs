// @ts-check
/**
 * What a page downloads of the engine, as a server sends it: gzip of the script and the wasm module. Fails where that is
 * more than the budget, so that growth is a decision. `cargo xtask web` calls it.
 */

import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const root = fileURLToPath(new URL("..", import.meta.url));

export const bundle = ["wasm/fledgling_wasm.js", "wasm/fledgling_wasm_bg.wasm"];

/** In kB. The aim is 300; LOG.md tells what is in the way. */
const budgetKb = 545;

/** Bytes of files of a folder as a server would send them. @param {string} folder @param {string[]} files */
export async function gzipBytes(folder, files) {
  const sizes = await Promise.all(
    files.map(async (file) => gzipSync(await readFile(`${folder}/${file}`), { level: 9 }).length),
  );
  return sizes.reduce((sum, size) => sum + size, 0);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const kb = (await gzipBytes(root, bundle)) / 1000;
  console.log(`web: the engine is ${kb.toFixed(0)} kB as gzip, of at most ${budgetKb}`);
  if (kb > budgetKb) {
    console.error("web: make it smaller, or raise the budget in web/e2e/size.mjs and say why");
    process.exitCode = 1;
  }
}
