#!/usr/bin/env python3
"""Speed and memory of whole training steps and of each kernel on GPU 0, as `make bench-gpu` measures them, into a page.

In this order: the GPU itself (the rate of a large GEMM, the speed of a copy), our steps for each model and sequence length, our
kernels at the shapes of one, and PyTorch's steps (torch_gpu.py, where a Python has torch and sees the GPU). Each result is printed
and written as it comes. When the time is up (--seconds), what has not been measured is left out, and the page says so. A run adds
a section to the page.

A run is ended by a signal once the steps that count are taken, or it would write a checkpoint of many gigabytes."""

import argparse
import datetime
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from train import write_tokens

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = ["flash-350m", "flash-650m", "flash-1.4b", "shallow-1.8b"]
WARM_UP, STEPS = 3, 10
MOST_TOKENS = 32768  # of a step: more make it longer and not faster
NOTHING_YET = "Nothing has been measured yet."
NOTES = """Tokens are random (speed does not depend on what they are), dtype bf16, one GPU, forward, backward, clipping and AdamW.
{steps} steps count, after {warm_up} that do not. A step is one micro-batch, the largest power of two of rows that by `mobilellm plan`
fits into 90 % of the free memory, with at most {tokens:,} tokens.

- model FLOPs: what `mobilellm plan` prints, 6 a weight of each matrix and token, and attention as the mask leaves it, 12 H D a visible
  key; making things again earns nothing.
- MFU: model FLOP/s over {peak}.
- memory: what was taken of the device while we trained, the driver's own {taken} GiB and other programs' included."""


class Clock:
    def __init__(self, seconds):
        self.end, self.kept = time.monotonic() + seconds, 0

    def keep(self, seconds):
        """For what comes later."""
        self.kept = seconds

    def left(self):
        return self.end - time.monotonic() - self.kept


class Page:
    """A file that grows with each line, which is printed too."""

    def __init__(self, path):
        text = path.read_text() if path.exists() else "# Results on GPUs\n"
        self.path, self.lines = path, text.replace(NOTHING_YET, "").rstrip().split("\n") + [""]

    def add(self, text=""):
        self.lines.append(text)
        print(text, flush=True)
        partial = self.path.with_suffix(".part")
        partial.write_text("\n".join(self.lines) + "\n")
        partial.replace(self.path)

    def table(self, heads):
        self.add("\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))

    def row(self, *cells):
        self.add("| " + " | ".join(cells) + " |")


class LeftOut(Exception):
    """A measurement that was not made, and why."""


def output(command, limit, **more):
    """What a command prints, or LeftOut."""
    if limit <= 0:
        raise LeftOut("no time left")
    try:
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              errors="replace", timeout=limit, cwd=ROOT, stdin=subprocess.DEVNULL, **more)
    except subprocess.TimeoutExpired as late:
        raise LeftOut("no time left") from late
    if done.returncode:
        sys.stderr.write(done.stderr[-4000:])
        raise LeftOut(f"failed: {(done.stderr.strip() or 'it said nothing').splitlines()[-1][:160]}")
    return done.stdout


def gib(count):
    return f"{count / 2**30:.2f}"


def read_shapes(model):
    """The flat `key: value` files of configs/models/."""
    lines = (line.split("#")[0] for line in (ROOT / f"configs/models/{model}.yaml").read_text().splitlines())
    return {key.strip(): value.strip() for key, value in (line.split(":", 1) for line in lines if ":" in line)}


