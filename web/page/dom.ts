/** Elements of the page, found or made, with their types. */

/** The element with this id, which index.html has. */
export function byId<T extends HTMLElement>(id: string, type: new () => T): T {
  const element = document.getElementById(id);
  if (!(element instanceof type)) throw new Error(`index.html has no ${type.name} with the id ${id}`);
  return element;
}

export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = "",
  text = "",
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

/** Fills a definition list. */
export function fillFacts(list: HTMLElement, facts: Iterable<readonly [string, string]>): void {
  list.replaceChildren(
    ...[...facts].flatMap(([term, value]) => [make("dt", "", term), make("dd", "", value)]),
  );
}
