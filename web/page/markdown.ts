/** Markdown of an answer, as safe elements: no images, no scripts, nothing that loads anything. */

import DOMPurify, { type Config } from "dompurify";
import { Marked } from "marked";

/** What looks like a tag in an answer is text: a model that explains HTML must be readable. */
const noHtml = { html: () => undefined, tag: () => undefined };
const marked = new Marked({ gfm: true, breaks: true, tokenizer: noHtml });

const tags =
  "p br strong em del code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 hr a table thead tbody tr th td";
const allowed: Config & { RETURN_DOM_FRAGMENT: true } = {
  ALLOWED_TAGS: tags.split(" "),
  ALLOWED_ATTR: ["href"],
  ALLOWED_URI_REGEXP: /^https?:/i,
  RETURN_DOM_FRAGMENT: true,
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

export function renderMarkdown(element: Element, text: string): void {
  element.replaceChildren(DOMPurify.sanitize(marked.parse(text, { async: false }), allowed));
}
