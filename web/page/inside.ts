/** The panel that looks inside: the speed of the answer as a line, its numbers, and those of the model. */

import type { Fledgling } from "../src/index.js";
import { deviceName, type End } from "./answerer.js";
import { describe } from "./described.js";
import { element, fillFacts } from "./dom.js";
import { formatBytes, formatDuration } from "./format.js";
import { Speed, thin } from "./speed.js";
import { inside as words, talk } from "./strings.js";

const nPoints = 120;

export class Inside {
  readonly #plot = element("plot");
  #speed = new Speed();
  #n = 0;
  #askedAt = 0;
  #firstMs: number | undefined;
  #end: End | undefined;
  #nCtx: number | undefined;
  #waiting = false;

  /** A question goes out now. */
  begin(): void {
    this.#speed = new Speed();
    this.#n = 0;
    this.#askedAt = performance.now();
    this.#firstMs = undefined;
    this.#end = undefined;
    this.#schedule();
  }

  token(): void {
    const now = performance.now();
    this.#n += 1;
    this.#firstMs ??= now - this.#askedAt;
    this.#speed.add(now);
    this.#schedule();
  }

  ended(end: End): void {
    this.#end = end;
    this.#schedule();
  }

  model(model: Fledgling | undefined): void {
    this.#nCtx = model?.info.nCtx;
    const list = element("inside-model");
    if (!model) {
      list.replaceChildren();
      return;
    }
    fillFacts(list, modelFacts(model));
  }

  #schedule(): void {
    if (this.#waiting) return;
    this.#waiting = true;
    requestAnimationFrame(() => {
      this.#waiting = false;
      this.#draw();
    });
  }

  #draw(): void {
    const rate = this.#end?.tokensPerSecond ?? this.#speed.latest;
    const firstMs = this.#end?.firstTokenMs ?? this.#firstMs;
    const written = this.#end?.tokens ?? this.#n;
    const prompt = this.#end?.promptTokens ?? undefined;
    fillFacts(element("inside-now"), [
      [words.tokensPerSecond, rate === undefined ? "–" : rate.toFixed(1)],
      [words.firstToken, firstMs === undefined ? "–" : formatDuration(firstMs)],
      [words.written, talk.tokens(written)],
      [words.prompt, prompt === undefined ? "–" : talk.tokens(prompt)],
      ...(prompt !== undefined && this.#nCtx !== undefined
        ? [[words.contextUsed, words.contextOf(prompt + written, this.#nCtx)] as const]
        : []),
    ]);
    this.#drawPlot();
  }

  #drawPlot(): void {
    const rates = thin(this.#speed.rates, nPoints);
    element("plot-empty").hidden = rates.length > 1;
    this.#plot.hidden = rates.length < 2;
    if (rates.length < 2) return;
    const highest = Math.max(...rates);
    const lowest = Math.min(...rates);
    const points = rates.map((rate, i) => {
      const x = (i * 300) / (rates.length - 1);
      return `${x.toFixed(1)} ${(88 - (rate * 80) / highest).toFixed(1)}`;
    });
    const line = `M${points.join("L")}`;
    this.#plot.querySelector(".line")?.setAttribute("d", line);
    this.#plot.querySelector(".area")?.setAttribute("d", `${line}L300 92L0 92Z`);
    const text = words.plot(rates.at(-1)?.toFixed(1) ?? "", lowest.toFixed(1), highest.toFixed(1));
    this.#plot.querySelector("svg")?.setAttribute("aria-label", text);
    element("plot-top").textContent = highest.toFixed(0);
  }
}

/** What there is to tell about a loaded model. */
function modelFacts({ info, device }: Fledgling): (readonly [string, string])[] {
  const { quantisation, tuned, perplexity } = describe(info.metadata);
  return [
    [words.device, deviceName(device)],
    ...(device.reason ? [[words.because, device.reason] as const] : []),
    [words.architecture, info.architecture],
    [words.layers, words.layersOf(info.nLayer, info.nEmbd)],
    [words.context, talk.tokens(info.nCtx)],
    [words.vocabulary, talk.tokens(info.vocabSize)],
    [words.file, formatBytes(info.fileBytes)],
    ...(quantisation ? [[words.quantisation, quantisation] as const] : []),
    ...(tuned ? [[words.tuned, tuned] as const] : []),
    ...(perplexity ? [[words.perplexity, perplexity] as const] : []),
  ];
}
