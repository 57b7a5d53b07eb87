/**
 * What to call the GPU. The engine sees only the adapter's `description`, which browsers leave empty
 * against fingerprinting; vendor and architecture they tell.
 */

/** `apple metal-3`, say; undefined when the browser tells nothing. Only where WebGPU is known to work. */
export async function adapterName(): Promise<string | undefined> {
  // The same question as the engine's, and so the same adapter.
  const asked = navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  const adapter = await asked.catch(() => null);
  if (!adapter) return undefined;
  const { vendor, architecture, description } = adapter.info;
  return description || [vendor, architecture].filter(Boolean).join(" ") || undefined;
}
