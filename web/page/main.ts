/**
 * The page: models, loading, talk. `document.body.dataset.view` says which of the three is shown.
 *
 * No framework: the page is one screen whose structure stands in index.html; what changes is text, and the
 * lists of turns, conversations and files, each drawn by a module of its own.
 */

import type { DeviceChoice, Fledgling } from "../src/index.js";
import { deviceName, here, LocalAnswerer, type Answerer } from "./answerer.js";
import { ApiAnswerer } from "./api.js";
import { measure, toTable, type Benchmark } from "./benchmark.js";
import { markBeside, wireBeside, type Choice } from "./beside.js";
import { button, byId, copyFrom, element, fillFacts, makeButton, saveFile } from "./dom.js";
import { explain } from "./explain.js";
import { formatBytes, formatDuration, formatRate } from "./format.js";
import { Inside } from "./inside.js";
import { Library } from "./library.js";
import { hideLoadError, loadModel, nameOf, showLoadError, type Wanted } from "./loading.js";
import { keepOffline } from "./offline.js";
import { fetchApiModel, fetchShelf } from "./own-server.js";
import { defaults, fromHash, Settings, toHash } from "./settings.js";
import { renderSettings } from "./settings-fields.js";
import { Shelf } from "./shelf.js";
import * as strings from "./strings.js";
import { Talk } from "./talk.js";
import { restoreTheme, toggleTheme } from "./theme.js";
import { Thread } from "./thread.js";
import { fileNameOf, toJson, toMarkdown } from "./transcript.js";
import { newConversation, path, titleOf, type Mode } from "./tree.js";
import { tidy } from "./turn-view.js";

type View = "models" | "loading" | "talk";

/** Saved this often while an answer grows, so that a closed tab costs little of it. */
const savePauseMs = 2000;

restoreTheme();

const main = element("main");
const prompt = byId("prompt", HTMLTextAreaElement);
const settingsDialog = byId("settings", HTMLDialogElement);
const confirmDialog = byId("confirm", HTMLDialogElement);
const fileInput = byId("file", HTMLInputElement);
const settings = new Settings();
const inside = new Inside();

let model: Fledgling | undefined;
let besideModel: Fledgling | undefined;
let loading: AbortController | undefined;
let lastWanted: Wanted | undefined;
/** True while the shelf chooses the model that answers beside. */
let picking = false;
/** The model behind the API of this server, if there is one. */
let apiModel: string | undefined;
let savedAt = 0;

const talk = new Talk(settings, {
  changed: () => {
    redraw();
    void library.save(talk.tree);
  },
  grew: (questionId) => {
    thread.grew(questionId);
    if (performance.now() - savedAt < savePauseMs) return;
    savedAt = performance.now();
    void library.save(talk.tree);
  },
  token: () => {
    inside.token();
  },
  ended: (end) => {
    inside.ended(end);
    showSpeed(end.tokensPerSecond, end.firstTokenMs);
  },
  written: (tree) => void library.save(tree),
  announce,
  lost: () => {
    void release();
    say(strings.talk.lost, strings.talk.loadAgain, () => {
      if (lastWanted) void load(lastWanted.source, lastWanted.device);
    });
  },
});

const thread = new Thread(
  main,
  element("turns"),
  {
    edit: (question, text) => void answering(talk.edit(question, text)),
    regenerate: (question) => void answering(talk.regenerate(question)),
    goOn: (question, answer) => void answering(talk.goOn(question, answer)),
    choose: (node) => {
      talk.choose(node);
    },
  },
  (following) => {
    button("to-end").hidden = following || document.body.dataset.view !== "talk";
  },
);

const library = new Library({
  open: (tree) => {
    talk.open(tree);
    show("talk");
    thread.toEnd();
    closeDrawer();
  },
  gone: () => {
    startAfresh();
  },
  confirm,
  say,
});

const shelf = new Shelf({ load: (url) => void load(url), confirm, say });

// Views

