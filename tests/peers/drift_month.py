#!/usr/bin/env python3
"""A month of requests to a model of Rust's documentation, by a real tokenizer and a real model's probabilities: thirty days of pieces of
documents, then a day of banking queries (banking77). Writes logs and a model file with the training data's histogram, for `fledgling monitor`.

    python3 drift_month.py MODEL.gguf DATA OUT [--per-day 60] [--threads 1] [--most 100]
    fledgling monitor OUT/quiet.jsonl --model OUT/model.gguf; echo $?      # 0
    fledgling monitor OUT/shift.jsonl --model OUT/model.gguf; echo $?      # 3

DATA holds rust-docs/rust-docs.jsonl and banking77/test.csv. The sketch is made here once more, from its description. Needs llama_cpp and numpy.
"""
import argparse, collections, csv, json, pathlib, random, struct
import numpy as np
from llama_cpp import Llama

MASK = (1 << 64) - 1
DAY_MS, FIRST_DAY = 86_400_000, 20_500


def cell(row, token):
    z = ((token | row << 32) + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return (z ^ (z >> 31)) >> 55


def sketch(chance, tokens):
    row = chance % 4
    counts = collections.Counter(cell(row, token) for token in tokens)
    return {"row": row, "prompt": [x for pair in sorted(counts.items()) for x in pair]}


def with_keys(source, target, keys):
    """Copies a GGUF file with u32/u64 arrays and u64 values added to its header."""
    data = source.read_bytes()
    n_tensors, n_keys = struct.unpack_from("<QQ", data, 8)
    at = 24
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def string(at):
        return at + 8 + struct.unpack_from("<Q", data, at)[0]

    def value(kind, at):
        if kind == 8:
            return string(at)
        if kind == 9:
            inner, n = struct.unpack_from("<IQ", data, at)
            at += 12
            if inner in sizes:
                return at + n * sizes[inner]
            for _ in range(n):
                at = value(inner, at)
            return at
        return at + sizes[kind]

    for _ in range(n_keys):
        at = string(at)
        at = value(struct.unpack_from("<I", data, at)[0], at + 4)
    end_of_keys = at
    for _ in range(n_tensors):
        at = string(at)
        at += 4 + 8 * struct.unpack_from("<I", data, at)[0] + 12
    body = data[(at + 31) // 32 * 32:]
    added = b""
    for name, value_ in keys.items():
        added += struct.pack("<Q", len(name)) + name.encode()
        if isinstance(value_, int):
            added += struct.pack("<IQ", 10, value_)
        else:
            kind, form, items = value_
            added += struct.pack("<IIQ", 9, kind, len(items)) + struct.pack(f"<{len(items)}{form}", *items)
    head = data[:8] + struct.pack("<QQ", n_tensors, n_keys + len(keys)) + data[24:end_of_keys] + added + data[end_of_keys:at]
    target.write_bytes(head + b"\0" * (-len(head) % 32) + body)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("model", type=pathlib.Path)
    args.add_argument("data", type=pathlib.Path)
    args.add_argument("out", type=pathlib.Path)
    args.add_argument("--per-day", type=int, default=60)
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--most", type=int, default=100, help="tokens of a request at most")
    args = args.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    chance = random.Random(1)
    llama = Llama(str(args.model), n_ctx=128, n_threads=args.threads, n_threads_batch=args.threads, logits_all=True, verbose=False)

    lines = (args.data / "rust-docs/rust-docs.jsonl").read_text().splitlines()
    documents = [" ".join(v for v in json.loads(line).values() if isinstance(v, str) and len(v) > 100) for line in lines]
    chance.shuffle(documents)
    # Paragraphs, of all documents alike: nine of ten are the training data, the others what people ask.
    paragraphs = [p.strip() for d in documents for p in d.split("\n\n") if 40 <= len(p.strip()) <= 400]
    chance.shuffle(paragraphs)
    n_held_out = len(paragraphs) // 10
    held_out, trained = paragraphs[:n_held_out], paragraphs[n_held_out:]
    banking = [row[0] for row in csv.reader((args.data / "banking77/test.csv").open())][1:]
    print(f"{len(trained)} paragraphs of training, {len(held_out)} held out, {len(banking)} banking queries", flush=True)

    counts = collections.Counter(t for text in trained for t in llama.tokenize(text.encode(), add_bos=False))
    known = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    keys = {
        "fledgling.data.histogram.ids": (4, "I", [t for t, _ in known[:4096]]),
        "fledgling.data.histogram.counts": (10, "Q", [n for _, n in known[:4096]]),
        "fledgling.data.histogram.other": sum(n for _, n in known[4096:]),
    }
    with_keys(args.model, args.out / "model.gguf", keys)

    def record(text, day, i):
        tokens = llama.tokenize(text.encode(), add_bos=False)[: args.most]
        llama.reset()
        llama.eval(tokens)
        logits = np.array(llama.scores[: len(tokens) - 1], dtype=np.float32)
        top = logits.max(axis=1, keepdims=True)
        logs = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        nats = -logs[np.arange(len(tokens) - 1), tokens[1:]][-31:]
        time_ms = (FIRST_DAY + day) * DAY_MS + i * (DAY_MS // args.per_day)
        fields = {"fledgling_record": 1, "time_ms": time_ms, "model": "rust-docs", "request_id": f"{day}-{i}", "outcome": "stop", "requests": 1,
                  "prompt_tokens": len(tokens), "prompt_scored": len(nats), "sketch": sketch(chance.getrandbits(32), tokens)}
        if len(nats):
            fields["prompt_surprise"] = float(nats.mean())
        return json.dumps(fields)

    with (args.out / "quiet.jsonl").open("w") as quiet, (args.out / "shift.jsonl").open("w") as shift:
        for day in range(31):
            texts = held_out if day < 30 else banking
            for i in range(args.per_day):
                line = record(chance.choice(texts), day, i) + "\n"
                shift.write(line)
                if day < 30:
                    quiet.write(line)
            print(f"day {day + 1}", flush=True)


if __name__ == "__main__":
    main()
