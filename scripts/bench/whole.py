#!/usr/bin/env python3
"""What a run does beside the steps of one process, each beside what the machine can do, as `make bench` runs it:

    ranks       2 ranks of 1 thread beside 1 rank of 2 threads, the same global batch, in turn; each side's best step counts
    loader      a loader that needs 10 ms more for each batch (the program that slow_loader.c is linked into) beside the usual one
    checkpoint  writing one with optimizer state beside dd of the same file with fsync, and starting from it beside reading it by
                dd: with all of the file in memory (warm) and, where we may drop the caches (root), with nothing of it (cold)

A start of train is the time from the call to the log's line `resumed`: config, data, GEMM peak, every tensor read and summed. One
of eval is a whole run of it on one window of 16 tokens; it needs the parameters alone, and dd reads as much of the file. For
writing, dd is given the file that has just been written, all of it in memory, and writes by way of the page cache, then past it as we do.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from train import ROOT, fastest, gib, tell_machine, write_tokens

ROUNDS = 3


def write_config(directory, model, rows, seq_len, micro, steps, dtype="bf16", name="run"):
    path = Path(directory) / f"{name}.yaml"
    path.write_text(f"""
model: {ROOT}/configs/models/{model}.yaml
data: {{train: [{{prefix: {directory}/random}}], seq_len: {seq_len}}}
batch: {{tokens: {rows * seq_len}, micro: {micro}}}
train: {{tokens: {rows * seq_len * 1000}, log_every: 1, stop_after: {steps}}}
optimizer: {{lr: 1e-4}}
checkpoint: {{dir: {directory}/{name}}}
dtype: {dtype}
""")
    return path


def environment(threads):
    """mpirun asks whoever is root twice whether that is meant."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def steps_of(command, config, threads):
    """The lines of metrics of a run, without the first step."""
    run = config.with_suffix("")
    subprocess.run([str(part) for part in (*command, "train", config)], env=environment(threads), stdout=subprocess.DEVNULL,
                   check=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    shutil.rmtree(run)
    return lines


def in_turn(what, sides):
    """Runs the sides in turn, ROUNDS times; prints the best step of each, and the first's beside the second's."""
    lines = [[] for _ in sides]
    for _ in range(ROUNDS):
        for at, (_, run) in zip(lines, sides):
            at += run()
    best = [fastest(side)["tokens_per_s"] for side in lines]
    middle = [sorted(line["tokens_per_s"] for line in side)[len(side) // 2] for side in lines]
    for (name, _), side, b, m in zip(sides, lines, best, middle):
        wait = max(line["data_wait_s"] for line in side)
        print(f"{what}: {name}: {b:,.0f} tokens/s at best, {m:,.0f} in the middle of {len(side)} steps, waits for data of up to "
              f"{1e3 * wait:.2f} ms")
    print(f"{what}: ratio {best[0] / best[1]:.3f} at best, {middle[0] / middle[1]:.3f} in the middle", flush=True)


def bench_ranks(options, directory):
    if len(os.sched_getaffinity(0)) < 2:
        return print("ranks: needs two cores")
    for dtype in ("bf16", "f32"):
        one = write_config(directory, "bench-s", 4, 512, 4, options.steps + 1, dtype, f"one-{dtype}")
        two = write_config(directory, "bench-s", 4, 512, 2, options.steps + 1, dtype, f"two-{dtype}")
        mpirun = ["mpirun", "-np", "2", "--bind-to", "core", options.program]
        in_turn(f"ranks, bench-s 4 x 512, {dtype}", [("2 ranks x 1 thread", lambda: steps_of(mpirun, two, 1)),
                                                     ("1 rank x 2 threads", lambda: steps_of([options.program], one, 2))])


def bench_loader(options, directory):
    """Batches of one row, so that 10 ms for a row are 10 ms for a batch."""
    config = write_config(directory, "bench-s", 1, 512, 1, 4 * options.steps + 1, name="loader")
    threads = len(os.sched_getaffinity(0))
    in_turn("loader, bench-s 1 x 512, bf16", [("10 ms slower", lambda: steps_of([options.slow_loader], config, threads)),
                                              ("as it is", lambda: steps_of([options.program], config, threads))])


def prime(directory, n_bytes):
    """Has the machine hold this much memory and lets it go: of a virtual machine's, what its host gives for the first time is slow,
    for whoever comes first."""
    file = Path(directory) / "prime"
    subprocess.run(["dd", "if=/dev/zero", f"of={file}", "bs=16M", f"count={n_bytes >> 24}", "status=none"], check=True)
    file.unlink()


def settle(file, cold):
    """Nothing of the file in memory, or all of it; and nothing left to write."""
    os.sync()
    if cold:
        prime(file.parent, 3 * file.stat().st_size)
        Path("/proc/sys/vm/drop_caches").write_text("3")
    else:
        subprocess.run(["cat", str(file)], stdout=subprocess.DEVNULL, check=True)


def on_ranks(options, *command):
    return [*(["mpirun", "-np", options.ranks, "--bind-to", "none"] if options.ranks > 1 else []), *command]


def threads_of(options):
    return max(1, len(os.sched_getaffinity(0)) // options.ranks)


def seconds_of(command, threads, until=None):
    """The time to the end of the command, or until it prints a line that begins so; then it is ended."""
    began = time.monotonic()
    child = subprocess.Popen([str(part) for part in command], env=environment(threads), stdout=subprocess.PIPE, text=True)
    if until and any(line.startswith(until) for line in child.stdout):
        s = time.monotonic() - began
        child.terminate()
        child.wait()
        return s
    if child.wait() or until:
        raise subprocess.CalledProcessError(child.returncode, command)
    return time.monotonic() - began


def written(options, config):
    """Takes a step and writes a checkpoint: the file, and the seconds that the log tells of it."""
    command = [str(part) for part in on_ranks(options, options.program, "train", config)]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment(threads_of(options))).stdout
    _, path, seconds, _ = next(line for line in out.splitlines() if line.startswith("checkpoint")).split()
    return Path(path), float(seconds)


def tell_speed(what, n_bytes, ours, theirs, name):
    speed = lambda s: f"{s:.2f} s, {n_bytes / s / 1e9:.2f} GB/s"
    print(f"checkpoint, {what}: {speed(ours)}; {name} {speed(theirs)}: {100 * theirs / ours:.0f} %", flush=True)


def bench_write(options, directory, config):
    """Ours, dd and dd past the page cache in turn; the file that is written last."""
    ours, theirs, copy = [], {"": [], "oflag=direct": []}, Path(directory) / "copy"
    n_bytes = 14 << 30  # for the first time: nobody knows yet
    for _ in range(2):
        shutil.rmtree(config.with_suffix(""), ignore_errors=True)
        prime(directory, n_bytes)
        file, seconds = written(options, config)
        n_bytes = 3 * file.stat().st_size
        ours.append(seconds)
        for flag, best in theirs.items():
            settle(file, cold=False)
            best.append(seconds_of(["dd", f"if={file}", f"of={copy}", "bs=16M", "conv=fsync", "status=none", *flag.split()], 1))
            copy.unlink()
    for flag, best in theirs.items():
        tell_speed(f"write {gib(file.stat().st_size)} GiB", file.stat().st_size, min(ours), min(best), f"dd conv=fsync {flag}".strip())
    return file


def parameter_bytes(program, file):
    """How much of a checkpoint its parameters are: they come first."""
    out = subprocess.run([str(program), "inspect", str(file), "--json"], stdout=subprocess.PIPE, text=True, check=True).stdout
    tensors = [t for t in json.loads(out)["tensors"] if t["path"].startswith("params/")]
    return sum(math.prod(t["shape"]) * {"f32": 4, "bf16": 2}[t["dtype"]] for t in tensors)


def bench_starts(options, directory, config, file):
    """Each beside dd, in turn; the best of two."""
    read = lambda n_bytes: (["dd", f"if={file}", "of=/dev/null", "bs=1M", f"count={-(-n_bytes >> 20)}", "status=none"], None)
    window = ["--data", f"{directory}/random", "--max-tokens", "16", "--seq-len", "16", "--batch", "1"]
    resume = on_ranks(options, options.program, "train", config, "--resume")
    starts = {"train --resume": (file.stat().st_size, (resume, "  resumed")),
              "eval": (parameter_bytes(options.program, file), (on_ranks(options, options.program, "eval", file, *window), None))}
    for cold in [True, False] if os.access("/proc/sys/vm/drop_caches", os.W_OK) else [False]:
        for name, (n_bytes, start) in starts.items():
            ours, theirs = [], []
            for _ in range(2):
                for seconds, (command, until) in (ours, start), (theirs, read(n_bytes)):
                    settle(file, cold)
                    seconds.append(seconds_of(command, threads_of(options), until))
            tell_speed(f"start of {name}, {'cold' if cold else 'warm'}, {gib(n_bytes)} GiB", n_bytes, min(ours), min(theirs),
                       "dd of=/dev/null")


def bench_checkpoint(options, directory):
    print(f"checkpoint: of {options.model}, {options.dtype}, with optimizer state, {options.ranks} ranks of {threads_of(options)} threads; "
          "the best of two, in turn")
    config = write_config(directory, options.model, 1, 16, 1, 1, options.dtype, name="checkpoint")
    bench_starts(options, directory, config, bench_write(options, directory, config))


PARTS = {"ranks": bench_ranks, "loader": bench_loader, "checkpoint": bench_checkpoint}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--steps", type=int, default=4, help="measured steps of a run")
    parser.add_argument("--model", default="flash-350m", help="whose checkpoint is written and read")
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16", help="of the checkpoint")
    parser.add_argument("--ranks", type=int, default=1, help="that write and read the checkpoint")
    parser.add_argument("--program", default=ROOT / "build" / "mobilellm", type=Path)
    parser.add_argument("--slow-loader", default=ROOT / "build" / "bench" / "slow_loader", type=Path)
    parser.add_argument("--directory", help="where files go for the time being; the disk is measured")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        sys.exit(f"bench: {unknown[0]} is not one of {', '.join(PARTS)}")
    tell_machine(options.program)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        write_tokens(f"{directory}/random", 200_000, 32_000)
        for part in options.parts:
            PARTS[part](options, directory)


if __name__ == "__main__":
    main()
