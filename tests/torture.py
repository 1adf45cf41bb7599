#!/usr/bin/env python3
"""Kills a training run again and again, resumes it each time, and counts what was lost; or breaks one of its ranks.

usage: tests/torture.py [--kills 100 | --failures 50] [--ranks 3] [--seed 1] [--binary PROGRAM]

--kills: two runs, each with half of the kills (SIGKILL, at random moments, half of them while a checkpoint is being written):

  same     on --ranks ranks all the time. Its tensors must be those of a run that nobody killed, bit by bit.
  changed  on 1 to --ranks ranks, drawn anew for each resumption. Its losses must be within 1e-6 of that run's.

A kill strikes one rank (mpirun then ends the others) or all processes at once. After each, the newest checkpoint must verify and
must not be older than what was there before the run was resumed or what the run has reported as written. The runs are configured
far longer than they get: when the kills are done, both go on to one step a little further, and there the third run, which nobody
kills, ends too.

--failures: one run on 2 to --ranks ranks, of which one at a random moment

  dies     of SIGKILL
  hangs    of SIGSTOP
  is sick  one number that its libm returns is NaN (tests/shim_nan.c), which makes its gradient so

All processes must be gone in 30 s, with the documented exit status, a message that names the rank, and the newest checkpoint good.

The exit status is 0 if all of this held. Needs the program to be built (`make`) and, for --failures, a C compiler; prints a line per
kill or failure, and a summary as JSON.
"""

import argparse
import collections
import json
import os
import platform
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import conftest
from conftest import ENV, ROOT, command, losses, newest, run, run_json, same_bits

CONFIG = ROOT / "tests" / "small.yaml"
STEP_TOKENS = 384
# Between numbers of ranks sums are rounded differently, and training makes the difference grow: without any kill, on 3 ranks and on 1,
# to 2e-3 of the loss in 160 steps at the 3e-3 of CONFIG, to 9e-6 in 1,100 at 3e-4, but only to 2e-8 at this rate.
RATE = 1e-4
STEPS = 1_000_000  # of a run, if it came to its end
MOST_STEPS = 12  # of a part of it, before it is struck: bounds the length of the whole, however fast the machine
MORE_STEPS = 20  # after the last kill
SILENT_SECONDS = 60  # after which a run is taken to hang, or not to have ended
HANG_TIMEOUT = 5  # of train.hang_timeout
GONE_SECONDS = 30  # within which nobody may be left after a failure


class Lost(Exception):
    """What must not happen."""


def arguments(directory, corpus, *overrides):
    return ["train", CONFIG, f"data.train=[{{prefix: {corpus}/train, weight: 1}}]", f"checkpoint.dir={directory}", "checkpoint.every=2",
            f"optimizer.lr={RATE}", f"train.tokens={STEP_TOKENS * STEPS}", *overrides, "--resume"]


def make_corpus(where):
    corpus = where / "corpus"
    corpus.mkdir()
    with open(corpus / "train.jsonl", "w") as f:
        for line in conftest.words(900, 1).split("\n"):
            f.write(json.dumps({"text": line}) + "\n")
    run("data", "pack", corpus / "train", corpus / "train.jsonl", "--format", "jsonl")
    return corpus


def send(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it ended by itself, or with the one that was killed before it


class Run:
    """A run that is to be struck: its steps and checkpoints as it tells them."""

    def __init__(self, args, ranks, where, env=None):
        self.ranks = ranks
        memory = {"OMPI_MCA_btl_vader_backing_directory": str(where)}  # of Open MPI, which killed ranks leave behind
        self.child = subprocess.Popen(command(*args, ranks=ranks), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                      stdin=subprocess.DEVNULL, env={**ENV, "OMP_NUM_THREADS": "1", **memory, **(env or {})})
        self.lines = queue.Queue()
        self.text = []
        self.saved = 0  # the step of the last checkpoint that it said to have written
        self.step_times = [time.monotonic()]
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.child.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def next_line(self):
        """The next line that it prints, or None at its end."""
        try:
            line = self.lines.get(timeout=SILENT_SECONDS)
        except queue.Empty:
            raise Lost(f"silent for {SILENT_SECONDS} s:\n{self.end_of_text()}") from None
        if line is not None:
            self.text.append(line)
            if line.startswith("step "):
                self.step_times.append(time.monotonic())
            if line.startswith("checkpoint "):
                self.saved = int(Path(line.split()[1]).stem.split("_")[1])
        return line

    def until_steps(self, n):
        """Waits until it has told of n more steps."""
        wanted = len(self.step_times) + n
        while len(self.step_times) < wanted:
            if self.next_line() is None:
                raise Lost(f"ended before it was struck:\n{self.end_of_text()}")

    def seconds_of_a_step(self):
        return self.step_times[-1] - self.step_times[-2] if len(self.step_times) > 2 else 0.1

    def wait(self):
        while self.next_line() is not None:
            pass
        return self.child.wait(timeout=SILENT_SECONDS)

    def end_of_text(self):
        return "".join(self.text[-20:])

    def pids(self):
        """Its processes but for the launcher; while it starts, there may be fewer than ranks."""
        if self.ranks == 0:
            return [self.child.pid]
        found = subprocess.run(["pgrep", "-P", str(self.child.pid)], capture_output=True, text=True).stdout
        return [int(pid) for pid in found.split()]

    def pid_of(self, rank):
        variable = f"OMPI_COMM_WORLD_RANK={rank}".encode()
        return next(pid for pid in self.pids() if variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))


