#!/usr/bin/env python3
"""Whole training steps of the bench models, as `make bench` runs them: a table of speed and memory.

Each model is trained for a few steps on random tokens (the speed does not depend on what they are). Operations are counted by the
formula that is printed. The peak is that of the program's own GEMM on the model's shapes, measured in the same process just
before; PyTorch's is that of its own, just after. The first step, which builds the plans, is left out.

Where there is a PyTorch (build/venv-torch, which `make bench TORCH=1` makes, or --torch PYTHON), the same steps are taken by
scripts/bench/torch_step.py with as many threads: ours, then PyTorch each way that it may be run, ours again, PyTorch's best way
again. Each side's best step counts, so that a moment of a busy machine is no argument. Memory is the most that was resident.
"""

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from array import array
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TORCH = ROOT / "build" / "venv-torch" / "bin" / "python"
# How PyTorch may be run: the options of torch_step.py.
TORCH_WAYS = {"f32": [[], ["--compile"]], "bf16": [["--cast"], ["--cast", "--compile"], ["--autocast", "--compile"]]}
SHAPES = {"bench-s": (4, 512), "bench-m": (2, 1024), "bench-l": (1, 2048), "flash-350m": (1, 2048)}
FORMULA = """operations a token and step = 6 (V C + layers x 3 F C + attention layers x (2 H D C + 2 K D C))
                             + attention layers x 12 H D x the keys that a query sees, in the mean
forward and backward, what the mask leaves; making things again earns nothing"""


def write_tokens(prefix, n, vocab_size):
    """A Megatron file of one document of random tokens."""
    draw = random.Random(1)
    with open(f"{prefix}.bin", "wb") as f:
        array("i", (draw.randrange(vocab_size) for _ in range(n))).tofile(f)
    header = b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + b"\4" + (1).to_bytes(8, "little") + (2).to_bytes(8, "little")
    Path(f"{prefix}.idx").write_bytes(header + n.to_bytes(4, "little") + bytes(8) + bytes(8) + (1).to_bytes(8, "little"))


def run_measured(command, env):
    """Runs a command; what it printed, and the most bytes that were resident in it."""
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen([str(part) for part in command], env=env, stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, command)
        out.seek(0)
        return out.read(), usage.ru_maxrss * 1024


