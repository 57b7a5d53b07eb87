#!/usr/bin/env python3
"""Models of every family to Fledgling and back, beside transformers (and llama.cpp, where it is installed).

    pip install torch transformers tokenizers        # and llama-cpp-python
    transformers_folder.py FLEDGLING

For each family a small random model with a tokenizer of its own is saved by transformers, as safetensors, as shards, and as
files of torch.save. Each goes through `fledgling export --format safetensors`, directly and by way of a GGUF file, and
transformers loads what came out. Logits must be equal: bit by bit, but 1e-6 where RoPE's frequencies are scaled, which the
GGUF file has as divisors in f32. Greedy tokens of `fledgling generate` (f32 cache) must be those of transformers, and llama.cpp's
on the same GGUF file. Ends with 1 when something differs.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config)

TEXT = "The quick brown fox jumps over the lazy dog. 0123456789 Hello, world! " * 20
PROMPT = "The lazy fox says hello to 42 dogs"
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
N_GREEDY = 24


def make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=TEMPLATE)


def configs(vocab_size):
    common = dict(vocab_size=vocab_size, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, initializer_range=0.15,
                  bos_token_id=0, eos_token_id=0)
    scaled = lambda **scaling: LlamaConfig(**common | scaling, tie_word_embeddings=True)
    yield "gpt2", GPT2Config(vocab_size=vocab_size, n_embd=64, n_layer=3, n_head=4, n_positions=128, initializer_range=0.15,
                             bos_token_id=0, eos_token_id=0)
    yield "llama", LlamaConfig(**common, tie_word_embeddings=False)
    yield "llama-linear", scaled(rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=10000.0))
    yield "llama3", scaled(rope_parameters=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64,
        rope_theta=500.0))
    yield "qwen2", Qwen2Config(**common, tie_word_embeddings=True)
    yield "qwen3", Qwen3Config(**common, head_dim=32, tie_word_embeddings=False)


def randomize(model):
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)


def logits_of(folder, ids):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits


def greedy(model, ids):
    ids = ids.clone()
    with torch.no_grad():
        for _ in range(N_GREEDY):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, -N_GREEDY:].tolist()


def llama_cpp_greedy(path, prompt_ids):
    try:
        import llama_cpp
    except ImportError:
        return None
    model = llama_cpp.Llama(str(path), n_ctx=128, verbose=False, logits_all=True, type_k=0, type_v=0)  # 0: f32
    ids = list(prompt_ids)
    model.eval(ids)
    out = []
    for _ in range(N_GREEDY):
        out.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval([out[-1]])
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fledgling")
    fledgling = parser.parse_args().fledgling
    run = lambda *args: subprocess.run([fledgling, *map(str, args)], check=True, capture_output=True, text=True).stdout
    torch.manual_seed(1)
    tokenizer = make_tokenizer()
    failed = False
    for name, config in configs(len(tokenizer)):
        with tempfile.TemporaryDirectory() as place:
            place = pathlib.Path(place)
            model = AutoModelForCausalLM.from_config(config).float().eval()
            randomize(model)
            ids = torch.randint(1, len(tokenizer), (2, 100))
            want = model(ids).logits.detach()
            sources = {"one": {}, "shards": dict(max_shard_size="200KB"), "pytorch": {}}
            for source, options in sources.items():
                model.save_pretrained(place / source, **options)
                tokenizer.save_pretrained(place / source)
            (place / "pytorch" / "model.safetensors").unlink()
            torch.save(model.state_dict(), place / "pytorch" / "pytorch_model.bin")

            results = {}
            tolerance = 1e-6 if "llama3" in name else 0.0
            for source in sources:
                out = place / f"{source}-out"
                run("export", place / source, "--format", "safetensors", "-o", out)
                results[source] = (logits_of(out, ids) - want).abs().max().item()
            gguf = place / "model.gguf"
            run("export", place / "one", "--quant", "f32", "-o", gguf)
            run("export", gguf, "--format", "safetensors", "-o", place / "back")
            results["gguf and back"] = (logits_of(place / "back", ids) - want).abs().max().item()
            ok = all(worst <= tolerance for worst in results.values())

            theirs = AutoTokenizer.from_pretrained(place / "one-out")
            ok &= theirs(PROMPT).input_ids == tokenizer(PROMPT).input_ids and theirs.eos_token == "<|end|>"
            chat = [{"role": "user", "content": "hi"}]
            ok &= theirs.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(chat, tokenize=False)

            prompt_ids = tokenizer(PROMPT, return_tensors="pt").input_ids
            expected = greedy(model, prompt_ids)
            answer = json.loads(run("generate", gguf, "--prompt", PROMPT, "--max-tokens", N_GREEDY, "--temperature", 0,
                                    "--kv-f32", "--json"))
            same_prompt = answer["prompt_token_ids"] == prompt_ids[0].tolist()
            n = len(answer["token_ids"])  # shorter where the end token came
            llama_cpp = llama_cpp_greedy(gguf, prompt_ids[0].tolist())
            ours = answer["token_ids"] == expected[:n]
            ok &= same_prompt and ours and llama_cpp in (None, expected)
            cpp = "not here" if llama_cpp is None else llama_cpp == expected
            print(f"{name:12} {'ok' if ok else 'DIFFERS'}  logits {results}  greedy {ours} ({n} tokens)  llama.cpp {cpp}")
            failed |= not ok
    sys.exit(failed)


if __name__ == "__main__":
    main()
