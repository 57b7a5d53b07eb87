/** The way from a file or an address to a loaded model, as the page shows it. */

import { Fledgling, type DeviceChoice, type Progress } from "../src/index.js";
import { byId, button, element } from "./dom.js";
import { explain } from "./explain.js";
import { fileName, formatBytes, formatDuration } from "./format.js";
import { Rate } from "./rate.js";
import { html, loading as words } from "./strings.js";

/** What is loaded, with what a person calls it. */
export interface Wanted {
  readonly source: string | File;
  readonly device: DeviceChoice;
  readonly nCtx: number | undefined;
}

export function nameOf({ source }: Wanted): string {
  return source instanceof File ? source.name : fileName(source);
}

const title = element("loading-title");
const bar = byId("loading-bar", HTMLProgressElement);
const numbersLine = element("loading-numbers");
const phases = element("phases");

/**
 * Loads, showing bytes, speed and time left.
 *
 * # Errors
 * As `Fledgling.load`; the signal's reason after a cancel.
 */
export async function loadModel(wanted: Wanted, signal: AbortSignal): Promise<Fledgling> {
  const { source, device, nCtx } = wanted;
  const rate = new Rate();
  title.textContent = nameOf(wanted);
  element("phase-download").textContent = source instanceof File ? words.reading : html.downloading;
  bar.removeAttribute("value");
  numbersLine.textContent = words.connecting;
  showPhase("download");
  return Fledgling.load(source, {
    device,
    ...(nCtx !== undefined && { nCtx }),
    cache: true,
    signal,
    onProgress: (progress) => {
      show(progress, rate);
    },
  });
}

function show({ phase, loadedBytes, totalBytes, fromCache }: Progress, rate: Rate): void {
  showPhase(phase);
  if (fromCache) element("phase-download").textContent = words.readingKept;
  if (phase === "prepare") {
    bar.removeAttribute("value");
    numbersLine.textContent = words.ready(formatBytes(loadedBytes));
    return;
  }
  rate.add(performance.now(), loadedBytes);
  if (totalBytes) bar.value = loadedBytes / totalBytes;
  const parts = [
    totalBytes ? words.of(formatBytes(loadedBytes), formatBytes(totalBytes)) : formatBytes(loadedBytes),
  ];
  const speed = rate.bytesPerSecond;
  if (speed !== null) parts.push(`${formatBytes(speed)}/s`);
  const left = totalBytes ? rate.msLeft(totalBytes) : null;
  if (left !== null && left > 1000) parts.push(words.left(formatDuration(left)));
  numbersLine.textContent = parts.join(" · ");
}

function showPhase(current: Progress["phase"]): void {
  let state = "done";
  for (const item of phases.querySelectorAll<HTMLElement>("[data-phase]")) {
    if (item.dataset.phase === current) state = "now";
    item.dataset.state = state;
    item.ariaCurrent = state === "now" ? "step" : null;
    if (state === "now") state = "later";
  }
}

/** Shows why a model could not be loaded, and what to do. */
export function showLoadError(thrown: unknown, wanted: Wanted): void {
  const { title: sentence, advice, detail, cpuHelps, mayPass } = explain(thrown);
  element("load-error-title").textContent = sentence;
  element("load-error-advice").textContent = advice;
  element("load-error-detail").textContent = `${nameOf(wanted)}\n${detail}`;
  button("retry").hidden = !mayPass;
  button("retry-cpu").hidden = !cpuHelps || wanted.device === "cpu";
  element("load-error").hidden = false;
}

export function hideLoadError(): void {
  element("load-error").hidden = true;
}
