/**
 * Every English sentence of the page, in one place.
 *
 * `html` fills the `{{name}}` placeholders of index.html when the page is built; the rest is used by the
 * modules. A translation is a second file of this shape.
 */

import type { ErrorCode } from "../src/errors.js";

const count = (n: number, unit: string): string => `${n.toLocaleString("en")} ${unit}${n === 1 ? "" : "s"}`;

export const html = {
  title: "Fledgling",
  description: "A small language model that runs in this tab.",
  noScript: "This page runs a language model in your browser, which needs JavaScript.",
  skip: "Skip to the conversation",
  close: "Close",

  conversations: "Conversations",
  newConversation: "New conversation",
  deleteAll: "Delete all conversations",
  openConversations: "Conversations",
  settings: "Settings",
  theme: "Light or dark",
  lookInside: "Look inside",

  welcomeTitle: "A language model that lives in this tab",
  welcomeLead:
    "A small model, fine-tuned on somebody's own text, runs from one file on your machine. Nothing you type leaves it, nothing is paid by the word, and once the file is here no connection is needed. The same file gives the same text on a server, and this page can show you that.",
  startSmallest: "Load the smallest model",
  noWebgpu:
    "This browser offers no WebGPU, so models run on the CPU: slower, and with the same text. Everything on this page works.",
  backToTalk: "Back to the conversation",
  pickBesideTitle: "Which model should answer beside it?",
  pickBesideLead: "Both get the same question, and you see their answers side by side.",
  cancelPick: "Never mind",
  details: "Details",
  tryAgain: "Try again",
  useCpu: "Use the CPU instead",
  onServer: "On this server",
  inBrowser: "Kept in this browser",
  dropHere: "Drop a <code>.gguf</code> file anywhere",
  chooseFile: "Choose a file",
  pasteAddress: "or paste an address",
  addressLabel: "Address of a GGUF file",
  load: "Load",
  runOn: "Run on",
  automatic: "Automatic",
  webgpu: "WebGPU",
  cpu: "CPU",
  keepForGood: "Ask the browser to keep them",
  onlyApi: "Talk to the server's model without loading one",

  downloading: "Downloading",
  preparing: "Compiling and warming up",
  cancel: "Cancel",

  conversation: "Conversation",
  message: "Message",
  mode: "Mode",
  chat: "Chat",
  complete: "Complete",
  send: "Send",
  stop: "Stop (Escape)",
  toEnd: "To the latest answer",
  keys: "Enter sends, Shift + Enter breaks the line, Escape stops",
  exportConversation: "Export",
  exportMarkdown: "Export as Markdown",
  exportJson: "Export as JSON",
  copyMarkdown: "Copy as Markdown",
  deleteConversation: "Delete this conversation",

  presets: "Presets",
  backToDefaults: "Back to the defaults",
  copySettingsLink: "Copy a link with these settings",

  aboutFile: "What the file says",
  anotherModel: "Models",

  insideSpeed: "Speed",
  insideSpeedHelp: "Tokens a second of the last answer, token by token.",
  insideNow: "This answer",
  insideModel: "This model",
  benchmark: "Measure this device",
  benchmarkHelp: "Reads 128 tokens and writes 64, three times; the best counts. Takes some seconds.",
  runBenchmark: "Start",
  copyResult: "Copy the result",
  saveResult: "Save as JSON",

  besideTitle: "Answer beside it",
  besideLead:
    "The same conversation is asked twice, and a line under both answers says whether the texts are equal. At temperature 0, or with the same seed, the same file should give the same text everywhere.",
  besideNone: "Nothing",
  besideServer: "The API of this server",
  besideApi: "Another OpenAI-compatible API",
  besideModel: "Another model in this tab",
  apiUrl: "Address, up to and without /v1",
  apiKey: "Key (kept in this browser only)",
  apiModel: "Model (empty for the API's first)",
  useIt: "Use it",

  confirmYes: "Delete",
  dropToLoad: "Drop to load",
} as const;

export const ideas = [
  "What is Fledgling?",
  "How does a bird learn to fly?",
  "Write a haiku about a small model.",
  "Show me a loop in Python.",
] as const;

export const beginnings = ["Once upon a time, a small bird", "The recipe needs", "Dear neighbours,"] as const;

export const loading = {
  connecting: "Connecting…",
  reading: "Reading",
  readingKept: "Reading what this browser kept",
  ready: (bytes: string) => `${bytes} are here; the engine is getting ready`,
  of: (some: string, all: string) => `${some} of ${all}`,
  left: (time: string) => `${time} left`,
  announce: (name: string) => `Loading ${name}`,
  done: (name: string, device: string) => `${name} is ready on ${device}.`,
} as const;