function show(view: View): void {
  const changes = document.body.dataset.view !== view;
  document.body.dataset.view = view;
  if (view === "talk" && changes) thread.toEnd();
  if (changes && view !== "talk") main.scrollTop = 0;
  if (view !== "models") return;
  element("welcome-hello").hidden = picking || model !== undefined;
  element("pick-hello").hidden = !picking;
  button("back-to-talk").hidden = picking || !(talk.first ?? path(talk.tree).length > 0);
  button("only-api").hidden = picking || apiModel === undefined;
  showSmallest();
  void shelf.draw();
}

function showSmallest(): void {
  const { smallest } = shelf;
  const size = smallest?.sizeBytes === undefined ? "" : ` (${formatBytes(smallest.sizeBytes)})`;
  button("start").textContent = strings.html.startSmallest + size;
  button("start").hidden = !smallest || picking || model !== undefined;
}

function announce(sentence: string): void {
  element("announcer").textContent = sentence;
}

let toastTimer: ReturnType<typeof setTimeout> | undefined;

/** Says something for a while at the foot of the page, with something that can be done about it. */
function say(sentence: string, label?: string, action?: () => void): void {
  const toast = element("toast");
  const done = (): void => {
    toast.hidden = true;
  };
  toast.replaceChildren(sentence);
  if (label !== undefined && action) {
    toast.append(
      makeButton(
        label,
        () => {
          done();
          action();
        },
        { className: "small" },
      ),
    );
  }
  toast.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(done, label === undefined ? 5000 : 12_000);
}

/** Asks before something that cannot be taken back. */
function confirm(question: string): Promise<boolean> {
  element("confirm-question").textContent = question;
  confirmDialog.returnValue = "";
  confirmDialog.showModal();
  return new Promise((resolve) => {
    confirmDialog.addEventListener(
      "close",
      () => {
        resolve(confirmDialog.returnValue === "yes");
      },
      { once: true },
    );
  });
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
  const forBeside = picking;
  if (!forBeside) {
    lastWanted = wanted;
    await release();
  }
  hideLoadError();
  show("loading");
  button("cancel-load").focus();
  announce(strings.loading.announce(nameOf(wanted)));
  try {
    const loaded = await loadModel(wanted, controller.signal);
    // Another file may have been dropped in the meantime.
    if (controller.signal.aborted) await loaded.dispose();
    else if (forBeside) meetBeside(loaded, wanted);
    else meet(loaded, wanted);
  } catch (thrown) {
    if (loading !== controller) return;
    show("models");
    if (!controller.signal.aborted) showLoadError(thrown, wanted);
  }
}

/** Lets go of the model that answers. */
async function release(): Promise<void> {
  talk.stop();
  talk.first = undefined;
  const old = model;
  model = undefined;
  shelf.current = undefined;
  inside.model(undefined);
  nameModel(strings.talk.chooseModel, "");
  showDevice(undefined, strings.talk.noModel);
  await old?.dispose();
  redraw();
}

/** Everything that depends on which model is there. */
function meet(loaded: Fledgling, wanted: Wanted): void {
  model = loaded;
  const { info, device } = loaded;
  const name = info.name || nameOf(wanted);
  nameModel(name, formatBytes(info.fileBytes));
  const reason = device.reason ? ` (${device.reason})` : "";
  showDevice(device.kind, deviceName(device) + reason);
  shelf.current =
    typeof wanted.source === "string" ? new URL(wanted.source, document.baseURI).href : undefined;
  inside.model(loaded);
  const metadata = Object.entries(info.metadata).map(([key, value]) => [key, String(value)] as const);
  fillFacts(element("about-metadata"), metadata);
  answerFirst(here(loaded), name);
  announce(strings.loading.done(name, deviceName(device)));
}

function answerFirst(answerer: Answerer, name: string): void {
  talk.first = answerer;
  element("empty-title").textContent = name;
  for (const input of modeInputs()) {
    if (input.value === "chat") input.disabled = !answerer.chat;
    if (!answerer.chat) input.checked = input.value === "complete";
  }
  showSpeed(null, null);
  modeChanged();
  show("talk");
  redraw();
  prompt.focus();
}

