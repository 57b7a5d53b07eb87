#!/usr/bin/env python3
"""Our task figures beside those of lm-evaluation-harness, item by item, on the same GGUF file.

    pip install lm_eval llama-cpp-python numpy
    lm_eval_tasks.py FLEDGLING MODEL.gguf [--arc arc_easy_rc_0shot.requests.jsonl.gz] [--piqa valid.jsonl] [-n 100]

FLEDGLING is the command. The harness runs its own task files on local rows (nothing is downloaded), its model is llama.cpp on the same file. Beside ARC and PIQA a few rows of our own go through the
other tasks, in the public formats. Prints, for each task, both figures, the questions on which they differ, and the greatest difference of
a log-probability: llama.cpp rounds activations to 8 bits for quantised weights, so it is not 0. Ends with 1 when a figure
differs by more than 2 questions of 100.
"""
import argparse
import gzip
import json
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp
import lm_eval
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

ROWS = {
    "hellaswag": [
        {"ind": 1, "activity_label": "Removing ice from car", "ctx_a": "Then, the man writes over the snow covering the window of a car, and a woman wearing winter clothes smiles.", "ctx_b": "then", "ctx": "", "endings": [", the man adds wax to the windshield and cuts it.", ", a person board a ski lift, while two men supporting the head of the person wearing winter clothes snow as the we girls sled.", ", the man puts on a christmas coat, knitted with netting.", ", the man continues removing the snow on his car."], "label": "3"},
        {"ind": 2, "activity_label": "Home and Garden", "ctx_a": "[header] How to clean a window [title] Fill a bucket with warm water. [step] Add a little soap.", "ctx_b": "the WATER should foam", "ctx": "", "endings": ["Wipe the glass [substeps] with a soft cloth.", "Throw the bucket out of the window.", "Boil the soap  for two hours.", "Drink it [title] Now."], "label": "0"},
    ],
    "winogrande": [
        {"sentence": "Sarah was a much better surgeon than Maria so _ always got the easier cases.", "option1": "Sarah", "option2": "Maria", "answer": "2"},
        {"sentence": "The trophy does not fit in the suitcase because the _ is too big.", "option1": "trophy", "option2": "suitcase", "answer": "1"},
        {"sentence": "They were worried the wine would ruin the bed and the blanket, but the _ was't ruined.", "option1": "blanket", "option2": "bed", "answer": "2"},
    ],
    "openbookqa": [
        {"id": "1", "question_stem": "The sun is responsible for", "choices": {"text": ["puppies learning new tricks", "children growing up and getting old", "flowers wilting in a vase", "plants sprouting, blooming and wilting"], "label": ["A", "B", "C", "D"]}, "answerKey": "D"},
        {"id": "2", "question_stem": "A person can grow cabbage in January with the help of what product?", "choices": {"text": ["Green house", "Hope", "Mittens", "Snow"], "label": ["A", "B", "C", "D"]}, "answerKey": "A"},
    ],
    "boolq": [
        {"passage": "Ethanol fuel -- All biomass goes through at least some of these steps: it needs to be grown, collected, dried, fermented, distilled, and burned.", "question": "does ethanol take more energy make that produces", "label": 0},
        {"passage": "Property tax -- Property tax or 'house tax' is a local tax on buildings, along with appurtenant land.", "question": "is house tax and property tax are same", "label": 1},
    ],
    "lambada_openai": [
        {"text": "In my palm is a clear stone, and inside it is a small ivory statuette. A guardian angel. \"Figured if you're going to be out at night getting hit by cars, you might as well have some backup.\" I look at him, feeling stunned. Like this is some sort of sign. But as I stare at Harlin, his mouth curved in a confident grin, I don't care about signs"},
        {"text": "The capital of France is Paris, and the capital of Italy is Rome. So he went from Paris to Rome"},
        {"text": "Once upon a time there was a king who had a daughter. Every day the king went to the garden to look for his daughter"},
    ],
}
# Ours, and the harness' own task file.
TASKS = {
    "arc_easy": ("arc_easy", "arc/arc_easy.yaml"),
    "piqa": ("piqa", "piqa/piqa.yaml"),
    "hellaswag": ("hellaswag", "hellaswag/hellaswag.yaml"),
    "winogrande": ("winogrande", "winogrande/default.yaml"),
    "openbookqa": ("openbookqa", "openbookqa/openbookqa.yaml"),
    "boolq": ("boolq", "super_glue/boolq/default.yaml"),
    "lambada_openai": ("lambada", "lambada/lambada_openai.yaml"),
}


