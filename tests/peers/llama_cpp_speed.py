"""llama.cpp's speed on a GGUF file: peer of `fledgling bench cpu`, with the same work. One line of JSON.

    python llama_cpp_speed.py MODEL.gguf [--threads 2] [--prefill 512] [--decode 128] [--runs 3]

`first_token_ms` is from opening the file to the first token behind five tokens, the median of five with the file in memory; the start of Python and of the library is not in it. Needs llama-cpp-python.
"""

import argparse
import json
import resource
import statistics
import time

import llama_cpp


def open_model(args, n_ctx):
    return llama_cpp.Llama(model_path=args.model, n_ctx=n_ctx, n_threads=args.threads, n_threads_batch=args.threads, verbose=False)


def forget(model):
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(model.ctx), True)
    model.reset()


def rate(model, ids, at_once):
    """Tokens a second, all at once or one by one."""
    start = time.perf_counter()
    if at_once:
        model.eval(ids)
    else:
        for token in ids:
            model.eval([token])
    return len(ids) / (time.perf_counter() - start)


def first_token_ms(args):
    times = []
    for _ in range(5):
        start = time.perf_counter()
        model = open_model(args, 1024)
        model.eval([504, 1463, 282, 4649, 314])
        times.append(1e3 * (time.perf_counter() - start))
        model.close()
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    model = open_model(args, args.prefill + args.decode)
    ids = [7 * i % model.n_vocab() for i in range(max(args.prefill, args.decode))]
    rates = {"prefill": [], "decode": [], "decode_at_depth": []}
    for run in range(args.runs + 1):
        forget(model)
        decode = rate(model, ids[: args.decode], at_once=False)
        forget(model)
        prefill = rate(model, ids[: args.prefill], at_once=True)
        at_depth = rate(model, ids[: args.decode], at_once=False)
        if run > 0:  # the first one warms up
            for name, value in zip(rates, (prefill, decode, at_depth)):
                rates[name].append(value)
    answer = {f"{name}_tokens_per_s": statistics.median(values) for name, values in rates.items()}
    answer["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answer["first_token_ms"] = first_token_ms(args)
    answer["version"] = llama_cpp.__version__
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
