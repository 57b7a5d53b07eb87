/** Settings: their link, what they become for the engine, and what is refused. */

import { describe, expect, it } from "vitest";
import { defaults, fromHash, inRange, presets, Settings, stopTexts, toHash } from "../page/settings.js";

describe("a link with settings", () => {
  it("carries all that differs from the defaults, and comes back the same", () => {
    const values = {
      ...defaults(),
      ...presets.playful,
      seed: 7,
      system: "Speak like a bird & sing",
      stop: "\\n\\n\nEND",
    };
    expect(fromHash(toHash(values))).toEqual(values);
    expect(toHash(defaults())).toBe("#temperature=0");
    expect(fromHash("#temperature=0")).toEqual(defaults());
  });

  it("is none without a setting, and a value out of range costs itself only", () => {
    expect(fromHash("")).toBeUndefined();
    expect(fromHash("#section-2")).toBeUndefined();
    expect(fromHash("#temperature=9&topK=1.5&seed=abc&maxTokens=&topP=0.5&nCtx=-1")).toEqual({
      ...defaults(),
      topP: 0.5,
    });
  });
});

describe("settings", () => {
  it("leave out what changes nothing", () => {
    const settings = new Settings();
    settings.replace({ ...defaults(), topK: 0, topP: 1 });
    expect(settings.sampling).toEqual({ maxTokens: 256, temperature: 0, seed: 1 });
    settings.replace({ ...defaults(), minP: 0.1, repetitionPenalty: 1.1, stop: "END\n" });
    expect(settings.sampling).toEqual({
      maxTokens: 256,
      temperature: 0,
      seed: 1,
      topK: 40,
      topP: 0.95,
      minP: 0.1,
      repetitionPenalty: 1.1,
      stop: ["END"],
    });
  });

  it("know their preset", () => {
    const settings = new Settings();
    settings.replace(defaults());
    expect(settings.preset).toBe("exact");
    settings.apply("balanced");
    expect(settings.preset).toBe("balanced");
    settings.set("temperature", 0.75);
    expect(settings.preset).toBeUndefined();
  });

  it("read stop texts line by line, with line breaks and spaces in them", () => {
    expect(stopTexts("\\n\\nUser:\n END \n\n")).toEqual(["\n\nUser:", " END "]);
  });

  it("take whole numbers only where steps are whole", () => {
    expect(inRange("seed", 1.5)).toBe(false);
    expect(inRange("seed", 4_294_967_295)).toBe(true);
    expect(inRange("temperature", 0.333)).toBe(true);
    expect(inRange("temperature", NaN)).toBe(false);
  });
});
