/** Conversations as data: branches, what a model is given of them, and what is exported. */

import { describe, expect, it } from "vitest";
import { fileNameOf, toJson, toMarkdown } from "../page/transcript.js";
import * as trees from "../page/tree.js";
import type { Answer, Answered, Conversation, Question } from "../page/tree.js";

const side = (text: string, state: Answered["state"] = "done"): Answered => ({
  text,
  state,
  cut: false,
  place: "Here",
  detail: "CPU",
  tokens: 1,
  tokensPerSecond: null,
  firstTokenMs: 1,
  failure: "",
});

function answer(tree: Conversation, question: Question, text: string, state?: Answered["state"]): Answer {
  return trees.answer(tree, question, side(text, state), { system: "", options: {} });
}

const texts = (tree: Conversation): string[] =>
  trees.path(tree).flatMap((turn) => [turn.question.text, ...(turn.answer ? [turn.answer.text] : [])]);

/** Q1 A1 Q2 A2, then Q1 edited to Q1b with A1b. */
function branched(): { tree: Conversation; first: Question; edited: Question; answers: Answer[] } {
  const tree = trees.newConversation(Date.UTC(2026, 0, 2));
  const first = trees.ask(tree, null, "chat", "Q1");
  const a1 = answer(tree, first, "A1");
  const second = trees.ask(tree, a1.id, "chat", "Q2");
  const a2 = answer(tree, second, "A2");
  const edited = trees.ask(tree, null, "chat", "Q1b");
  const a1b = answer(tree, edited, "A1b");
  return { tree, first, edited, answers: [a1, a2, a1b] };
}

describe("a conversation", () => {
  it("shows the branch that was made last, and the other one when it is chosen, whole", () => {
    const { tree, first, edited } = branched();
    expect(texts(tree)).toEqual(["Q1b", "A1b"]);
    trees.choose(tree, first);
    expect(texts(tree)).toEqual(["Q1", "A1", "Q2", "A2"]);
    expect(trees.path(tree)[0]?.questions).toEqual([first, edited]);
  });

  it("keeps each further answer beside the one before", () => {
    const { tree, edited, answers } = branched();
    const again = answer(tree, edited, "A1c");
    expect(texts(tree)).toEqual(["Q1b", "A1c"]);
    expect(trees.path(tree)[0]?.answers).toEqual([answers[2], again]);
  });

  it("gives a model the system message and the chosen chat, without what failed or was completed", () => {
    const tree = trees.newConversation(0);
    const q1 = trees.ask(tree, null, "chat", "Q1");
    const a1 = answer(tree, q1, "A1");
    const q2 = trees.ask(tree, a1.id, "chat", "Q2");
    const a2 = answer(tree, q2, "half", "failed");
    const q3 = trees.ask(tree, a2.id, "complete", "Once");
    const a3 = answer(tree, q3, " upon");
    const q4 = trees.ask(tree, a3.id, "chat", "Q4");
    expect(trees.messagesFor(tree, q4, "Be kind.")).toEqual([
      { role: "system", content: "Be kind." },
      { role: "user", content: "Q1" },
      { role: "assistant", content: "A1" },
      { role: "user", content: "Q4" },
    ]);
    expect(trees.messagesFor(tree, q1, "")).toEqual([{ role: "user", content: "Q1" }]);
  });

  it("says of an answer that a closed tab cut off that it was interrupted", () => {
    const { tree, answers } = branched();
    const [a1] = answers;
    if (a1) a1.state = "writing";
    trees.settle(tree);
    expect(a1?.state).toBe("interrupted");
    expect(answers[1]?.state).toBe("done");
  });

  it("is recognised after its way through storage, and other things are not", () => {
    const { tree } = branched();
    expect(trees.isConversation(structuredClone(tree))).toBe(true);
    expect(trees.isConversation({ ...tree, version: 2 })).toBe(false);
    expect(trees.isConversation({ id: "x" })).toBe(false);
    expect(trees.isConversation(null)).toBe(false);
  });

  it("is called by the beginning of its first question", () => {
    const tree = trees.newConversation(0);
    expect(trees.titleOf(tree)).toBe("");
    trees.ask(tree, null, "chat", `# **Why** do birds sing?\nAnd when?`);
    expect(trees.titleOf(tree)).toBe("Why do birds sing?");
    const long = trees.newConversation(0);
    trees.ask(long, null, "chat", "word ".repeat(40));
    expect(trees.titleOf(long)).toMatch(/^word .{50,55}…$/);
  });
});

describe("a transcript", () => {
  it("in Markdown has the chosen turns and both sides of a comparison", () => {
    const { tree, first, answers } = branched();
    trees.choose(tree, first);
    const [a1] = answers;
    if (a1) a1.beside = { ...side("B1"), place: "There", detail: "API · m" };
    expect(toMarkdown(tree)).toBe(
      [
        "# Q1\n\n2026-01-02\n",
        "## You\n\nQ1\n",
        "## Answer (Here, CPU)\n\nA1\n",
        "## Answer (There, API · m)\n\nB1\n",
        "## You\n\nQ2\n",
        "## Answer (Here, CPU)\n\nA2\n",
      ].join("\n"),
    );
  });

  it("in JSON has the messages and every version", () => {
    const { tree } = branched();
    const parsed = JSON.parse(toJson(tree)) as { messages: unknown; conversation: Conversation };
    expect(parsed.messages).toEqual([
      { role: "user", content: "Q1b" },
      { role: "assistant", content: "A1b" },
    ]);
    expect(parsed.conversation).toEqual(tree);
    expect(fileNameOf(tree)).toBe("q1-2026-01-02");
  });
});