def threads():
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def tell_machine(program):
    """What the figures below were measured on and with."""
    processor = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    version = subprocess.run([program, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    print(f"{processor}, {threads()} threads, {gib(memory)} GiB, Linux {platform.release()}\n{version}\n{' '.join(sys.argv)}\n")


class Bench:
    """One model in one dtype, by the program and by PyTorch."""

    def __init__(self, model, dtype, options, directory):
        self.model, self.dtype, self.options, self.directory = model, dtype, options, Path(directory)
        self.rows, self.seq_len = SHAPES[model]
        self.config = self.directory / "run.yaml"
        # The same number of threads for everybody.
        self.env = {**os.environ, "OMP_NUM_THREADS": str(threads())}

    def ours(self):
        """The best step's line of metrics, with peak_bytes, plan and tokens_per_s."""
        run, tokens = self.directory / "run", self.rows * self.seq_len
        self.config.write_text(f"""
model: {ROOT}/configs/models/{self.model}.yaml
data: {{train: [{{prefix: {self.directory}/random}}], seq_len: {self.seq_len}}}
batch: {{tokens: {tokens}, micro: {self.rows}}}
train: {{tokens: {tokens * 1000}, log_every: 1, stop_after: {self.options.steps + 1}}}
optimizer: {{lr: 1e-4}}
checkpoint: {{dir: {run}}}
dtype: {self.dtype}
""")
        plan, _ = run_measured([self.options.program, "plan", self.config, "--json"], self.env)
        _, peak_bytes = run_measured([self.options.program, "train", self.config], self.env)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
        shutil.rmtree(run)
        best = fastest(lines)
        self.tell("ours", best)
        return {**best, "peak_bytes": peak_bytes, "planned_bytes": json.loads(plan)["memory_bytes_per_rank"]["total"]}

    def torch(self, way):
        command = [self.options.torch, ROOT / "scripts/bench/torch_step.py", ROOT / f"configs/models/{self.model}.yaml",
                   "--rows", self.rows, "--seq-len", self.seq_len, "--dtype", self.dtype, "--steps", self.options.steps, *way]
        out, _ = run_measured(command, self.env)
        measured = json.loads(out.splitlines()[-1])
        self.tell(" ".join(["PyTorch", *way]), measured)
        return measured

    def tell(self, who, measured):
        """Each run as it ends, for whoever waits or wonders how much they vary."""
        print(f"bench: {self.model} {self.dtype}: {who}: {measured['tokens_per_s']:,.0f} tokens/s", file=sys.stderr)

    def torch_ways(self):
        """The measurement of each way that works here: compiling needs a C++ compiler."""
        for way in TORCH_WAYS[self.dtype]:
            try:
                yield self.torch(way)
            except subprocess.CalledProcessError:
                print(f"bench: PyTorch does not run with {' '.join(way)} here", file=sys.stderr)

    def best_of_torch(self, measured):
        """The fastest way, with the best GEMM of all runs: each measures it anew."""
        return {**fastest(measured), "gemm_gflops": max(one["gemm_gflops"] for one in measured)}

    def columns(self):
        ours, theirs = [self.ours()], []
        if self.options.torch:
            theirs = list(self.torch_ways())
            ours.append(self.ours())
            theirs += [self.torch(fastest(theirs)["way"])]
        best = fastest(ours)
        row = [f"{self.model}, {self.rows} x {self.seq_len}", self.dtype, f"{best['tokens_per_s']:,.0f}", f"{best['gflops']:.0f}",
               f"{best['gflops'] / best['peak_share']:.0f}", f"{100 * best['peak_share']:.0f} %", gib(best["peak_bytes"]),
               gib(best["planned_bytes"])]
        if theirs:
            torch = self.best_of_torch(theirs)
            ratio = best["tokens_per_s"] / torch["tokens_per_s"]
            row += [f"{torch['tokens_per_s']:,.0f}", f"{ratio:.2f}", f"{torch['gemm_gflops']:.0f}", gib(torch["peak_bytes"]),
                    f"{torch['torch']} {' '.join(way.lstrip('-') for way in torch['way']) or 'eager'}"]
        return row


def fastest(measured):
    return max(measured, key=lambda one: one["tokens_per_s"])


def gib(count):
    return f"{count / 2**30:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(SHAPES), help="of " + ", ".join(SHAPES))
    parser.add_argument("--dtypes", nargs="*", default=["f32", "bf16"])
    parser.add_argument("--steps", type=int, default=4, help="measured steps; the best counts")
    parser.add_argument("--program", default=ROOT / "build" / "mobilellm", type=Path)
    parser.add_argument("--ops", type=Path, help="the program of ops.c, to be run after the models")
    parser.add_argument("--torch", metavar="PYTHON", type=Path, default=TORCH if TORCH.exists() else None,
                        help="a Python that has torch, to measure it too")
    options = parser.parse_args()
    if unknown := [m for m in options.models if m not in SHAPES]:
        sys.exit(f"bench: {unknown[0]} is not one of {', '.join(SHAPES)}")
    heads = ["model", "dtype", "tokens/s", "GFLOP/s", "GEMM peak", "share", "peak GiB", "planned GiB"]
    if options.torch:
        heads += ["PyTorch tokens/s", "ratio", "PyTorch GEMM peak", "PyTorch peak GiB", "PyTorch run as"]
    tell_machine(options.program)
    print(FORMULA + "\n")
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    with tempfile.TemporaryDirectory() as directory:
        write_tokens(f"{directory}/random", 200_000, 32_000)
        for model in options.models:
            for dtype in options.dtypes:
                print("| " + " | ".join(Bench(model, dtype, options, directory).columns()) + " |", flush=True)
        if options.ops:
            print(flush=True)
            subprocess.run([options.ops, f"{directory}/random"], check=True)


if __name__ == "__main__":
    main()
