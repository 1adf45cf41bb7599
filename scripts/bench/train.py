#!/usr/bin/env python3
"""Whole training steps of the bench models, as `make bench` runs them: a table of speed and memory.

Each model is trained for a few steps on random tokens (the speed does not depend on what they are). GFLOP/s count 6 operations per
weight of each matrix and token, and attention as the mask leaves it; recomputation earns nothing. The peak is that of the program's
own GEMM on the model's shapes, measured in the same process just before. The first step, which builds the plans, is left out.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from array import array
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SHAPES = {"bench-s": (4, 512), "bench-m": (2, 1024), "bench-l": (1, 2048)}


def write_tokens(prefix, n, vocab_size):
    """A Megatron file of one document of random tokens."""
    draw = random.Random(1)
    with open(f"{prefix}.bin", "wb") as f:
        array("i", (draw.randrange(vocab_size) for _ in range(n))).tofile(f)
    header = b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + b"\4" + (1).to_bytes(8, "little") + (2).to_bytes(8, "little")
    Path(f"{prefix}.idx").write_bytes(header + n.to_bytes(4, "little") + bytes(8) + bytes(8) + (1).to_bytes(8, "little"))


def measure(model, dtype, steps, directory):
    rows, seq_len = SHAPES[model]
    tokens = rows * seq_len
    run = Path(directory) / f"{model}-{dtype}"
    config = Path(directory) / "run.yaml"
    config.write_text(f"""
model: {ROOT}/configs/models/{model}.yaml
data: {{train: [{{prefix: {directory}/random}}], seq_len: {seq_len}}}
batch: {{tokens: {tokens}, micro: {rows}}}
train: {{tokens: {tokens * 1000}, log_every: 1, stop_after: {steps + 1}}}
optimizer: {{lr: 1e-4}}
checkpoint: {{dir: {run}}}
dtype: {dtype}
""")
    program = str(ROOT / "build" / "mobilellm")
    plan = json.loads(subprocess.check_output([program, "plan", str(config), "--json"]))
    subprocess.run([program, "train", str(config)], check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    best = max(lines, key=lambda line: line["tokens_per_s"])
    for path in run.glob("*.h5"):
        path.unlink()
    return [f"{model}, {rows} x {seq_len}", dtype, f"{best['tokens_per_s']:,.0f}", f"{best['gflops']:.0f}",
            f"{best['gflops'] / best['peak_share']:.0f}", f"{100 * best['peak_share']:.0f} %", f"{best['memory_bytes'] / 2**30:.2f}",
            f"{plan['memory_bytes_per_rank']['total'] / 2**30:.2f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(SHAPES), help="of " + ", ".join(SHAPES))
    parser.add_argument("--dtypes", nargs="*", default=["f32", "bf16"])
    parser.add_argument("--steps", type=int, default=4, help="measured steps; the best counts")
    options = parser.parse_args()
    if unknown := [m for m in options.models if m not in SHAPES]:
        sys.exit(f"bench: {unknown[0]} is not one of {', '.join(SHAPES)}")
    print("| model | dtype | tokens/s | GFLOP/s | GEMM peak | share | resident GiB | planned GiB |\n|" + "---|" * 8)
    with tempfile.TemporaryDirectory() as directory:
        write_tokens(f"{directory}/random", 200_000, 32_000)
        for model in options.models:
            for dtype in options.dtypes:
                print("| " + " | ".join(measure(model, dtype, options.steps, directory)) + " |", flush=True)


if __name__ == "__main__":
    main()