export const shelf = {
  load: "Load",
  resume: "Resume",
  choose: "Choose",
  inUse: "In use",
  delete: "Delete",
  kept: (some: string, all: string) => `${some} of ${all} are here`,
  tuned: (what: string) => `fine-tuned on ${what}`,
  tunedFrom: (base: string) => `from ${base}`,
  rows: (n: number) => count(n, "row"),
  tokens: (n: number) => count(n, "token"),
  perplexity: (value: string, text: string) => `perplexity ${value}${text ? ` on ${text}` : ""}`,
  heldOut: "held-out rows",
  used: (used: string, quota: string) => `${used} used of ${quota} that the browser allows`,
  persisted: "The browser keeps them until you delete them.",
  notPersisted: "The browser may delete them when the disk is full.",
  persistRefused: "The browser did not agree; it does for sites that are visited often or installed.",
  confirmDelete: (name: string) => `Delete ${name} from this browser? It can be downloaded again.`,
} as const;

export const talk = {
  here: "Here",
  there: "There",
  beside: "Beside",
  api: (model: string) => `API · ${model}`,
  placeholderChat: "Say something",
  placeholderComplete: "Write a beginning, and it goes on",
  placeholderNoModel: "Load a model to go on",
  labelChat: "Message",
  labelComplete: "Text to continue",
  leadChat: "It is loaded and listening. Ask it something.",
  leadComplete: "It is loaded. Write the beginning of a text, and it goes on from there.",
  noModel: "No model loaded",
  chooseModel: "Choose a model",
  lost: "The model has to be loaded again.",
  loadAgain: "Load it again",
  ready: (name: string) => `${name} answers beside.`,
  you: "You",
  assistant: "Answer",
  copy: "Copy",
  copied: "Copied",
  copyCode: "Copy the code",
  edit: "Edit",
  editLabel: "Edit the message",
  sendEdited: "Send",
  keepOld: "Cancel",
  regenerate: "Another answer",
  goOn: "Go on",
  earlier: "Earlier version",
  later: "Later version",
  version: (i: number, n: number) => `${i} of ${n}`,
  tokens: (n: number) => count(n, "token"),
  first: (time: string) => `first after ${time}`,
  options: (temperature: number, seed: number) =>
    temperature === 0 ? "temperature 0" : `temperature ${temperature}, seed ${seed}`,
  cut: "cut at the longest answer",
  stopped: "stopped",
  interrupted: "interrupted",
  comparing: "Comparing…",
  answered: (text: string) => `Answer: ${text}`,
  failed: (message: string) => `Failed: ${message}`,
  firstToken: (time: string) => `first token ${time}`,
  serverSilent: (why: string) => `The API did not answer: ${why}.`,
  serverAdvice:
    "Check its address, the key, and that it allows this page (CORS; fledgling serve --allow-origin).",
  turn: (i: number, n: number) => `Turn ${i} of ${n}`,
} as const;

export const verdict = {
  same: (n: number) => `The same text, all ${count(n, "character")} of it.`,
  stopped: (n: number) => `Stopped; the same text up to there, ${count(n, "character")} of it.`,
  part: (n: number, here: string, there: string) =>
    `They part after ${count(n, "character")}: here ${here}, there ${there}.`,
  ends: "it ends",
  nothing: "Nothing to compare: one of the two did not answer.",
} as const;

export const library = {
  untitled: "New conversation",
  delete: (title: string) => `Delete “${title}”`,
  confirmDelete: (title: string) => `Delete “${title}” for good? It is nowhere else.`,
  confirmDeleteAll: (n: number) => `Delete ${count(n, "conversation")} for good? They are nowhere else.`,
  deleted: "Deleted.",
  today: "Today",
  yesterday: "Yesterday",
  earlier: "Earlier",
  notKept: "This browser keeps no conversations (a private window?). Export what you want to have.",
} as const;

export const settings = {
  presets: {
    exact: ["Exact", "The same text every time, everywhere."],
    balanced: ["Balanced", "Some freedom, for conversation."],
    playful: ["Playful", "Much freedom, for stories."],
  },
  temperature: [
    "Temperature",
    "0 always takes the most likely token: calm, and the same every time. Higher is more surprising.",
  ],
  topK: ["Top-k", "Choose among the k most likely tokens only. 0 is no limit."],
  topP: [
    "Top-p",
    "Choose among the likeliest tokens that together hold this share of the probability. 1 is no limit.",
  ],
  minP: ["Min-p", "Leave out tokens less likely than this share of the best one. 0 is no limit."],
  repetitionPenalty: [
    "Repetition penalty",
    "Above 1, tokens that were already written become less likely. 1 changes nothing.",
  ],
  maxTokens: ["Longest answer", "In tokens. A token is a piece of a word, about four letters of English."],
  seed: ["Seed", "The same seed gives the same text, on every device."],
  nCtx: [
    "Context",
    "How many tokens the model can look back on. 0 takes the model's own; less needs less memory. Counts from the next loading on.",
  ],
  stop: ["Stop texts", "One a line. The answer ends before the first of them. Write \\n for a line break."],
  stopPlaceholder: "None",
  system: ["System message", "Tells the model, before a conversation, how to behave."],
  systemPlaceholder: "The model's own",
  fromLink: "These settings came with the link.",
  undo: "Take mine",
} as const;

