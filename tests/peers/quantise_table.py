"""What quantising loses: Fledgling's files beside llama.cpp's of the same weights, in one table.

    python quantise_table.py FLEDGLING PARENT.gguf --calibrate CAL.txt --text HELD-OUT.txt [--types q8_0,q4_k_m,...] [--windows 4]

Four files of each type: by search without a text, by feedback with one, and llama.cpp's without and with the importance matrix of that text. `fledgling eval` computes all of them, with the parent as the
reference; llama.cpp only quantises. Files are kept in --folder, and not made again. Needs llama-cpp-python, gguf and numpy.
"""

import argparse
import json
import pathlib
import subprocess
import sys

FTYPES = dict(q4_0=2, q4_1=3, q8_0=7, q5_0=8, q5_1=9, q4_k_s=14, q4_k_m=15, q5_k_s=16, q5_k_m=17, q6_k=18)
HERE = pathlib.Path(__file__).parent
WAYS = ["search", "feedback", "llama.cpp", "llama.cpp, importance"]


def run(command):
    """Runs a command; its standard output."""
    done = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fledgling")
    parser.add_argument("parent", type=pathlib.Path)
    parser.add_argument("--calibrate", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--types", default=",".join(sorted(FTYPES)))
    parser.add_argument("--windows", default=4, type=int)
    parser.add_argument("--calibrate-tokens", default="8192")
    parser.add_argument("--folder", default="quantised", type=pathlib.Path)
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    matrix = args.folder / "text.imatrix"
    export = [args.fledgling, "export", args.parent]
    calibrate = ["--calibrate", args.calibrate, "--calibrate-tokens", args.calibrate_tokens]
    if not matrix.exists():
        run([*export, "--quant", "q8_0", *calibrate, "--rounding", "search", "--write-imatrix", matrix, "-o", args.folder / "matrix.gguf"])
    files = {}
    for name in args.types.split(","):
        made = {way: args.folder / f"{name}-{i}.gguf" for i, way in enumerate(WAYS)}
        commands = [
            [*export, "--quant", name, "-o", made["search"]],
            [*export, "--quant", name, *calibrate, "-o", made["feedback"]],
            [sys.executable, HERE / "llama_cpp_quantize.py", args.parent, made["llama.cpp"], FTYPES[name]],
            [sys.executable, HERE / "llama_cpp_quantize.py", args.parent, made["llama.cpp, importance"], FTYPES[name], matrix],
        ]
        for path, command in zip(made.values(), commands):
            if not path.exists():
                run(command)
        files[name] = made
    models = [path for made in files.values() for path in made.values()]
    report = json.loads(
        run([args.fledgling, "eval", *models, "--text", args.text, "--max-windows", args.windows, "--reference", args.parent, "--json"])
    )
    (args.folder / "report.json").write_text(json.dumps(report))
    rows = {pathlib.Path(row["model"]).name: row["reference"] for row in report["models"]}
    print("| | MB | " + " | ".join(f"KL, {way}" for way in WAYS) + " | top-1 | perplexity / parent's |\n|---|--:|" + "--:|" * (len(WAYS) + 2))
    for name, made in files.items():
        of = [rows[path.name] for path in made.values()]
        sizes = " / ".join(f"{size / 1e6:.1f}" for size in sorted({path.stat().st_size // 10000 * 10000 for path in made.values()}))
        divergences = [f"{row['kl']:.5f} ± {row['kl_stderr']:.5f}" for row in of]
        agreement = ", ".join(f"{row['top1_agreement']:.3f}" for row in of)
        ratio = ", ".join(f"{row['perplexity_ratio']:.4f}" for row in of)
        print(f"| `{name}` | {sizes} | " + " | ".join(divergences) + f" | {agreement} | {ratio} |")


if __name__ == "__main__":
    main()