def wait_until_gone(pids, seconds):
    end = time.monotonic() + seconds
    while left := [pid for pid in pids if os.path.exists(f"/proc/{pid}")]:
        if time.monotonic() > end:
            raise Lost(f"processes {left} still run {seconds:.0f} s after")
        time.sleep(0.01)


def newest_step(directory):
    """The step of the newest checkpoint, verified; 0 when there is none."""
    if not (directory / "latest").exists():
        return 0
    run("inspect", directory, "--verify")
    return run_json("inspect", directory)["step"]


def check_newest(directory, before, run_):
    after = newest_step(directory)
    if after < max(before, run_.saved):
        raise Lost(f"the newest checkpoint is of step {after}; before it was {before}, and {run_.saved} was reported as written")
    return after


# ---- kills


def wait_for_writing(directory, run_, draw):
    """Until a checkpoint is being written, and then a little: some are caught before, in and after the writing of tensors."""
    end = time.monotonic() + 5
    while time.monotonic() < end and run_.child.poll() is None and not list(directory.glob("step_*.tmp")):
        pass
    time.sleep(draw.uniform(0, 0.004))


def strike(run_, directory, draw):
    """Kills at a random moment, or in the next write after it. Whom: one rank, or all and their launcher."""
    if draw.random() > 0.15:
        run_.until_steps(draw.randint(1, MOST_STEPS))
        time.sleep(draw.uniform(0, 2 * run_.seconds_of_a_step()))
    else:  # while it starts
        time.sleep(draw.uniform(0, 1))
    if draw.random() < 0.5:
        wait_for_writing(directory, run_, draw)
    pids = run_.pids()
    whom = "all" if run_.ranks == 0 or draw.random() < 0.5 else "one"
    for pid in [draw.choice(pids)] if whom == "one" and pids else [*pids, run_.child.pid]:
        send(pid, signal.SIGKILL)
    return pids, whom


def one_kill(args, directory, ranks, draw, counts):
    """Resumes, kills, checks."""
    before = newest_step(directory)
    run_ = Run(args, ranks, directory.parent)
    pids, whom = strike(run_, directory, draw)
    status = run_.wait()
    wait_until_gone(pids, SILENT_SECONDS)
    if status not in (-signal.SIGKILL, 128 + signal.SIGKILL):
        raise Lost(f"exit {status}, and not by the kill:\n{run_.end_of_text()}")
    half = bool(list(directory.glob("step_*.tmp")))
    after = check_newest(directory, before, run_)
    counts["kills"] += 1
    counts[f"of {whom}"] += 1
    counts["in a write"] += half
    counts["steps won"] += after - before
    print(f"kill {counts['kills']:3}  {max(ranks, 1)} ranks, {whom}{', in a write' if half else '':12}  step {before} -> {after}",
          flush=True)


def compare(name, same, whole, limit):
    """The runs' losses and, if they are to be the same, tensors."""
    a, b = losses(same), losses(whole)
    if a.keys() != b.keys():
        raise Lost(f"{name}: {len(a)} losses are logged, expected {len(b)}")
    worst = max(abs(a[step] - b[step]) / abs(b[step]) for step in b)
    if worst > limit or (limit == 0 and not same_bits(newest(same), newest(whole))):
        raise Lost(f"{name}: the end is not that of the run without kills: losses differ by {worst}, allowed {limit}")
    return worst