export const inside = {
  tokensPerSecond: "Tokens a second",
  firstToken: "First token after",
  written: "Written",
  prompt: "Prompt",
  context: "Context",
  contextUsed: "Context in use",
  contextOf: (used: number, all: number) => `${used.toLocaleString("en")} of ${all.toLocaleString("en")}`,
  device: "Runs on",
  because: "Because",
  architecture: "Architecture",
  layers: "Layers",
  layersOf: (n: number, width: number) => `${n}, ${width} wide`,
  vocabulary: "Vocabulary",
  file: "File",
  quantisation: "Quantisation",
  tuned: "Fine-tuned",
  perplexity: "Perplexity",
  plot: (latest: string, lowest: string, highest: string) =>
    `Speed by token: now ${latest}, between ${lowest} and ${highest} tokens a second.`,
  measuring: (round: number, rounds: number) => `Measuring, ${round} of ${rounds}…`,
  result: (prefill: string, decode: string) => `reads ${prefill}, writes ${decode}`,
  resultFirst: (time: string) => `first token after ${time}`,
  busy: "Wait for the answer, then measure.",
  tuple: ["Model", "Device", "Prefill, tokens/s", "Decode, tokens/s", "First token, ms", "Browser", "Date"],
} as const;

export const dialogs = {
  beside: (what: string) => `Beside: ${what}`,
  besideOff: "Compare",
  notReached: (why: string) => `That API cannot be used: ${why}.`,
  needsUrl: "Give the address of the API, such as http://127.0.0.1:8080.",
  copyFailed: "The browser did not allow copying.",
  offline: "This page now works without a connection.",
} as const;

/** What each error is, and what to do about it. */
export const errors: Readonly<Record<ErrorCode, readonly [title: string, advice: string]>> = {
  "not-gguf": [
    "This is not a GGUF file",
    "Choose a file that ends in .gguf, such as one written by fledgling export or downloaded for llama.cpp.",
  ],
  truncated: [
    "The file is not whole",
    "It ends before its last weight. Download or copy it again, and compare its size with the original.",
  ],
  "unsupported-model": [
    "This model is of a kind that does not run here",
    "Models of the GPT-2, Llama and Qwen families run. On WebGPU not every type of weights does: use the CPU, or export yours with fledgling export --quant q8_0.",
  ],
  "no-tokenizer": [
    "The file has no tokenizer",
    "Without one, text cannot become tokens. Export the model again with fledgling export, which puts it in.",
  ],
  "no-webgpu": [
    "This browser offers no WebGPU",
    "Use the CPU instead: it is slower and gives the same text. Or try a current Chrome, Edge, Safari or Firefox, with hardware acceleration switched on.",
  ],
  "device-lost": [
    "The GPU was lost",
    "The driver reset it, or another program needed it. Load the model again; if it happens again, use the CPU.",
  ],
  "out-of-memory": [
    "There is not enough memory for this model",
    "Close other tabs, set a smaller context in the settings, or take a smaller file (Q8_0 or Q4_0).",
  ],
  "prompt-too-long": [
    "That is longer than the model can read",
    "Shorten it, begin a new conversation, or set a larger context in the settings if the model has one.",
  ],
  "bad-option": [
    "One of the settings cannot be used",
    "Put the settings back to their defaults and try again.",
  ],
  "no-chat-template": [
    "This model cannot chat",
    "Its file has no chat template. Switch to Complete: it continues the text that you write.",
  ],
  busy: ["The model is still writing", "Wait for the end of its answer, or stop it with Escape."],
  disposed: ["The model is no longer loaded", "Load it again."],
  internal: [
    "Something went wrong inside the engine",
    "Load the model again. If it happens again, please report it with the details below.",
  ],
  network: [
    "The file could not be downloaded",
    "Check the address and the connection. A server on another site must allow it (CORS); else download the file and drop it here.",
  ],
  crashed: [
    "The engine stopped unexpectedly",
    "Load the model again. The most common reason is memory: close other tabs or take a smaller model.",
  ],
};
