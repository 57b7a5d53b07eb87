/**
 * The page: welcome, loading, talk. `document.body.dataset.view` says which of the three is shown.
 *
 * No framework: the page is one screen whose structure stands in index.html; what changes is text.
 */

import { Fledgling, type DeviceChoice, type Timings } from "../src/index.js";
import { followEnd } from "./conversation.js";
import { byId, fillFacts, make } from "./dom.js";
import { fileName, formatBytes, formatDuration, formatRate } from "./format.js";
import { hideLoadError, loadModel, nameOf, showLoadError, type Wanted } from "./loading.js";
import { fetchApiModel, fetchShelf } from "./server.js";
import { Settings } from "./settings.js";
import { deviceName, Talk } from "./talk.js";

const ideas = [
  "What is Fledgling?",
  "How does a bird learn to fly?",
  "Write a haiku about a small model.",
  "Explain gravity to a child.",
];

const main = byId("main", HTMLElement);
const prompt = byId("prompt", HTMLTextAreaElement);
const send = byId("send", HTMLButtonElement);
const stop = byId("stop", HTMLButtonElement);
const clear = byId("clear", HTMLButtonElement);
const turns = byId("turns", HTMLElement);
const compareSwitch = byId("compare", HTMLInputElement);
const settingsDialog = byId("settings", HTMLDialogElement);
const about = byId("about", HTMLDialogElement);
const fileInput = byId("file", HTMLInputElement);
const settings = new Settings();

let talk: Talk | undefined;
let loading: AbortController | undefined;
let lastWanted: Wanted | undefined;
/** The model behind the API of this server, if there is one. */
let apiModel: string | undefined;

function show(view: "welcome" | "loading" | "talk"): void {
  document.body.dataset.view = view;
  if (view === "welcome") void showKept();
  byId("model-button", HTMLButtonElement).hidden = view !== "talk";
}

function announce(sentence: string): void {
  byId("announcer", HTMLElement).textContent = sentence;
}

// Loading

function chosenDevice(): DeviceChoice {
  const checked = document.querySelector<HTMLInputElement>("input[name=device]:checked");
  return checked?.value === "webgpu" || checked?.value === "cpu" ? checked.value : "auto";
}

async function load(source: string | File, device = chosenDevice()): Promise<void> {
  loading?.abort();
  const controller = new AbortController();
  loading = controller;
  const wanted: Wanted = { source, device, nCtx: settings.nCtx };
  lastWanted = wanted;
  talk?.stop();
  await talk?.model.dispose();
  talk = undefined;
  refresh();
  hideLoadError();
  show("loading");
  byId("cancel-load", HTMLButtonElement).focus();
  announce(`Loading ${nameOf(wanted)}`);
  try {
    const model = await loadModel(wanted, controller.signal);
    // Another file may have been dropped in the meantime.
    if (controller.signal.aborted) await model.dispose();
    else meet(model, wanted);
  } catch (thrown) {
    if (loading !== controller) return;
    show("welcome");
    if (!controller.signal.aborted) showLoadError(thrown, wanted);
  }
}

/** Everything that depends on which model is there. */
function meet(model: Fledgling, wanted: Wanted): void {
  const { info, device } = model;
  const name = info.name || nameOf(wanted);
  byId("model-name", HTMLElement).textContent = name;
  byId("model-size", HTMLElement).textContent = formatBytes(info.fileBytes);
  byId("device-dot", HTMLElement).dataset.kind = device.kind;
  const reason = device.reason ? ` (${device.reason})` : "";
  const line = byId("device-line", HTMLElement);
  line.textContent = line.title = deviceName(device.kind, device.name) + reason;
  showSpeed(undefined);
  byId("empty-title", HTMLElement).textContent = name;
  fillAbout(model, name);
  for (const input of modeInputs()) {
    if (input.value === "chat") input.disabled = !info.chat;
    input.checked = input.value === (info.chat ? "chat" : "complete");
  }
  startAfresh(model);
  modeChanged();
  show("talk");
  announce(`${name} is ready on ${deviceName(device.kind, device.name)}.`);
  prompt.focus();
}

