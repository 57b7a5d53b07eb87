/**
 * Markdown of an answer, as safe elements: no images, no scripts, nothing that loads anything.
 *
 * While an answer is written only the blocks that changed are drawn again, so that the page does not jump,
 * a selection in a finished paragraph stays, and a long answer costs no more than its last paragraph.
 */

import DOMPurify, { type Config } from "dompurify";
import { Marked } from "marked";
import { copyFrom, make } from "./dom.js";
import { talk } from "./strings.js";

/** What looks like a tag in an answer is text: a model that explains HTML must be readable. */
const noHtml = { html: () => undefined, tag: () => undefined };
const marked = new Marked({ gfm: true, breaks: true, tokenizer: noHtml });

const tags =
  "p br strong em del code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 hr a table thead tbody tr th td";
const allowed: Config & { RETURN_DOM_FRAGMENT: true } = {
  ALLOWED_TAGS: tags.split(" "),
  ALLOWED_ATTR: ["href", "class", "start"],
  ALLOWED_URI_REGEXP: /^https?:/i,
  RETURN_DOM_FRAGMENT: true,
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  // Only the language of a block of code is told by a class.
  if (node.tagName !== "CODE" || !/^language-[\w+#.-]+$/.test(node.className)) node.removeAttribute("class");
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

interface Block {
  readonly html: string;
  readonly nodes: readonly ChildNode[];
}

const drawn = new WeakMap<Element, Block[]>();

export function renderMarkdown(element: Element, text: string): void {
  const tokens = marked.lexer(text);
  const sources = tokens.map((token) => marked.parser([token])).filter((html) => html.trim() !== "");
  const blocks = drawn.get(element) ?? [];
  let same = 0;
  while (same < blocks.length && same < sources.length && blocks[same]?.html === sources[same]) same += 1;
  for (const block of blocks.splice(same)) for (const node of block.nodes) node.remove();
  for (const html of sources.slice(same)) {
    const nodes = [...toNodes(html)];
    blocks.push({ html, nodes });
    element.append(...nodes);
  }
  drawn.set(element, blocks);
}

function toNodes(html: string): NodeListOf<ChildNode> {
  const fragment = DOMPurify.sanitize(html, allowed);
  for (const pre of fragment.querySelectorAll("pre")) frameCode(pre);
  for (const table of fragment.querySelectorAll("table")) frame(table, "table");
  // A long line scrolls inside its block, also by keyboard.
  for (const wide of fragment.querySelectorAll<HTMLElement>("pre, .table")) wide.tabIndex = 0;
  return fragment.childNodes;
}

function frame(inner: Element, className: string): HTMLElement {
  const outer = make("div", className);
  inner.replaceWith(outer);
  outer.append(inner);
  return outer;
}

/** A block of code with its language and a button that copies it. */
function frameCode(pre: HTMLPreElement): void {
  const language = pre.querySelector("code")?.className.replace("language-", "") ?? "";
  const outer = frame(pre, "code");
  const bar = make("div", "code-bar");
  const copy = make("button", "quiet small", talk.copy);
  copy.type = "button";
  copy.setAttribute("aria-label", talk.copyCode);
  copy.addEventListener("click", () => void copyFrom(copy, pre.textContent, talk.copied));
  bar.append(make("span", "", language), copy);
  pre.setAttribute("aria-label", language || "code");
  pre.setAttribute("role", "group");
  outer.prepend(bar);
}