def kill_again_and_again(kills, ranks, seed, where):
    """All of --kills; the summary."""
    began, draw, counts = time.time(), random.Random(seed), collections.Counter()
    corpus = make_corpus(where)
    same, changed, whole = where / "same", where / "changed", where / "whole"
    mpi = ranks if ranks > 1 else 0
    for k in range(kills):
        directory, n = (same, mpi) if k < (kills + 1) // 2 else (changed, draw.choice([0, *range(2, ranks + 1)]))
        one_kill(arguments(directory, corpus), directory, n, draw, counts)
    steps = max(newest_step(same), newest_step(changed)) + MORE_STEPS
    for directory, n in ((same, mpi), (changed, draw.choice([0, *range(2, ranks + 1)])), (whole, mpi)):
        run(*arguments(directory, corpus, f"train.stop_after={steps}"), ranks=n, timeout=1200)
    return {**counts, "checkpoints lost": 0, "steps of a run": steps, "losses of same": compare("same", same, whole, 0),
            "tensors of same": "bit-equal", "losses of changed": compare("changed", changed, whole, 1e-6), **about(seed, began)}


# ---- failures


def build_shim(where):
    library = where / "shim_nan.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, ROOT / "tests" / "shim_nan.c", "-ldl", "-lm"], check=True)
    return library


def break_rank(kind, run_, rank, trigger):
    """Breaks it. Returns the exit status that follows, and what the message must hold."""
    if kind == "dies":
        os.kill(run_.pid_of(rank), signal.SIGKILL)
        return 128 + signal.SIGKILL, [f"rank {rank} ", "signal 9"]  # mpirun's words
    if kind == "hangs":
        os.kill(run_.pid_of(rank), signal.SIGSTOP)
        return 6, [f"mobilellm: [rank", f"] rank {rank} (", "no answer", "--resume"]
    Path(f"{trigger}.{rank}").touch()
    return 5, [f"rank {rank}'s own gradient", "the step is skipped", "resume from"]


def one_failure(args, directory, ranks, kind, draw, env, counts):
    """Resumes, breaks a rank, checks. How long it took until all were gone."""
    before = newest_step(directory)
    run_ = Run(args, ranks, directory.parent, env)
    run_.until_steps(draw.randint(1, MOST_STEPS))
    time.sleep(draw.uniform(0, 2 * run_.seconds_of_a_step()))
    pids, rank, began = run_.pids(), draw.randrange(ranks), time.monotonic()
    expected, wanted = break_rank(kind, run_, rank, env["NAN_WHEN"])
    status = run_.wait()
    wait_until_gone([*pids, run_.child.pid], GONE_SECONDS - (time.monotonic() - began))
    seconds = time.monotonic() - began
    text = run_.end_of_text()
    if status != expected or seconds > GONE_SECONDS:
        raise Lost(f"rank {rank} {kind}: exit {status} after {seconds:.1f} s, expected {expected} within {GONE_SECONDS}:\n{text}")
    if missing := [part for part in wanted if part not in text]:
        raise Lost(f"rank {rank} {kind}: no {missing} in:\n{text}")
    after = check_newest(directory, before, run_)
    counts["failures"] += 1
    counts[kind] += 1
    print(f"failure {counts['failures']:3}  rank {rank} of {ranks} {kind:7}  gone in {seconds:4.1f} s  step {before} -> {after}",
          flush=True)
    return seconds


def break_again_and_again(failures, ranks, seed, where):
    """All of --failures; the summary."""
    began, draw, counts, longest = time.time(), random.Random(seed), collections.Counter(), collections.defaultdict(float)
    directory = where / "run"
    args = arguments(directory, make_corpus(where), f"train.hang_timeout={HANG_TIMEOUT}", "train.max_nonfinite=1")
    env = {"LD_PRELOAD": str(build_shim(where)), "NAN_WHEN": str(where / "nan")}
    for k in range(failures):
        kind = ("dies", "hangs", "is sick")[k % 3]
        seconds = one_failure(args, directory, draw.randint(2, ranks), kind, draw, env, counts)
        longest[kind] = max(longest[kind], round(seconds, 1))
    return {**counts, "seconds until gone, at most": dict(longest), "hang_timeout": HANG_TIMEOUT, "allowed": GONE_SECONDS,
            "wrong statuses, ranks not named, damaged checkpoints": 0, **about(seed, began)}


def about(seed, began):
    return {"seed": seed, "seconds": round(time.time() - began), "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": platform.machine(), "processors": os.cpu_count()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--kills", type=int, default=100, metavar="N", help="kill and resume N times (default: 100)")
    mode.add_argument("--failures", type=int, metavar="N", help="break a rank N times instead")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--binary", type=Path, help="the program; default: build/mobilellm")
    options = parser.parse_args()
    if options.binary:
        conftest.BINARY = options.binary.resolve()
    with tempfile.TemporaryDirectory() as where:
        try:
            if options.failures is not None:
                summary = break_again_and_again(options.failures, options.ranks, options.seed, Path(where))
            else:
                summary = kill_again_and_again(options.kills, options.ranks, options.seed, Path(where))
        except Lost as what:
            sys.exit(f"torture: {what}")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
