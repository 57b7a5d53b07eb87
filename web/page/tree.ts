/**
 * A conversation as a tree: an edited question and another answer are siblings of the first one, and one of
 * each siblings is chosen. What is shown is the path of the chosen ones from the root.
 *
 * Plain data, as it is kept in IndexedDB and exported; the functions change it in place and touch nothing else.
 */

import type { Message, SamplingOptions } from "../src/index.js";

export type Mode = "chat" | "complete";

/** How one side answered. Times in milliseconds. */
export interface Answered {
  text: string;
  /** `interrupted`: the page was left while it was written. */
  state: "writing" | "done" | "stopped" | "failed" | "interrupted";
  /** True when it ended at the longest answer and not by itself. */
  cut: boolean;
  readonly place: string;
  readonly detail: string;
  tokens: number | null;
  tokensPerSecond: number | null;
  firstTokenMs: number | null;
  /** What went wrong, for people; empty where nothing did. */
  failure: string;
}

export interface Question {
  readonly role: "user";
  readonly id: string;
  /** The answer that it follows; null at the beginning. */
  readonly parent: string | null;
  readonly mode: Mode;
  readonly text: string;
  readonly atMs: number;
}

export interface Answer extends Answered {
  readonly role: "assistant";
  readonly id: string;
  readonly parent: string;
  readonly system: string;
  readonly options: SamplingOptions;
  /** The answer from elsewhere to the same question. */
  beside: Answered | null;
}

export type Node = Question | Answer;

export interface Conversation {
  readonly id: string;
  readonly version: 1;
  readonly createdMs: number;
  updatedMs: number;
  nodes: Node[];
  /** The chosen child of a node, by its id; that of the root by the empty one. */
  chosen: Record<string, string>;
}

/** A question with the chosen answer, and where both stand among their siblings. */
export interface Turn {
  readonly question: Question;
  readonly answer: Answer | undefined;
  readonly questions: readonly Question[];
  readonly answers: readonly Answer[];
}

export function newConversation(nowMs: number): Conversation {
  const id = crypto.randomUUID();
  return { id, version: 1, createdMs: nowMs, updatedMs: nowMs, nodes: [], chosen: {} };
}

export function ask(tree: Conversation, parent: string | null, mode: Mode, text: string): Question {
  const atMs = Date.now();
  const question: Question = { role: "user", id: crypto.randomUUID(), parent, mode, text, atMs };
  add(tree, question);
  return question;
}

export function answer(
  tree: Conversation,
  question: Question,
  side: Answered,
  asked: Pick<Answer, "system" | "options">,
): Answer {
  const id = crypto.randomUUID();
  const made: Answer = { role: "assistant", id, parent: question.id, ...side, ...asked, beside: null };
  add(tree, made);
  return made;
}

function add(tree: Conversation, node: Node): void {
  tree.nodes.push(node);
  choose(tree, node);
  tree.updatedMs = Date.now();
}

/** Shows this one of its siblings. */
export function choose(tree: Conversation, node: Node): void {
  tree.chosen[node.parent ?? ""] = node.id;
}

function childrenOf(tree: Conversation): Map<string, Node[]> {
  const children = new Map<string, Node[]>();
  for (const node of tree.nodes) {
    const key = node.parent ?? "";
    const siblings = children.get(key);
    if (siblings) siblings.push(node);
    else children.set(key, [node]);
  }
  return children;
}

const isQuestion = (node: Node): node is Question => node.role === "user";
export const isAnswer = (node: Node): node is Answer => node.role === "assistant";

/** The chosen turns from the first to the last. */
export function path(tree: Conversation): Turn[] {
  const children = childrenOf(tree);
  const chosen = <T extends Node>(parent: string, siblings: readonly T[]): T | undefined =>
    siblings.find(({ id }) => id === tree.chosen[parent]) ?? siblings.at(-1);
  const turns: Turn[] = [];
  let at = "";
  for (;;) {
    const questions = (children.get(at) ?? []).filter(isQuestion);
    const question = chosen(at, questions);
    if (!question) return turns;
    const answers = (children.get(question.id) ?? []).filter(isAnswer);
    const answered = chosen(question.id, answers);
    turns.push({ question, answer: answered, questions, answers });
    if (!answered) return turns;
    at = answered.id;
  }
}

/** What a chat model is given for a question: the system message, the chosen chat before it, and the question. */
export function messagesFor(tree: Conversation, question: Question, system: string): Message[] {
  const byId = new Map(tree.nodes.map((node) => [node.id, node]));
  const back: Message[] = [{ role: "user", content: question.text }];
  let at = question.parent;
  while (at !== null) {
    const answered = byId.get(at);
    const asked = answered && byId.get(answered.parent ?? "");
    if (answered?.role !== "assistant" || asked?.role !== "user") break;
    if (asked.mode === "chat" && answered.state !== "failed") {
      back.push({ role: "assistant", content: answered.text }, { role: "user", content: asked.text });
    }
    at = asked.parent;
  }
  if (system) back.push({ role: "system", content: system });
  return back.reverse();
}

/** What to call it: the beginning of its first question. */
export function titleOf(tree: Conversation): string {
  const first = tree.nodes.find((node) => node.role === "user")?.text ?? "";
  const line =
    first
      .replace(/[*`#>]+/g, "")
      .trim()
      .split(/\n/, 1)[0] ?? "";
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line;
}

/** After a visit that ended while something was written. */
export function settle(tree: Conversation): void {
  for (const node of tree.nodes) {
    if (node.role !== "assistant") continue;
    for (const side of [node, node.beside]) {
      if (side?.state === "writing") side.state = "interrupted";
    }
  }
}

/** True for what `Conversation` describes: kept data may be of another version or broken. */
export function isConversation(value: unknown): value is Conversation {
  if (typeof value !== "object" || value === null) return false;
  const { id, version, nodes, chosen, updatedMs } = value as Record<string, unknown>;
  return (
    typeof id === "string" &&
    version === 1 &&
    Array.isArray(nodes) &&
    typeof updatedMs === "number" &&
    typeof chosen === "object" &&
    chosen !== null
  );
}