class LlamaCpp(TemplateLM):
    """llama.cpp behind the harness' interface: log-likelihoods only."""

    def __init__(self, path, threads):
        super().__init__()
        self.llama = llama_cpp.Llama(path, n_ctx=2048, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, logits_all=True, verbose=False)

    @property
    def eot_token_id(self):
        return self.llama.token_eos()

    @property
    def prefix_token_id(self):
        return self.llama.token_bos()

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        return self.llama.tokenize(string.encode(), add_bos=False, special=False)

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
        results = []
        for _, context, continuation in requests:
            fed = (context + continuation)[-2049:][:-1]
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.llama.ctx), True)
            self.llama.reset()
            self.llama.eval(fed)
            rows = self.llama.scores[len(fed) - len(continuation) : len(fed)].astype(np.float64)
            rows -= rows.max(axis=1, keepdims=True)
            log_probs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
            total = float(sum(row[token] for row, token in zip(log_probs, continuation)))
            greedy = all(int(row.argmax()) == token for row, token in zip(log_probs, continuation))
            results.append((total, greedy))
        return results

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def generate_until(self, requests, disable_tqdm=False):
        raise NotImplementedError


def arc_rows(path, n):
    """Rows as on the hub out of ready-made requests."""
    rows = []
    for line in gzip.open(path, "rt"):
        request = json.loads(line)
        if request["idx"] == 0 and request["doc_id"] < 1_000_000 and len(rows) < n:
            doc = request["doc"]
            question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
            labels = [chr(65 + i) for i in range(len(doc["choices"]))]
            rows.append({"id": doc["id"], "question": question, "choices": {"text": doc["choices"], "label": labels}, "answerKey": labels[doc["gold"]]})
    return rows


def piqa_rows(path, n):
    labels = path.with_name(path.stem + "-labels.lst").read_text().split()
    rows = [json.loads(line) for line in path.read_text().splitlines()[:n]]
    return [row | {"label": int(label)} for row, label in zip(rows, labels)]


def harness(task, yaml, rows, model, folder):
    """What lm-evaluation-harness says, and its log-probabilities of each item."""
    own = pathlib.Path(lm_eval.__file__).parent / "tasks" / yaml
    data = folder / f"{task}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = folder / f"{task}.yaml"
    config.write_text(
        f"include: {own}\ntask: local_{task}\ndataset_path: json\ndataset_name: null\ntag: null\n"
        f"dataset_kwargs:\n  data_files:\n    validation: {data}\n    test: {data}\n"
        "training_split: null\nvalidation_split: validation\ntest_split: test\n"
    )
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    out = lm_eval.simple_evaluate(model=model, tasks=[f"local_{task}"], task_manager=manager, log_samples=True, bootstrap_iters=1000)
    samples = sorted(out["samples"][f"local_{task}"], key=lambda sample: sample["doc_id"])
    return out["results"][f"local_{task}"], [[response[0][0] for response in sample["resps"]] for sample in samples], samples, data


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fledgling")
    parser.add_argument("model")
    parser.add_argument("--arc", type=pathlib.Path)
    parser.add_argument("--piqa", type=pathlib.Path)
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    rows = dict(ROWS)
    if args.arc:
        rows["arc_easy"] = arc_rows(args.arc, args.n)
    if args.piqa:
        rows["piqa"] = piqa_rows(args.piqa, args.n)
    model = LlamaCpp(args.model, args.threads)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for task, items in rows.items():
            ours, yaml = TASKS[task]
            figures, log_probs, samples, data = harness(task, yaml, items, model, pathlib.Path(folder))
            answered = pathlib.Path(folder) / f"{task}.answers.jsonl"
            flags = ["--task", f"{ours}={data}", "--answers", str(answered), "--threads", str(args.threads), "--json"]
            said = subprocess.run([args.fledgling, "eval", args.model, *flags], check=True, capture_output=True, text=True)
            result = json.loads(said.stdout)["models"][0]
            answers = [json.loads(line) for line in answered.read_text().splitlines()]
            assert len(answers) == len(items)
            worst = max(abs(a - b) for answer, theirs in zip(answers, log_probs) for a, b in zip(answer["log_probs"], theirs, strict=True))
            differ = [i for i, (answer, sample) in enumerate(zip(answers, samples)) if "acc" in sample and answer["score"] != sample["acc"]]
            for name in ("acc", "acc_norm", "perplexity"):
                value, theirs = result.get(name), figures.get(f"{name},none")
                if value is None or theirs is None:
                    continue
                stderr = figures.get(f"{name}_stderr,none")
                print(f"{task:16} {name:10} ours {value:.4f} ± {result.get(f'{name}_stderr', 0):.4f}  harness {theirs:.4f} ± {stderr}")
                if name.startswith("acc"):
                    failed |= abs(value - theirs) > max(0.02, 1.001 / len(items) if len(items) > 20 else 0)
            print(f"{task:16} {len(items)} questions, other answers on {differ}, log-probabilities differ by {worst:.3f} at most", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
