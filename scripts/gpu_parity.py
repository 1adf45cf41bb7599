#!/usr/bin/env python3
"""Short training runs on the GPU beside the same ones on the CPU, by the program alone: Python's own library and nothing else.

    gpu_parity.py [--quick] PROGRAM

What tests/test_cuda_training.py checks with pytest and h5py, where these are not at hand; --quick: twenty steps in f32 and no
more. A line a check, then `N passed, N failed, N skipped`; exit status 1 if one failed."""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHORT = "train.tokens=2304"  # six steps
LIMITS = {"f32": 1e-4, "bf16": 5e-4}  # of tests/test_cuda_training.py


class Runs:
    def __init__(self, program, directory):
        self.program, self.directory = Path(program).resolve(), Path(directory)
        self.env = {"OMP_WAIT_POLICY": "passive", **os.environ, "OMPI_MCA_rmaps_base_oversubscribe": "1",
                    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
        if os.geteuid() == 0:
            self.env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        draw = random.Random(1)
        words = ["".join(draw.choice("etaoinshrdlu") for _ in range(draw.randint(2, 7))) for _ in range(60)]
        text = (" ".join(words[int(60 * draw.random() ** 3)] for _ in range(8)) + "." for _ in range(900))
        (self.directory / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in text))
        self.run("data", "pack", self.directory / "train", self.directory / "text.jsonl", "--format", "jsonl")

    def run(self, *arguments, ranks=1):
        launcher = ["mpirun", "-np", str(ranks), "--bind-to", "none"] if ranks > 1 else []
        done = subprocess.run([*launcher, str(self.program), *map(str, arguments)], cwd=ROOT, env=self.env, timeout=120, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace")
        if done.returncode:
            sys.stderr.write(done.stdout + done.stderr)
            raise RuntimeError(f"exit status {done.returncode}: {(done.stderr.strip() or done.stdout).splitlines()[-1]}")
        return done.stdout

    def gpus(self):
        return len(re.findall(r"^  GPU \d", self.run("--version"), re.M))

    def losses(self, name, device, *keys, dtype="f32", ranks=1):
        """{step: loss} of a run in the directory `name`, which goes on where it was when --resume is among the keys."""
        where = self.directory / name
        self.run("train", "tests/small.yaml", f"data.train=[{{prefix: {self.directory}/train}}]", f"checkpoint.dir={where}",
                 f"dtype={dtype}", "data.mask_documents=true", *keys, "--device", device, ranks=ranks)
        rows = map(json.loads, (where / "metrics.jsonl").read_text().splitlines())
        return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


def near(cuda, cpu, dtype):
    assert cuda.keys() == cpu.keys() and len(cpu) == 20, f"{len(cuda)} steps on the GPU, {len(cpu)} on the CPU, expected 20"
    worst = max(abs(cuda[step] - cpu[step]) / abs(cpu[step]) for step in cpu)
    assert worst <= LIMITS[dtype], f"20 steps in {dtype}: losses differ by {worst:.1e} from the CPU's, allowed {LIMITS[dtype]:.0e}"
    return f"20 steps in {dtype}: losses within {worst:.1e} of the CPU's, allowed {LIMITS[dtype]:.0e}"


def steps_are_those_of_the_cpu(runs, dtype):
    return near(runs.losses(f"cuda-{dtype}", "cuda", dtype=dtype), runs.losses(f"cpu-{dtype}", "cpu", dtype=dtype), dtype)


def two_runs_are_the_same(runs):
    first, second = (runs.losses(f"again{i}", "cuda", SHORT, dtype="bf16") for i in range(2))
    assert first == second, "two equal runs have different losses"
    return "two equal runs have the same losses, bit by bit"


def resumed_is_the_same(runs, ranks):
    whole = runs.losses(f"whole{ranks}", "cuda", SHORT, dtype="bf16", ranks=ranks)
    runs.losses(f"halves{ranks}", "cuda", SHORT, "train.stop_after=3", dtype="bf16", ranks=ranks)
    halves = runs.losses(f"halves{ranks}", "cuda", SHORT, "--resume", dtype="bf16", ranks=ranks)
    assert whole == halves, "a run that was stopped and resumed has other losses"
    runs.run("inspect", runs.directory / f"halves{ranks}", "--verify")
    return f"stopped and resumed on {ranks} GPU{'s' if ranks > 1 else ''}: the same losses, and the checkpoint verifies"


def ranks_are_one(runs):
    return "2 GPUs, " + near(runs.losses("two", "cuda", ranks=2), runs.losses("cpu-again", "cpu"), "f32")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path)
    parser.add_argument("--quick", action="store_true", help="twenty steps in f32 alone")
    options = parser.parse_args()
    checks = [(steps_are_those_of_the_cpu, "f32")]
    if not options.quick:
        checks += [(steps_are_those_of_the_cpu, "bf16"), (two_runs_are_the_same,), (resumed_is_the_same, 1)]
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    with tempfile.TemporaryDirectory() as directory:
        runs = Runs(options.program, directory)
        if not options.quick and runs.gpus() > 1 and shutil.which("mpirun"):
            checks += [(ranks_are_one,), (resumed_is_the_same, 2)]
        elif not options.quick:
            print("skipped   two ranks: they need two GPUs and mpirun")
            counts["skipped"] += 2
        for check, *arguments in checks:
            try:
                text, verdict = check(runs, *arguments), "passed"
            except (AssertionError, RuntimeError, subprocess.TimeoutExpired) as failure:
                text, verdict = f"{check.__name__}: {failure}", "failed"
            counts[verdict] += 1
            print(text if options.quick else f"{verdict:9} {text}", flush=True)
    if not options.quick:
        print(", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    return counts["failed"] > 0


if __name__ == "__main__":
    sys.exit(main())