function fillAbout({ info, device }: Fledgling, name: string): void {
  byId("about-title", HTMLElement).textContent = name;
  fillFacts(byId("about-facts", HTMLElement), [
    ["Architecture", info.architecture],
    ["Layers", `${info.nLayer}, ${info.nEmbd} wide`],
    ["Context", `${info.nCtx.toLocaleString()} tokens`],
    ["Vocabulary", `${info.vocabSize.toLocaleString()} tokens`],
    ["File", formatBytes(info.fileBytes)],
    ["Runs on", deviceName(device.kind, device.name)],
    ...(device.reason ? [["Because", device.reason] as const] : []),
  ]);
  const metadata = Object.entries(info.metadata).map(([key, value]) => [key, String(value)] as const);
  fillFacts(byId("about-metadata", HTMLElement), metadata);
}

/** A file that can be loaded with one click. */
function fileRow(name: string, url: string, size: string): HTMLElement {
  const row = make("li");
  const label = make("p");
  label.append(make("span", "name", name), make("span", "soft numbers", size));
  row.append(
    label,
    fileButton("Load", name, () => load(url)),
  );
  return row;
}

function fileButton(label: string, name: string, action: () => Promise<void>): HTMLElement {
  const button = make("button", "", label);
  button.type = "button";
  button.setAttribute("aria-label", `${label} ${name}`);
  button.addEventListener("click", () => void action());
  return button;
}

/** The files of earlier visits, with a way to be rid of them. */
async function showKept(): Promise<void> {
  const rows = (await Fledgling.cached()).map(({ url, sizeBytes, keptBytes }) => {
    const part = keptBytes < sizeBytes ? `${formatBytes(keptBytes)} of ` : "";
    const name = fileName(url);
    const row = fileRow(name, url, part + formatBytes(sizeBytes));
    const forget = fileButton("Delete", name, async () => {
      await Fledgling.forget(url);
      await showKept();
    });
    forget.classList.add("quiet");
    row.append(forget);
    return row;
  });
  byId("kept-list", HTMLElement).replaceChildren(...rows);
  byId("kept", HTMLElement).hidden = rows.length === 0;
}

// Talking

function modeInputs(): HTMLInputElement[] {
  return [...document.querySelectorAll<HTMLInputElement>("input[name=mode]")];
}

function mode(): "chat" | "complete" {
  return modeInputs().some((input) => input.checked && input.value === "complete") ? "complete" : "chat";
}

function modeChanged(): void {
  const chat = mode() === "chat";
  prompt.placeholder = chat ? "Say something" : "Write a beginning, and it goes on";
  byId("prompt-label", HTMLElement).textContent = chat ? "Message" : "Text to continue";
  byId("empty-lead", HTMLElement).textContent = chat
    ? "It is loaded and listening. Ask it something."
    : "It is loaded. Write the beginning of a text, and it goes on from there.";
  byId("ideas", HTMLElement).hidden = !chat;
}

function showSpeed(timings: Timings | undefined): void {
  const rate = timings?.tokensPerSecond;
  byId("speed-line", HTMLElement).textContent = rate ? formatRate(rate) : "";
  const first = timings ? `first token ${formatDuration(timings.timeToFirstTokenMs)}` : "";
  byId("first-line", HTMLElement).textContent = first;
}

function newTalk(model: Fledgling): Talk {
  return new Talk(model, settings, {
    turn: (element) => {
      turns.append(element);
    },
    speed: showSpeed,
    announce,
  });
}

/** An empty conversation with a model. */
function startAfresh(model: Fledgling): void {
  talk?.stop();
  turns.replaceChildren();
  talk = newTalk(model);
  refresh();
}

/** Brings the buttons in line with what is going on. */
function refresh(): void {
  const writing = talk?.writing ?? false;
  const empty = turns.childElementCount === 0;
  send.hidden = writing;
  stop.hidden = !writing;
  send.disabled = prompt.value.trim() === "";
  clear.hidden = empty || !talk;
  byId("empty", HTMLElement).hidden = !empty;
}

