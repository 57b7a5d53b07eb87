import { describe, expect, it } from "vitest";
import { errorCodes, FledglingError, fromErrorData, toErrorData } from "../src/errors.js";

describe("errors across the boundary", () => {
  it.each(errorCodes)("keeps the code %s", (code) => {
    const thrown = Object.assign(new Error("what happened"), { code });
    const error = fromErrorData(structuredClone(toErrorData(thrown)));
    expect(error).toBeInstanceOf(FledglingError);
    expect(error).toMatchObject({ code, message: "what happened", name: "FledglingError" });
  });

  it("gives what has no code of ours one", () => {
    expect(toErrorData("just text")).toEqual({ code: "internal", message: "just text" });
    expect(toErrorData(Object.assign(new Error("x"), { code: "ENOENT" })).code).toBe("internal");
    expect(toErrorData(new TypeError("x is not a function"))).toEqual({
      code: "internal",
      message: "TypeError: x is not a function",
    });
    expect(toErrorData(new RangeError("Array buffer allocation failed")).code).toBe("out-of-memory");
  });
});