function meetBeside(loaded: Fledgling, wanted: Wanted): void {
  const name = loaded.info.name || nameOf(wanted);
  void besideModel?.dispose();
  besideModel = loaded;
  picking = false;
  setBeside(
    new LocalAnswerer(loaded, strings.talk.beside, `${nameOf(wanted)} · ${deviceName(loaded.device)}`),
    name,
  );
  markBeside("model");
  show("talk");
  say(strings.talk.ready(name));
  prompt.focus();
}

function nameModel(name: string, size: string): void {
  element("model-name").textContent = name;
  element("model-size").textContent = size;
}

function showDevice(kind: "webgpu" | "cpu" | undefined, line: string): void {
  element("device-dot").dataset.kind = kind ?? "none";
  element("device-line").textContent = element("device-line").title = line;
}

// Talking

function modeInputs(): HTMLInputElement[] {
  return [...document.querySelectorAll<HTMLInputElement>("input[name=mode]")];
}

function mode(): Mode {
  return modeInputs().some((input) => input.checked && input.value === "complete") ? "complete" : "chat";
}

function modeChanged(): void {
  const chat = mode() === "chat";
  const { placeholderChat, placeholderComplete, placeholderNoModel, leadChat, leadComplete } = strings.talk;
  prompt.placeholder = !talk.first ? placeholderNoModel : chat ? placeholderChat : placeholderComplete;
  element("prompt-label").textContent = chat ? strings.talk.labelChat : strings.talk.labelComplete;
  element("empty-lead").textContent = chat ? leadChat : leadComplete;
  element("ideas").replaceChildren(...(chat ? strings.ideas : strings.beginnings).map(ideaButton));
}

function ideaButton(idea: string): HTMLElement {
  return makeButton(idea, () => {
    prompt.value = idea;
    void ask();
  });
}

function showSpeed(tokensPerSecond: number | null, firstTokenMs: number | null): void {
  element("speed-line").textContent = tokensPerSecond === null ? "" : formatRate(tokensPerSecond);
  element("first-line").textContent =
    firstTokenMs === null ? "" : strings.talk.firstToken(formatDuration(firstTokenMs));
}

function startAfresh(): void {
  talk.open(newConversation(Date.now()));
  void library.draw("");
  show(talk.first ? "talk" : "models");
  closeDrawer();
  if (talk.first) prompt.focus();
}

/** Brings turns and buttons in line with what is going on. */
function redraw(): void {
  const turns = path(talk.tree);
  const { writing } = talk;
  thread.show(turns, writing || !talk.first);
  const empty = turns.length === 0;
  button("send").hidden = writing;
  button("stop").hidden = !writing;
  button("clear").hidden = button("more-button").hidden = empty;
  element("empty").hidden = !empty;
  button("to-end").hidden ||= empty;
  document.title = empty ? strings.html.title : `${titleOf(talk.tree)} · ${strings.html.title}`;
  sendFollows();
}

function sendFollows(): void {
  button("send").disabled = !talk.first || prompt.value.trim() === "";
}

/** The prompt is as high as its text; where style sheets can do that (`field-sizing`), they do. */
function fitPrompt(): void {
  if (CSS.supports("field-sizing", "content")) return;
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

async function ask(): Promise<void> {
  const text = tidy(mode(), prompt.value);
  if (!talk.first || talk.writing || text.trim() === "") return;
  prompt.value = "";
  fitPrompt();
  await answering(talk.ask(mode(), text));
}

/** While an answer is on its way. */
async function answering(answered: Promise<void>): Promise<void> {
  inside.begin();
  showSpeed(null, null);
  thread.toEnd();
  await answered;
}

function setBeside(answerer: Answerer | undefined, name: string): void {
  talk.second = answerer;
  const { beside, besideOff } = strings.dialogs;
  element("beside-label").textContent = answerer ? beside(name) : besideOff;
  button("beside-button").ariaPressed = String(answerer !== undefined);
}

function besideChosen(choice: Choice): void {
  if (choice.kind === "model") {
    picking = true;
    show("models");
    return;
  }
  void besideModel?.dispose();
  besideModel = undefined;
  if (choice.kind === "api") setBeside(new ApiAnswerer(choice.api), choice.api.model);
  else setBeside(undefined, "");
  prompt.focus();
}

function wireComposer(): void {
  byId("composer", HTMLFormElement).addEventListener("submit", (event) => {
    event.preventDefault();
    void ask();
  });
  prompt.addEventListener("input", () => {
    fitPrompt();
    sendFollows();
  });
  prompt.addEventListener("keydown", (event) => {
    // isComposing: Enter that only ends the input of a Japanese word, say.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    void ask();
  });
  button("stop").addEventListener("click", () => {
    talk.stop();
    prompt.focus();
  });
  button("to-end").addEventListener("click", () => {
    thread.toEnd();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open], [popover]:popover-open")) return;
    if (document.body.dataset.drawer === "open") closeDrawer();
    else talk.stop();
  });
  for (const input of modeInputs()) input.addEventListener("change", modeChanged);
  wireBeside(() => apiModel, besideChosen);
}

