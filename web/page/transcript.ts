/** A conversation for elsewhere: as Markdown to read, and as JSON with everything that is known of it. */

import { talk } from "./strings.js";
import { path, titleOf, type Answered, type Conversation } from "./tree.js";

/** The chosen turns as a document. */
export function toMarkdown(tree: Conversation): string {
  const lines = [`# ${titleOf(tree)}`, "", new Date(tree.createdMs).toISOString().slice(0, 10), ""];
  for (const { question, answer } of path(tree)) {
    if (question.mode === "complete") {
      lines.push("---", "", `${question.text}**${talk.assistant}:**${answer?.text ?? ""}`, "");
      continue;
    }
    lines.push(`## ${talk.you}`, "", question.text, "");
    if (answer) lines.push(...side(answer));
    if (answer?.beside) lines.push(...side(answer.beside));
  }
  return `${lines.join("\n").trimEnd()}\n`;
}

function side({ text, place, detail }: Answered): string[] {
  return [`## ${talk.assistant} (${[place, detail].filter(Boolean).join(", ")})`, "", text, ""];
}

/** The whole tree, with all versions, and the chosen turns as plain messages beside it. */
export function toJson(tree: Conversation): string {
  const messages = path(tree).flatMap(({ question, answer }) => [
    { role: "user", content: question.text },
    ...(answer ? [{ role: "assistant", content: answer.text }] : []),
  ]);
  return `${JSON.stringify({ title: titleOf(tree), messages, conversation: tree }, null, 2)}\n`;
}

/** A name for its file, without an ending: letters and digits of the title, and the day. */
export function fileNameOf(tree: Conversation): string {
  const words = titleOf(tree)
    .toLowerCase()
    .normalize("NFKD")
    .replace(/[^\p{L}\p{N}]+/gu, "-");
  const name = words.replace(/^-+|-+$/g, "").slice(0, 40) || "conversation";
  return `${name}-${new Date(tree.createdMs).toISOString().slice(0, 10)}`;
}
