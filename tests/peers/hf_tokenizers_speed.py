#!/usr/bin/env python3
"""How fast Hugging Face's tokenizers, two threads, turn the texts of a jsonl file into ids: beside `fledgling data prepare`,
which reads, cleans, deduplicates, tokenises and writes them.

    pip install tokenizers
    hf_tokenizers_speed.py TOKENIZER.json TEXTS.jsonl [--megabytes 60]
"""
import argparse
import json
import os
import time

os.environ["RAYON_NUM_THREADS"] = "2"
os.environ["TOKENIZERS_PARALLELISM"] = "true"
from tokenizers import Tokenizer  # noqa: E402, after the environment that it reads

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("tokenizer")
parser.add_argument("texts")
parser.add_argument("--megabytes", type=float, default=60)
args = parser.parse_args()
tokenizer = Tokenizer.from_file(args.tokenizer)
texts, n_bytes = [], 0
with open(args.texts, encoding="utf-8") as lines:
    for line in lines:
        texts.append(json.loads(line)["text"])
        n_bytes += len(texts[-1].encode())
        if n_bytes > args.megabytes * 1e6:
            break
started = time.perf_counter()
n_tokens = sum(
    len(encoding.ids)
    for start in range(0, len(texts), 1000)
    for encoding in tokenizer.encode_batch_fast(texts[start : start + 1000])
)
seconds = time.perf_counter() - started
print(f"{n_bytes / 1e6:.1f} MB, {n_tokens} tokens, {n_bytes / 1e6 / seconds:.2f} MB/s")
