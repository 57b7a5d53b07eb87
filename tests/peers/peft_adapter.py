"""A run of mode `lora` beside PEFT: the same logits from `PeftModel.from_pretrained` as from Fledgling's merged export,
and a LoRA that PEFT wrote merged by `fledgling export --adapter`.

    pip install peft
    python tests/peers/peft_adapter.py FLEDGLING_BINARY

Makes its models itself (random weights, two layers) and needs no network.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

BINARY = str(Path(sys.argv[1]).resolve())


def write_tokenizer(folder):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)} | {"<|endoftext|>": len(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(vocab)


def base_model(family, folder):
    folder.mkdir()
    n = write_tokenizer(folder)
    torch.manual_seed(3)
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=n, n_positions=128, n_embd=64, n_layer=2, n_head=4))
    else:
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=n, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True))
    model.save_pretrained(folder)
    return folder


def fledgling(*args, cwd):
    done = subprocess.run([BINARY, *map(str, args)], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"fledgling {' '.join(map(str, args))}: {done.stderr}")


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def compare(what, got, expected, base):
    difference, effect = (got - expected).abs().max().item(), (expected - base).abs().max().item()
    print(f"{what}: largest difference {difference:.2e}, the LoRA changes logits by up to {effect:.2e}")
    assert difference < 1e-4 < effect, what


def check(family, extra):
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        base = base_model(family, place / "base")
        (place / "text.txt").write_text("the cat and the hat sat on the mat. " * 40)
        (place / "run.toml").write_text(f"""
name = "mine"
mode = "lora"
base = "base"
[data]
train = ["text.txt"]
max_tokens = 64
[lora]
{extra}
[train]
steps = 8
batch = 4
lr = 2e-2
warmup = 1
""")
        ids = torch.tensor([list(range(40, 90))])
        plain = logits(AutoModelForCausalLM.from_pretrained(base), ids)

        fledgling("train", "run.toml", cwd=place)
        fledgling("export", "runs/mine", "--format", "safetensors", "--quant", "f32", "-o", "merged", cwd=place)
        ours = logits(AutoModelForCausalLM.from_pretrained(place / "merged"), ids)
        theirs = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), place / "runs/mine"), ids)
        compare(f"{family}, ours in PEFT ({extra!r})", theirs, ours, plain)

        targets = ["c_attn", "mlp.c_proj"] if family == "gpt2" else ["q_proj", "v_proj", "down_proj"]
        peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(
            r=4, lora_alpha=6, target_modules=targets, fan_in_fan_out=family == "gpt2", task_type="CAUSAL_LM",
            alpha_pattern={targets[-1]: 3}, rank_pattern={targets[-1]: 2}, init_lora_weights=False))
        expected = logits(peft, ids)
        peft.save_pretrained(place / "peft")
        fledgling("export", "base", "--adapter", "peft", "--format", "safetensors", "--quant", "f32", "-o", "theirs", cwd=place)
        compare(f"{family}, PEFT's in ours", logits(AutoModelForCausalLM.from_pretrained(place / "theirs"), ids), expected, plain)
        config = json.loads((place / "runs/mine/adapter_config.json").read_text())
        print(f"  target_modules {config['target_modules']}")


for family in ["gpt2", "llama"]:
    check(family, "")
    check(family, 'rslora = true\nrank = 4\nalpha = 4\ntargets = ["blk.1.*"]')
