/** The dialog that chooses who answers beside: nobody, this server's API, another API, or a second model. */

import { apiBase, apiModels, type Api } from "./api.js";
import { button, byId, element } from "./dom.js";
import { dialogs as words } from "./strings.js";

export type Choice =
  { readonly kind: "none" } | { readonly kind: "api"; readonly api: Api } | { readonly kind: "model" };

type Kind = "none" | "server" | "api" | "model";

const storageKey = "fledgling.api";
const dialog = byId("beside", HTMLDialogElement);
const url = byId("api-url", HTMLInputElement);
const key = byId("api-key", HTMLInputElement);
const model = byId("api-model", HTMLInputElement);

const inputs = (): HTMLInputElement[] => [...dialog.querySelectorAll<HTMLInputElement>("input[name=beside]")];

function chosen(): Kind {
  const value = inputs().find((input) => input.checked)?.value;
  return value === "server" || value === "api" || value === "model" ? value : "none";
}

/** Connects the dialog. `onChoice` hears what was chosen; `ownModel` is the server's, if it has an API. */
export function wireBeside(ownModel: () => string | undefined, onChoice: (choice: Choice) => void): void {
  restore();
  button("beside-button").addEventListener("click", () => {
    const own = ownModel();
    for (const input of inputs()) if (input.value === "server") input.disabled = own === undefined;
    element("own-model").textContent = own ?? "";
    showError("");
    fieldsFollow();
    dialog.showModal();
  });
  for (const input of inputs()) input.addEventListener("change", fieldsFollow);
  byId("beside-form", HTMLFormElement).addEventListener("submit", (event) => {
    event.preventDefault();
    void decide(ownModel()).then((choice) => {
      if (!choice) return;
      dialog.close();
      onChoice(choice);
    });
  });
}

/** The choice as the dialog shows it when it opens next. */
export function markBeside(kind: Kind): void {
  for (const input of inputs()) input.checked = input.value === kind;
}

function fieldsFollow(): void {
  element("api-fields").hidden = chosen() !== "api";
}

/** Undefined, with an error shown, when the choice cannot be used. */
async function decide(own: string | undefined): Promise<Choice | undefined> {
  switch (chosen()) {
    case "none":
      return { kind: "none" };
    case "model":
      return { kind: "model" };
    case "server":
      return { kind: "api", api: { base: new URL("./", document.baseURI).href, key: "", model: own ?? "" } };
    case "api":
      return reach();
  }
}

/** Asks the API for its models, so that a wrong address or key shows here and not in an answer. */
async function reach(): Promise<Choice | undefined> {
  if (url.value.trim() === "") {
    showError(words.needsUrl);
    return undefined;
  }
  try {
    const base = apiBase(url.value);
    const names = await apiModels(base, key.value);
    const name = model.value.trim() || names[0];
    if (name === undefined) throw new Error("it lists no models");
    keep();
    return { kind: "api", api: { base, key: key.value, model: name } };
  } catch (thrown) {
    showError(words.notReached(thrown instanceof Error ? thrown.message : String(thrown)));
    return undefined;
  }
}

function showError(sentence: string): void {
  const line = element("beside-error");
  line.textContent = sentence;
  line.hidden = sentence === "";
}

function keep(): void {
  try {
    localStorage.setItem(storageKey, JSON.stringify([url.value, key.value, model.value]));
  } catch {
    // It has to be written again next time.
  }
}

function restore(): void {
  try {
    const kept: unknown = JSON.parse(localStorage.getItem(storageKey) ?? "[]");
    if (!Array.isArray(kept)) return;
    [url, key, model].forEach((input, i) => {
      const value: unknown = kept[i];
      if (typeof value === "string") input.value = value;
    });
  } catch {
    // As empty as at first.
  }
}
