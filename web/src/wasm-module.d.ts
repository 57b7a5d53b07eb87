/** Stands for the generated module where it has not been built; `wasm.ts` has its types. */
declare module "*/fledgling_wasm.js" {
  const initialise: unknown;
  export default initialise;
}
