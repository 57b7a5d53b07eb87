/** The way from a file or an address to a loaded model, as the page shows it. */

import { Fledgling, type DeviceChoice, type Progress } from "../src/index.js";
import { byId } from "./dom.js";
import { explain } from "./explain.js";
import { fileName, formatBytes, formatDuration } from "./format.js";
import { Rate } from "./rate.js";

/** What is loaded, with what a person calls it. */
export interface Wanted {
  readonly source: string | File;
  readonly device: DeviceChoice;
  readonly nCtx: number | undefined;
}

export function nameOf({ source }: Wanted): string {
  return source instanceof File ? source.name : fileName(source);
}

const title = byId("loading-title", HTMLElement);
const bar = byId("loading-bar", HTMLProgressElement);
const numbersLine = byId("loading-numbers", HTMLElement);
const phases = byId("phases", HTMLElement);

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
  byId("phase-download", HTMLElement).textContent = source instanceof File ? "Reading" : "Downloading";
  bar.removeAttribute("value");
  numbersLine.textContent = "Connecting…";
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
  if (fromCache) byId("phase-download", HTMLElement).textContent = "Reading what this browser kept";
  if (phase === "prepare") {
    bar.removeAttribute("value");
    numbersLine.textContent = `${formatBytes(loadedBytes)} are here; the engine is getting ready`;
    return;
  }
  rate.add(performance.now(), loadedBytes);
  if (totalBytes) bar.value = loadedBytes / totalBytes;
  const parts = [
    totalBytes ? `${formatBytes(loadedBytes)} of ${formatBytes(totalBytes)}` : formatBytes(loadedBytes),
  ];
  const speed = rate.bytesPerSecond;
  if (speed !== null) parts.push(`${formatBytes(speed)}/s`);
  const left = totalBytes ? rate.msLeft(totalBytes) : null;
  if (left !== null && left > 1000) parts.push(`${formatDuration(left)} left`);
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
  byId("load-error-title", HTMLElement).textContent = sentence;
  byId("load-error-advice", HTMLElement).textContent = advice;
  byId("load-error-detail", HTMLElement).textContent = `${nameOf(wanted)}\n${detail}`;
  byId("retry", HTMLButtonElement).hidden = !mayPass;
  byId("retry-cpu", HTMLButtonElement).hidden = !cpuHelps || wanted.device === "cpu";
  byId("load-error", HTMLElement).hidden = false;
}

export function hideLoadError(): void {
  byId("load-error", HTMLElement).hidden = true;
}