class Bench:
    def __init__(self, options, clock, page, directory):
        self.options, self.clock, self.page, self.directory = options, clock, page, Path(directory)
        folder = options.binaries
        if (folder / "bin/mobilellm").exists():  # a bundle
            folder /= "bin"
        self.program = folder / "mobilellm"
        self.kernels = folder / "bench/gpu_kernels"
        self.device = {}
        self.vocabulary = set()

    def measure_device(self):
        small = ["gemm=128", "mib=1", "seconds=0.003"] if self.options.tiny else []
        self.device = json.loads(output([self.kernels, "device", *small], min(60, self.clock.left())))
        self.peak = self.device["peak_flops"] or self.device["gemm_flops"]

    # ---- our steps ----

    def config(self, model, T, rows):
        V = int(read_shapes(model)["vocab_size"])
        tokens = self.directory / f"tokens{V}"
        if V not in self.vocabulary:
            write_tokens(tokens, 400_000, V)
            self.vocabulary.add(V)
        path = self.directory / "run.yaml"
        path.write_text(f"""
model: {ROOT}/configs/models/{model}.yaml
data: {{train: [{{prefix: {tokens}}}], seq_len: {T}}}
batch: {{tokens: {rows * T}, micro: {rows}}}
train: {{tokens: {rows * T * 1000}, log_every: 1}}
optimizer: {{lr: 1e-4}}
checkpoint: {{dir: {self.directory}/run}}
dtype: bf16
device: cuda
""")
        return path

    def plan(self, model, T, rows):
        return json.loads(output([self.program, "plan", self.config(model, T, rows), "--json"], min(60, self.clock.left())))

    def fitting(self, model, T):
        """(rows, plan) of the largest micro-batch that fits."""
        rows, fits = 1, None
        while rows == 1 or rows * T <= self.options.most_tokens:
            plan = self.plan(model, T, rows)
            if plan["memory_bytes_per_rank"]["total"] > 0.9 * self.device["free_bytes"]:
                break
            fits = rows, plan
            rows *= 2
        if fits is None:
            raise LeftOut(f"one row needs {gib(plan['memory_bytes_per_rank']['total'])} GiB")
        return fits

    def steps(self, config):
        """The lines of metrics of the steps that count."""
        run = self.directory / "run"
        shutil.rmtree(run, ignore_errors=True)
        with open(self.directory / "log", "w+") as log:
            child = subprocess.Popen([str(self.program), "train", str(config)], cwd=ROOT, stdout=log, stderr=log,
                                     stdin=subprocess.DEVNULL, start_new_session=True)
            try:
                while True:
                    status, lines = child.poll(), self.whole_lines(run / "metrics.jsonl")
                    if len(lines) >= WARM_UP + self.options.steps:
                        return [json.loads(line) for line in lines[WARM_UP : WARM_UP + self.options.steps]]
                    if status is not None:
                        log.seek(0)
                        said = log.read().strip().splitlines()
                        raise LeftOut(f"failed with exit status {status}: {said[-1][:160] if said else 'it said nothing'}")
                    if self.clock.left() <= 0:
                        raise LeftOut("no time left")
                    time.sleep(0.05)
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()

    def whole_lines(self, path):
        text = path.read_text() if path.exists() else ""
        return text[: text.rfind("\n") + 1].splitlines()

    def ours(self, model, T):
        rows, plan = self.fitting(model, T)
        lines = self.steps(self.config(model, T, rows))
        if not all(line["loss"] is not None and math.isfinite(line["loss"]) for line in lines):
            raise LeftOut("a loss is not finite: the figures would mean nothing")
        seconds = sum(line["step_s"] for line in lines) / len(lines)
        speed = rows * T / seconds
        return {"rows": rows, "tokens_per_s": speed, "flops": speed * plan["flops_per_token"],
                "memory": max(line["memory_bytes"] for line in lines), "planned": plan["memory_bytes_per_rank"]["total"],
                "flops_per_token": plan["flops_per_token"], "loss": lines[-1]["loss"]}

    def our_table(self):
        measured = {}
        self.clock.keep((0.45 if self.options.torch else 0.15) * self.options.seconds)
        self.page.table(["model", "micro-batch x T", "tokens/s", "TFLOP/s", "MFU", "memory, GiB", "planned, GiB", "FLOPs a token"])
        for model in self.options.models:
            for T in self.options.seq_lens:
                try:
                    m = measured[model, T] = self.ours(model, T)
                except LeftOut as why:
                    self.page.row(model, f"T {T}", f"left out: {why}", "", "", "", "", "")
                    continue
                self.page.row(model, f"{m['rows']} x {T}", f"{m['tokens_per_s']:,.0f}", f"{m['flops'] / 1e12:.1f}",
                              f"{100 * m['flops'] / self.peak:.1f} %", gib(m["memory"]), gib(m["planned"]),
                              f"{m['flops_per_token']:.4g}")
        self.clock.keep(0)
        return measured

    # ---- kernels ----

    def kernel_table(self, model, T, rows):
        c = read_shapes(model)
        names = {"V": "vocab_size", "C": "d_model", "F": "d_ffn", "H": "n_heads", "K": "n_kv_heads", "D": "head_dim", "window": "window"}
        shapes = [f"{letter}={c[key]}" for letter, key in names.items()] + [f"B={rows}", f"T={T}"]
        small = ["gemm=128", "mib=1", "seconds=0.003"] if self.options.tiny else []
        self.page.add(f"\n### Kernels at the shapes of {model}, {rows} x {T}, and windows of {c['window']}\n\n`{self.kernels.name} ops "
                      f"{' '.join(shapes)}`\n\nBound: the longer of the operations at the measured GEMM's rate and the bytes at the measured "
                      "copy's; each array counts once\nfor being read and once for being written. Share: the bound over the time.")
        first, *lines = output([self.kernels, "ops", *shapes, *small], min(120, self.clock.left())).splitlines()
        gpu = json.loads(first)
        self.page.table(["op", "us", "TFLOP/s", "GB/s", "bound by", "share"])
        for line in map(json.loads, lines):
            compute, memory = line["flops"] / gpu["gemm_flops"], line["bytes"] / gpu["copy_bytes_per_s"]
            bound = ("compute", compute) if compute > memory else ("memory", memory)
            rate = f"{line['flops'] / line['seconds'] / 1e12:.1f}" if line["flops"] else ""
            self.page.row(line["op"].replace("|", "\\|"), f"{1e6 * line['seconds']:.1f}", rate, f"{line['bytes'] / line['seconds'] / 1e9:.0f}", bound[0],
                          f"{100 * bound[1] / line['seconds']:.0f} %")

    # ---- PyTorch ----

    def torch(self, model, T, rows):
        command = [self.options.torch, ROOT / "scripts/bench/torch_gpu.py", ROOT / f"configs/models/{model}.yaml", "--rows", rows,
                   "--seq-len", T, "--steps", self.options.steps, "--warm-up", WARM_UP, *self.options.torch_options.split()]
        try:
            return json.loads(output(command, self.clock.left()).splitlines()[-1])
        except LeftOut as why:
            if "no time" in str(why) or "--no-compile" in command:
                raise
            self.page.add(f"\n(compiled, PyTorch {why}: eager then)")
            return json.loads(output([*command, "--no-compile"], self.clock.left()).splitlines()[-1])

    def torch_table(self, measured):
        self.page.add("\n### Beside PyTorch\n\nThe same network, batch, GPU and run: `scripts/bench/torch_gpu.py` (bf16 parameters, fp32 masters, fused AdamW, full attention by\n"
                      "scaled_dot_product_attention, windows by flex_attention). Its memory is what it allocated; a batch too large for it is\n"
                      "taken in parts.")
        self.page.table(["model", "batch x T", "ours, tokens/s", "PyTorch, tokens/s", "ratio", "rows at a time", "PyTorch's GiB", "PyTorch"])
        # Short ones first, or one slow compilation takes all the time there is.
        for (model, T), ours in sorted(measured.items(), key=lambda item: (item[0][1], self.options.models.index(item[0][0]))):
            try:
                theirs = self.torch(model, T, ours["rows"])
            except LeftOut as why:
                self.page.row(model, f"{ours['rows']} x {T}", f"{ours['tokens_per_s']:,.0f}", f"left out: {why}", "", "", "", "")
                continue
            self.page.row(model, f"{ours['rows']} x {T}", f"{ours['tokens_per_s']:,.0f}", f"{theirs['tokens_per_s']:,.0f}", f"{ours['tokens_per_s'] / theirs['tokens_per_s']:.2f}", str(theirs["micro"]),
                          gib(theirs.get("peak_bytes", 0)), f"{theirs['torch']} {theirs['way']}")