/** The prompt is as high as its text; where style sheets can do that (`field-sizing`), they do. */
function fitPrompt(): void {
  if (CSS.supports("field-sizing", "content")) return;
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

async function ask(): Promise<void> {
  const text = mode() === "chat" ? prompt.value.trim() : prompt.value;
  if (!talk || talk.writing || text.trim() === "") return;
  prompt.value = "";
  fitPrompt();
  const compareWith = compareSwitch.checked ? apiModel : undefined;
  const answered = talk.ask({ text, mode: mode(), compareWith });
  refresh();
  main.scrollTop = main.scrollHeight;
  await answered;
  refresh();
}

function wireComposer(): void {
  byId("composer", HTMLFormElement).addEventListener("submit", (event) => {
    event.preventDefault();
    void ask();
  });
  prompt.addEventListener("input", () => {
    fitPrompt();
    refresh();
  });
  prompt.addEventListener("keydown", (event) => {
    // isComposing: Enter that only ends the input of a Japanese word, say.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    void ask();
  });
  stop.addEventListener("click", () => {
    talk?.stop();
    prompt.focus();
  });
  clear.addEventListener("click", () => {
    if (talk) startAfresh(talk.model);
    prompt.focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) talk?.stop();
  });
  for (const input of modeInputs()) input.addEventListener("change", modeChanged);
  byId("ideas", HTMLElement).append(...ideas.map(ideaButton));
}

function ideaButton(idea: string): HTMLElement {
  const button = make("button", "", idea);
  button.type = "button";
  button.addEventListener("click", () => {
    prompt.value = idea;
    void ask();
  });
  return button;
}

function wireLoading(): void {
  byId("choose", HTMLButtonElement).addEventListener("click", () => {
    fileInput.click();
  });
  fileInput.addEventListener("change", () => {
    const file = fileInput.files?.[0];
    fileInput.value = "";
    if (file) void load(file);
  });
  byId("address-form", HTMLFormElement).addEventListener("submit", (event) => {
    event.preventDefault();
    void load(byId("address", HTMLInputElement).value);
  });
  byId("cancel-load", HTMLButtonElement).addEventListener("click", () => loading?.abort());
  byId("retry", HTMLButtonElement).addEventListener("click", () => {
    if (lastWanted) void load(lastWanted.source);
  });
  byId("retry-cpu", HTMLButtonElement).addEventListener("click", () => {
    if (lastWanted) void load(lastWanted.source, "cpu");
  });
}

function wireDrop(): void {
  const overlay = byId("drop-overlay", HTMLElement);
  const carriesFile = (event: DragEvent): boolean => event.dataTransfer?.types.includes("Files") ?? false;
  document.addEventListener("dragover", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    overlay.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    // No related element: the pointer has left the window.
    if (event.relatedTarget === null) overlay.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    overlay.hidden = true;
    if (!carriesFile(event)) return;
    event.preventDefault();
    const file = event.dataTransfer?.files[0];
    if (file) void load(file);
  });
}

function wireDialogs(): void {
  const fields = byId("settings-fields", HTMLElement);
  byId("settings-button", HTMLButtonElement).addEventListener("click", () => {
    settings.render(fields);
    settingsDialog.showModal();
  });
  byId("settings-reset", HTMLButtonElement).addEventListener("click", () => {
    settings.reset();
    settings.render(fields);
  });
  byId("model-button", HTMLButtonElement).addEventListener("click", () => {
    about.showModal();
  });
  byId("another", HTMLButtonElement).addEventListener("click", () => {
    about.close();
    talk?.stop();
    void talk?.model.dispose();
    talk = undefined;
    refresh();
    show("welcome");
    byId("choose", HTMLButtonElement).focus();
  });
  for (const dialog of [settingsDialog, about]) {
    // A click outside closes: the dialog's own box is covered by its form.
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
  }
}

/** What the server offers, and what the address of the page asks for. */
async function arrive(): Promise<void> {
  const query = new URLSearchParams(location.search);
  const device = document.querySelector<HTMLInputElement>(
    `input[name=device][value="${CSS.escape(query.get("device") ?? "auto")}"]`,
  );
  if (device) device.checked = true;
  const asked = query.get("model");
  if (asked) void load(asked);
  else void showKept();

  const [shelf, api] = await Promise.all([fetchShelf(), fetchApiModel()]);
  apiModel = api;
  byId("compare-label", HTMLElement).hidden = api === undefined;
  byId("shelf-list", HTMLElement).replaceChildren(
    ...shelf.map(({ name, url, sizeBytes }) =>
      fileRow(name, url, sizeBytes === undefined ? "" : formatBytes(sizeBytes)),
    ),
  );
  byId("shelf", HTMLElement).hidden = shelf.length === 0;
  // With the API there, this is fledgling serve, and its one model is what the page is open for.
  const only = shelf.length === 1 ? shelf[0] : undefined;
  if (only && !loading && (query.has("auto") || api !== undefined)) void load(only.url);
}

followEnd(main, turns);
wireComposer();
wireLoading();
wireDrop();
wireDialogs();
refresh();
void arrive();
