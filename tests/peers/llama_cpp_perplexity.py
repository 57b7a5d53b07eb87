#!/usr/bin/env python3
"""Our perplexity beside llama.cpp's, on the same GGUF file, text and windows.

    pip install llama-cpp-python numpy
    llama_cpp_perplexity.py FLEDGLING MODEL.gguf TEXT [--window 512] [-n 4] [--threads 2]

FLEDGLING is the command. Disjoint windows, each from an empty context, all but its first token scored. Ends with 1 when
the perplexities differ by more than 0.5 %.
"""
import argparse
import json
import pathlib
import subprocess
import sys

import llama_cpp
import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("fledgling")
parser.add_argument("model")
parser.add_argument("text", type=pathlib.Path)
parser.add_argument("--window", type=int, default=512)
parser.add_argument("-n", type=int, default=4)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()

llama = llama_cpp.Llama(args.model, n_ctx=args.window, n_threads=args.threads, n_threads_batch=args.threads, logits_all=True, verbose=False)
ids = llama.tokenize(args.text.read_bytes(), add_bos=False, special=False)
nlls = []
for start in range(0, args.n * args.window, args.window):
    window = ids[start : start + args.window]
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llama.ctx), True)
    llama.reset()
    llama.eval(window)
    for row, target in zip(llama.scores[: len(window) - 1], window[1:]):
        row = row.astype(np.float64)
        top = row.max()
        nlls.append(np.log(np.exp(row - top).sum()) + top - row[target])
theirs = float(np.exp(np.mean(nlls)))
flags = ["--text", str(args.text), "--window", str(args.window), "--stride", str(args.window), "--max-windows", str(args.n), "--threads", str(args.threads)]
said = subprocess.run([args.fledgling, "eval", args.model, *flags, "--json"], check=True, capture_output=True, text=True)
ours = json.loads(said.stdout)["models"][0]
assert ours["tokens"] == len(nlls), (ours["tokens"], len(nlls))
value, stderr = ours["perplexity"], ours["perplexity_stderr"]
print(f"{len(nlls)} tokens: ours {value:.4f} ± {stderr:.4f}, llama.cpp {theirs:.4f}: {100 * (value / theirs - 1):+.3f} %")
sys.exit(abs(value / theirs - 1) > 0.005)