function wireModels(): void {
  button("model-button").addEventListener("click", () => {
    picking = false;
    show("models");
    button("choose").focus();
  });
  button("back-to-talk").addEventListener("click", () => {
    show("talk");
    prompt.focus();
  });
  button("cancel-pick").addEventListener("click", () => {
    picking = false;
    markBeside(talk.second ? "model" : "none");
    show("talk");
    prompt.focus();
  });
  button("start").addEventListener("click", () => {
    if (shelf.smallest) void load(shelf.smallest.url);
  });
  button("only-api").addEventListener("click", () => {
    if (apiModel === undefined) return;
    const answerer = new ApiAnswerer({
      base: new URL("./", document.baseURI).href,
      key: "",
      model: apiModel,
    });
    void release().then(() => {
      nameModel(apiModel ?? "", "");
      showDevice(undefined, answerer.detail);
      answerFirst(answerer, apiModel ?? "");
    });
  });
  button("choose").addEventListener("click", () => {
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
  button("cancel-load").addEventListener("click", () => loading?.abort());
  button("retry").addEventListener("click", () => {
    if (lastWanted) void load(lastWanted.source);
  });
  button("retry-cpu").addEventListener("click", () => {
    if (lastWanted) void load(lastWanted.source, "cpu");
  });
}

function wireDrop(): void {
  const overlay = element("drop-overlay");
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

// Conversations, settings, panels

function closeDrawer(): void {
  document.body.dataset.drawer = "closed";
  button("library-button").ariaExpanded = "false";
}

function wireLibrary(): void {
  button("library-button").addEventListener("click", () => {
    const open = document.body.dataset.drawer !== "open";
    document.body.dataset.drawer = open ? "open" : "closed";
    button("library-button").ariaExpanded = String(open);
    if (open) button("new-talk").focus();
  });
  element("scrim").addEventListener("click", closeDrawer);
  for (const id of ["new-talk", "clear"]) button(id).addEventListener("click", startAfresh);
  button("delete-all").addEventListener("click", () => void library.deleteAll());
  const menu = element("more");
  const item = (id: string, action: (pressed: HTMLButtonElement) => void): void => {
    button(id).addEventListener("click", () => {
      menu.hidePopover();
      action(button("more-button"));
    });
  };
  item("export-markdown", () => {
    saveFile(`${fileNameOf(talk.tree)}.md`, "text/markdown", toMarkdown(talk.tree));
  });
  item("export-json", () => {
    saveFile(`${fileNameOf(talk.tree)}.json`, "application/json", toJson(talk.tree));
  });
  item("copy-markdown", (pressed) => void copy(pressed, toMarkdown(talk.tree)));
  item("delete-talk", () => void library.delete(talk.tree.id, titleOf(talk.tree)));
}

async function copy(pressed: HTMLButtonElement, text: string): Promise<boolean> {
  const copied = await copyFrom(pressed, text, strings.talk.copied);
  if (!copied) say(strings.dialogs.copyFailed);
  return copied;
}

function drawSettings(): void {
  renderSettings(settings, element("presets"), element("settings-fields"));
}

function wireSettings(): void {
  button("settings-button").addEventListener("click", () => {
    drawSettings();
    settingsDialog.showModal();
  });
  button("settings-reset").addEventListener("click", () => {
    settings.replace(defaults());
    drawSettings();
  });
  button("settings-link").addEventListener("click", (event) => {
    const link = new URL(location.pathname, location.href);
    if (typeof lastWanted?.source === "string") link.searchParams.set("model", lastWanted.source);
    link.hash = toHash(settings.values);
    void copy(event.currentTarget as HTMLButtonElement, link.href);
  });
  button("theme-button").addEventListener("click", toggleTheme);
  for (const dialog of document.querySelectorAll("dialog")) {
    // A click outside closes: the dialog's own box is covered by its form.
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
  }
}

/** Settings that came with the link count from now on; one's own can be had back. */
function takeSettingsOfLink(): void {
  const sent = fromHash(location.hash);
  if (!sent) return;
  const own = { ...settings.values };
  settings.replace(sent);
  history.replaceState(null, "", location.pathname + location.search);
  say(strings.settings.fromLink, strings.settings.undo, () => {
    settings.replace(own);
  });
}

let measured: Benchmark | undefined;

async function runBenchmark(): Promise<void> {
  const start = button("bench-start");
  const line = element("bench-line");
  if (!model) {
    line.textContent = strings.talk.noModel;
    return;
  }
  if (talk.writing) {
    line.textContent = strings.inside.busy;
    return;
  }
  start.disabled = true;
  try {
    measured = await measure(model, AbortSignal.timeout(300_000), (round, rounds) => {
      line.textContent = strings.inside.measuring(round, rounds);
    });
    const { prefillTokensPerS, decodeTokensPerS, firstTokenMs } = measured;
    const { result, resultFirst } = strings.inside;
    line.textContent = `${result(formatRate(prefillTokensPerS), formatRate(decodeTokensPerS))}, ${resultFirst(formatDuration(firstTokenMs))}`;
    element("bench-share").hidden = false;
  } catch (thrown) {
    const { title, advice } = explain(thrown);
    line.textContent = `${title}. ${advice}`;
  } finally {
    start.disabled = false;
  }
}

function wireInside(): void {
  const toggle = (open: boolean): void => {
    document.body.dataset.inside = open ? "open" : "closed";
    button("inside-button").ariaExpanded = String(open);
  };
  button("inside-button").addEventListener("click", () => {
    toggle(document.body.dataset.inside !== "open");
  });
  button("inside-close").addEventListener("click", () => {
    toggle(false);
    button("inside-button").focus();
  });
  button("bench-start").addEventListener("click", () => void runBenchmark());
  button("bench-copy").addEventListener("click", (event) => {
    if (measured) void copy(event.currentTarget as HTMLButtonElement, toTable(measured));
  });
  button("bench-save").addEventListener("click", () => {
    if (!measured) return;
    saveFile(
      `fledgling-bench-${measured.date}.json`,
      "application/json",
      `${JSON.stringify(measured, null, 2)}\n`,
    );
  });
}

/** What the server offers, and what the address of the page asks for. */
async function arrive(): Promise<void> {
  const query = new URLSearchParams(location.search);
  const device = document.querySelector<HTMLInputElement>(
    `input[name=device][value="${CSS.escape(query.get("device") ?? "auto")}"]`,
  );
  if (device) device.checked = true;
  element("no-webgpu").hidden = "gpu" in navigator;
  takeSettingsOfLink();
  void library.draw();
  const asked = query.get("model");
  if (asked) void load(asked);
  else void shelf.draw();

  const [files, api] = await Promise.all([fetchShelf(), fetchApiModel()]);
  apiModel = api;
  shelf.offered = files;
  if (document.body.dataset.view === "models") show("models");
  // With the API there, this is fledgling serve, and its one model is what the page is open for.
  const only = files.length === 1 ? files[0] : undefined;
  if (only && !loading && (query.has("auto") || api !== undefined)) void load(only.url);
}

wireComposer();
wireModels();
wireDrop();
wireLibrary();
wireSettings();
wireInside();
setBeside(undefined, "");
modeChanged();
void release();
void arrive().then(async () => {
  if (await keepOffline()) announce(strings.dialogs.offline);
});
