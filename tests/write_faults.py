#!/usr/bin/env python3
"""Makes every call fail that writes a checkpoint, one at a time, and looks at what is left.

usage: tests/write_faults.py [--ranks 0,2,3] [--sample N] [--seed 1]

First the calls that one checkpoint takes are counted: open, mkdir, mkstemp, fallocate, write, pwrite, pwritev, fsync, rename, symlink,
of each rank, ours and those of HDF5 (tests/shim_files.c). Then, for each of them, a checkpoint is written in which that
call fails with EIO, with ENOSPC, with EDQUOT, and, if it writes, in which it writes half of its bytes and succeeds. Each time one of
these things must come of it:

  refused   exit status 4, one message that names the file, the reason and what to do; the checkpoint of before is the newest, has
            its bytes and is what `latest` names; temporary files are gone once the next run has looked for it
  written   exit status 0, `latest` names it, and it has the bytes that it has without a fault. Allowed after short writes, and where
            something failed to open or to be made that was not needed

--ranks: numbers of ranks, 0 without mpirun. --sample: only N faults of each number, drawn at random (default: all). The exit status
is 0 if all of this held; prints what did not, and a summary as JSON. Needs build/tests/test_checkpoint and a C compiler.
"""

import argparse
import collections
import errno
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from conftest import BUILD, ENV, ROOT

PROGRAM = BUILD / "tests/test_checkpoint"
CODES = [errno.EIO, errno.ENOSPC, errno.EDQUOT]
NEVER_IGNORED = {"fsync", "fdatasync", "write", "pwrite", "pwritev", "fallocate", "ftruncate", "rename"}
LIMIT = 60  # seconds; the watch of test_checkpoint ends it after 10, and machines may be busy


def build_shim(where):
    library = Path(where) / "shim_files.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-D_GNU_SOURCE", "-o", library, ROOT / "tests" / "shim_files.c", "-ldl"], check=True)
    return library


def program(*args, ranks=0, env=None):
    launcher = ["timeout", str(LIMIT), "mpirun", "-np", str(ranks), "--bind-to", "none"] if ranks else []
    return subprocess.run([*launcher, PROGRAM, *map(str, args)], cwd=ROOT, env={**ENV, **(env or {})}, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)


class Bench:
    """A directory with a checkpoint of step 1, to write step 2 into; and what both are to be, by bytes."""

    def __init__(self, where, ranks):
        self.where, self.ranks, self.directory = where, ranks, where / "run"
        self.env = {"LD_PRELOAD": str(build_shim(where)), "FAULT_DIR": str(self.directory)}
        self.first, self.second = (self.directory / f"step_{step:010d}.h5" for step in (1, 2))
        assert program("write", self.directory, 1).returncode == 0
        self.bytes = [self.first.read_bytes()]
        self.calls = self.count()
        self.bytes.append(self.second.read_bytes())
        self.reset()

    def reset(self):
        self.second.unlink(missing_ok=True)
        assert program("newest", self.directory).returncode == 0
        (self.directory / "latest").unlink()
        (self.directory / "latest").symlink_to(self.first.name)

    def count(self):
        """[(rank, number, name)] of every call."""
        log = self.where / "log"
        done = program("write", self.directory, 2, ranks=self.ranks, env={**self.env, "FAULT_LOG": str(log)})
        assert done.returncode == 0, done.stderr
        found = []
        for rank in range(max(self.ranks, 1)):
            lines = Path(f"{log}.{rank}").read_text().splitlines()
            found += [(rank, number, line.split()[0]) for number, line in enumerate(lines, 1)]
        return found

    def faults(self):
        """[(rank, number, name, code)]: every fault of every call."""
        return [(*call, code) for call in self.calls for code in [*CODES, *(["short"] if "write" in call[2] else [])]]

    def run(self, rank, number, name, code):
        """One checkpoint with one fault. Returns (what came of it, what is wrong with that or None)."""
        env = {**self.env, "FAULT_RANK": str(rank), "FAULT_CALL": str(number), "FAULT_CODE": str(code)}
        done = program("write", self.directory, 2, ranks=self.ranks, env=env)
        outcome = "refused" if done.returncode else "written"
        if outcome == "written":
            wrong = self.look_at_file(name, code)
        else:
            wrong = self.look_at_message(done, rank, code) or self.look_at_directory()
        if wrong or outcome == "written":
            self.reset()
        return outcome, wrong and f"{wrong}\n{done.stderr}"

    def look_at_file(self, name, code):
        if self.second.read_bytes() != self.bytes[1] or os.readlink(self.directory / "latest") != self.second.name:
            return "it is taken for written, and is not"
        return "a failure that nobody noticed" if name in NEVER_IGNORED and code != "short" else None

    def look_at_message(self, done, rank, code):
        text = done.stderr
        if done.returncode == 124:
            return f"nothing in {LIMIT} s"
        if done.returncode != 4:
            return f"exit {done.returncode}, expected 4"
        if text.count("mobilellm: ") != 1 or "HDF5-DIAG" in text:
            return "expected one message"
        who = f"[rank {rank} of" if self.ranks else "mobilellm: "
        if str(self.directory) not in text or who not in text:
            return "neither the file nor the rank may be missing"
        if code != "short" and os.strerror(code) not in text:
            return f"the reason is not told: {os.strerror(code)}"
        advice = {errno.EIO: "log (dmesg)", errno.ENOSPC: "Free space", errno.EDQUOT: "Free space"}.get(code, "")
        if advice not in text:
            return f"what to do is not told: {advice}"
        return None

    def look_at_directory(self):
        if os.readlink(self.directory / "latest") != self.first.name:
            return f"`latest` names {os.readlink(self.directory / 'latest')}"
        if self.second.exists():
            return f"{self.second.name} is there"
        done = program("newest", self.directory)
        if done.returncode or done.stdout.strip() != str(self.first) or done.stderr:
            return f"the next run finds {done.stdout}{done.stderr}"
        if self.first.read_bytes() != self.bytes[0]:
            return "the checkpoint of before has changed"
        names = {path.name for path in self.directory.iterdir()}
        if names != {self.first.name, "latest"}:
            return f"the next run leaves {sorted(names)}"
        return None


def go(ranks, sample, draw, where):
    """All faults of one number of ranks, or a sample of them. The summary, and what went wrong."""
    bench = Bench(where, ranks)
    faults = bench.faults()
    chosen = draw.sample(faults, min(sample, len(faults))) if sample else faults
    counts, failures = collections.Counter(), []
    for fault in chosen:
        outcome, wrong = bench.run(*fault)
        counts[outcome] += 1
        if wrong:
            failures.append(f"rank {fault[0]}, call {fault[1]} ({fault[2]}), {fault[3]}: {wrong}")
            print(failures[-1], flush=True)
    return {"ranks": ranks, "calls": len(bench.calls), "faults": len(chosen), "of": len(faults), **counts, "wrong": len(failures)}, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", default="0,2,3")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    draw, wrong = random.Random(options.seed), []
    for ranks in map(int, options.ranks.split(",")):
        with tempfile.TemporaryDirectory() as where:
            summary, failures = go(ranks, options.sample, draw, Path(where))
        print(json.dumps(summary), flush=True)
        wrong += failures
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
