#!/usr/bin/env python3
"""llama.cpp's tokens a second with several sequences in each decode, as its server batches them.

    pip install llama-cpp-python numpy
    llama_cpp_streams.py MODEL.gguf [--threads 2] [--streams 1,4,16] [--tokens 64] [--prompt 20]

The counterpart of the example `streams` of fledgling-lambda: prompts of the given length are read, then each sequence decodes
greedily; the time is from the first prompt token to the last answer's end.
"""
import argparse
import ctypes
import time

import llama_cpp
import numpy as np


def run(model, n_streams, n_tokens, n_prompt, n_threads):
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = n_streams * (n_prompt + n_tokens + 8)
    params.n_batch = params.n_ubatch = 512
    params.n_seq_max = n_streams
    params.n_threads = params.n_threads_batch = n_threads
    context = llama_cpp.llama_init_from_model(model, params)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(512, 0, 1)

    def decode(rows):
        """Rows of (token, position, sequence, wanted) to the likeliest tokens of those wanted."""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        assert llama_cpp.llama_decode(context, batch) == 0
        best = []
        for i, row in enumerate(rows):
            if row[3]:
                logits = llama_cpp.llama_get_logits_ith(context, i)
                best.append(int(np.argmax(np.ctypeslib.as_array(logits, shape=(n_vocab,)))))
        return best

    start = time.monotonic()
    tokens = []
    for sequence in range(n_streams):
        prompt = [(7 * i + 31 * sequence) % (n_vocab - 64) + 32 for i in range(n_prompt)]
        tokens += decode([(t, i, sequence, i == n_prompt - 1) for i, t in enumerate(prompt)])
    for step in range(n_tokens - 1):
        tokens = decode([(t, n_prompt + step, sequence, True) for sequence, t in enumerate(tokens)])
    seconds = time.monotonic() - start
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return n_streams * n_tokens / seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", default="1,4,16")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=20)
    args = parser.parse_args()
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(args.model.encode(), llama_cpp.llama_model_default_params())
    run(model, 1, 8, args.prompt, args.threads)
    for n_streams in map(int, args.streams.split(",")):
        speed = run(model, n_streams, args.tokens, args.prompt, args.threads)
        print(f"{n_streams:3} streams: {speed:6.1f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
