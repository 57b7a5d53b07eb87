#!/usr/bin/env python3
"""Our greedy tokens beside llama.cpp's, on a quantised GGUF file and on its f32 twin (the same weights, dequantised).

    pip install llama-cpp-python numpy
    llama_cpp_greedy.py FLEDGLING MODEL.gguf [-n 64] [--chat ROWS.jsonl]

llama.cpp rounds activations to 8 bits for quantised weights, and to nothing for f32 ones. Where its tokens on the two
files differ, its own rounding decided; ours, on the quantised file, are to be those of the f32 file. Prints, for each
prompt, the step at which we part from either, and ends with 1 when we part from the f32 twin.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was",
    "def fibonacci(n):",
    "The three laws of thermodynamics are",
    "In 1969, the first man",
]


def greedy(model, prompt_ids, n_tokens):
    """(token, logits) of each step."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(model.ctx), True)
    model.reset()
    model.eval(prompt_ids)
    steps = []
    for _ in range(n_tokens):
        pointer = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        logits = np.ctypeslib.as_array(pointer, shape=(model.n_vocab(),)).copy()
        steps.append((int(np.argmax(logits)), logits))
        model.eval([steps[-1][0]])
    return steps


def parts_at(ours, steps):
    return next((i for i, (id, (theirs, _)) in enumerate(zip(ours, steps)) if id != theirs), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fledgling")
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--chat", help="ask the first messages of these rows instead")
    args = parser.parse_args()
    prompts, mode = PROMPTS, []
    if args.chat:
        rows = [json.loads(line)["messages"] for line in open(args.chat, encoding="utf-8")]
        prompts = [next(m["content"] for m in row if m["role"] == "user") for row in rows]
        mode = ["--chat"]
    with tempfile.TemporaryDirectory() as folder:
        twin = str(pathlib.Path(folder) / "f32.gguf")
        export = [args.fledgling, "export", args.model, "--quant", "f32", "-o", twin]
        subprocess.run(export, check=True, capture_output=True)
        theirs = {
            name: llama_cpp.Llama(model_path=path, n_ctx=1024, n_threads=2, verbose=False)
            for name, path in [("its own file", args.model), ("the f32 twin", twin)]
        }
        parted = dict.fromkeys(theirs, 0)
        for prompt in prompts:
            command = [args.fledgling, "generate", args.model, *mode, "--prompt", prompt]
            command += ["--max-tokens", str(args.n), "--temperature", "0", "--json"]
            out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            ours, line = out["token_ids"], []
            for name, model in theirs.items():
                steps = greedy(model, out["prompt_token_ids"], len(ours))
                step = parts_at(ours, steps)
                parted[name] += step is not None
                gap = "" if step is None else f" (its logits: {steps[step][1].max() - steps[step][1][ours[step]]:.3f} apart)"
                line.append(f"{name}: {'same' if step is None else f'parts at {step}'}{gap}")
            print(f"{prompt[:40]!r}, {len(ours)} tokens; {'; '.join(line)}", flush=True)
        print(f"{len(prompts)} prompts; parted from " + ", ".join(f"{name}: {n}" for name, n in parted.items()))
        sys.exit(parted["the f32 twin"] > 0)


if __name__ == "__main__":
    main()