def find_torch():
    """A Python whose torch sees the GPU, or None."""
    for python in (ROOT / "build/venv-torch/bin/python", "python3"):
        try:
            subprocess.run([str(python), "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"], check=True, timeout=60,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            return str(python)
        except (OSError, subprocess.SubprocessError):
            pass
    return None


def said_by(*command):
    try:
        return output(command, 30).strip()
    except (LeftOut, OSError):
        return ""


def head(bench, page, options):
    version = said_by(bench.program, "--version")
    commit = said_by("git", "describe", "--always", "--dirty") or "the tree is no git repository; the program's version says it"
    smi = said_by("nvidia-smi", "--query-gpu=name,driver_version,memory.used,memory.total,power.limit", "--format=csv,noheader", "--id=0")
    device = bench.device
    page.add(f"## {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC, {device['device'].split(',')[0]}\n")
    page.add(f"- GPU: {device['device']}\n- nvidia-smi: {smi or 'not here'}\n"
             f"- commit: {commit}\n- command: `{' '.join(sys.argv)}`\n- PyTorch: {options.torch or 'none here sees the GPU'}\n")
    page.add("```\n" + version + "\n```\n")
    sheet = f"; the data sheet says {device['peak_flops'] / 1e12:.0f}" if device["peak_flops"] else ""
    page.add(f"A GEMM of {device['gemm']} x {device['gemm']} x {device['gemm']} in bf16: {device['gemm_flops'] / 1e12:.1f} TFLOP/s{sheet}. A copy reads and writes {device['copy_bytes_per_s'] / 1e9:.0f} "
             f"GB/s. Free memory: {gib(device['free_bytes'])} GiB.\n\n### Whole training steps\n")
    peak = f"{bench.peak / 1e12:.0f} TFLOP/s, " + ("the data sheet's dense bf16 peak" if device["peak_flops"] else "the measured GEMM: the data sheet's peak is not known")
    before = gib(device["taken_bytes"])
    page.add(NOTES.format(taken=before, steps=options.steps, warm_up=WARM_UP, tokens=options.most_tokens, peak=peak))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="of configs/models/ (" + " ".join(MODELS) + ")")
    parser.add_argument("--seq-lens", nargs="*", type=int, default=[2048, 8192])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--most-tokens", type=int, default=MOST_TOKENS)
    parser.add_argument("--seconds", type=float, default=470, help="for all of it")
    parser.add_argument("--binaries", type=Path, default=ROOT / "build", help="the folder with mobilellm and bench/gpu_kernels")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/results-gpu.md")
    parser.add_argument("--torch", metavar="PYTHON", help="one that has torch; none: do without")
    parser.add_argument("--torch-options", default="", help="more options of torch_gpu.py")
    parser.add_argument("--tiny", action="store_true", help="a network of no size, to try this program where the GPU is emulated")
    options = parser.parse_args()
    options.binaries, options.page = options.binaries.absolute(), options.page.absolute()
    options.models = options.models or (["tiny"] if options.tiny else MODELS)
    if options.tiny:
        options.seq_lens, options.steps, options.most_tokens = [32], 2, 64
    clock = Clock(options.seconds)
    options.torch = None if options.torch == "none" else options.torch or find_torch()
    page = Page(options.page)
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(options, clock, page, directory)
        if not bench.program.exists() or not bench.kernels.exists():
            sys.exit(f"bench: {bench.program} or {bench.kernels} is not there: make gpu-programs")
        try:
            bench.measure_device()
        except LeftOut as why:
            print(f"bench: GPU 0 cannot be measured: {why}", file=sys.stderr)
            return 4
        head(bench, page, options)
        measured = bench.our_table()
        if measured:
            (model, T), first = next(iter(measured.items()))
            try:
                bench.kernel_table(model, T, first["rows"])
            except LeftOut as why:
                page.add(f"\nThe kernels were not measured: {why}.")
            if options.torch:
                bench.torch_table(measured)
            else:
                page.add("\nNo Python here has a PyTorch that sees the GPU: nothing to stand beside.")
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main())
