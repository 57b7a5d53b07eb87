/** The fields of the settings dialog, each with what it does in plain words. */

import { make, makeButton } from "./dom.js";
import { numberKeys, numbers, presets, type NumberKey, type Preset, type Settings } from "./settings.js";
import { settings as words } from "./strings.js";

/** Fills the dialog with presets and fields that write back to the settings. */
export function renderSettings(settings: Settings, presetList: HTMLElement, fields: HTMLElement): void {
  const redraw = (): void => {
    renderSettings(settings, presetList, fields);
  };
  const marks = new Map<Preset, HTMLButtonElement>();
  const mark = (): void => {
    for (const [name, made] of marks) made.ariaPressed = String(settings.preset === name);
  };
  for (const name of Object.keys(presets) as Preset[]) {
    const [label, help] = words.presets[name];
    const made = makeButton(label, () => {
      settings.apply(name);
      redraw();
      presetList.querySelector<HTMLButtonElement>(`[data-preset=${name}]`)?.focus();
    });
    made.dataset.preset = name;
    made.append(make("span", "help", help));
    marks.set(name, made);
  }
  mark();
  presetList.replaceChildren(...marks.values());
  fields.replaceChildren(
    textField(settings, "system", 3, words.systemPlaceholder),
    ...numberKeys.map((key) => numberField(settings, key, mark)),
    textField(settings, "stop", 2, words.stopPlaceholder),
  );
}

function numberField(settings: Settings, key: NumberKey, changed: () => void): HTMLElement {
  const { min, max, step, slider } = numbers[key];
  const [label, help] = words[key];
  const attributes = { min: String(min), max: String(max), step: String(step) };
  const exact = Object.assign(make("input"), { ...attributes, type: "number", required: true });
  exact.id = `setting-${key}`;
  exact.value = String(settings.values[key]);
  const range = Object.assign(make("input"), { ...attributes, type: "range" });
  range.value = exact.value;
  range.setAttribute("aria-label", label);
  const take = (from: HTMLInputElement, other: HTMLInputElement): void => {
    if (!from.checkValidity()) return;
    other.value = from.value;
    settings.set(key, from.valueAsNumber);
    changed();
  };
  exact.addEventListener("input", () => {
    take(exact, range);
  });
  range.addEventListener("input", () => {
    take(range, exact);
  });
  return field(exact, label, help, slider ? [exact, range] : [exact]);
}

function textField(
  settings: Settings,
  key: "system" | "stop",
  rows: number,
  placeholder: string,
): HTMLElement {
  const [label, help] = words[key];
  const area = Object.assign(make("textarea"), { rows, placeholder, value: settings.values[key] });
  area.id = `setting-${key}`;
  area.addEventListener("input", () => {
    settings.set(key, area.value);
  });
  return field(area, label, help, [area]);
}

function field(main: HTMLElement, label: string, help: string, inputs: readonly HTMLElement[]): HTMLElement {
  const caption = make("label", "", label);
  caption.htmlFor = main.id;
  const explanation = make("p", "help", help);
  explanation.id = `${main.id}-help`;
  main.setAttribute("aria-describedby", explanation.id);
  const whole = make("div", "setting");
  whole.append(caption, ...inputs, explanation);
  return whole;
}
