/** Light, dark, or as the system has it: kept across visits. */

const storageKey = "fledgling.theme";

export function restoreTheme(): void {
  try {
    const kept = localStorage.getItem(storageKey);
    if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
  } catch {
    // As the system has it.
  }
}

/** The other one. What the system has anyway is not kept, so that it goes on following the system. */
export function toggleTheme(): void {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const next = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
  try {
    if (next === system) {
      delete root.dataset.theme;
      localStorage.removeItem(storageKey);
    } else {
      root.dataset.theme = next;
      localStorage.setItem(storageKey, next);
    }
  } catch {
    root.dataset.theme = next;
  }
}
