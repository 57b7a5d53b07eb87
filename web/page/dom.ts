/** Elements of the page, found or made, with their types. */

/** The element with this id, which index.html has. */
export function byId<T extends HTMLElement>(id: string, type: new () => T): T {
  const element = document.getElementById(id);
  if (!(element instanceof type)) throw new Error(`index.html has no ${type.name} with the id ${id}`);
  return element;
}

export const button = (id: string): HTMLButtonElement => byId(id, HTMLButtonElement);
export const element = (id: string): HTMLElement => byId(id, HTMLElement);

export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = "",
  text = "",
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

/** Paths of the page's icons, drawn in a square of 24. */
const icons = {
  copy: "M9 9h9.500v10.500H9zM6 15.500H5V4.500h10V6",
  edit: "M14.500 5.500l4 4L9 19l-4.800.800L5 15z",
  again: "M19.500 12a7.500 7.500 0 1 1-2.200-5.300M19.500 4v4h-4",
  back: "m14 7-5 5 5 5",
  forth: "m10 7 5 5-5 5",
  bin: "M5 7h14M10 7V4.500h4V7m-7 0 .7 12.500h8.600L17 7",
} as const;

type Icon = keyof typeof icons;

function icon(name: Icon): SVGSVGElement {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(svg.namespaceURI, "path");
  path.setAttribute("d", icons[name]);
  svg.append(path);
  return svg;
}

/** A button with a text. `label` is its name for those who cannot see where it stands. */
export function makeButton(
  text: string,
  action: () => void,
  { label, className = "" }: { label?: string; className?: string } = {},
): HTMLButtonElement {
  const made = make("button", className, text);
  made.type = "button";
  if (label) made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
}

export function iconButton(name: Icon, label: string, action: () => void): HTMLButtonElement {
  const made = makeButton("", action, { label, className: "quiet icon" });
  made.append(icon(name));
  made.title = label;
  return made;
}

/** Fills a definition list. */
export function fillFacts(list: HTMLElement, facts: Iterable<readonly [string, string]>): void {
  list.replaceChildren(
    ...[...facts].flatMap(([term, value]) => [make("dt", "", term), make("dd", "", value)]),
  );
}

/** Copies, and says so on the button for a moment. */
export async function copyFrom(pressed: HTMLButtonElement, text: string, copied: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    return false;
  }
  pressed.dataset.done = copied;
  setTimeout(() => delete pressed.dataset.done, 1600);
  return true;
}

/** Hands a text to the browser as a file. */
export function saveFile(name: string, type: string, text: string): void {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}
