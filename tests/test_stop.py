"""A signal in any state of a run: loading, in a step, in an evaluation, while a checkpoint is being written. Exit status 75, the
newest checkpoint whole, and a run that goes on with --resume as if it had never stopped."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import h5py
import pytest
from conftest import ENV, ROOT, command, newest, run, same_bits
from test_hang import processes, wait_for

SECONDS = 10  # within which a run has ended


class Stalled:
    """A run that stands still in so many ranks where tests/shim_stall.c makes it: at a file whose name ends in `at`."""

    def __init__(self, arguments, ranks, shim, folder, at, stalled_ranks=1, after=None):
        self.marks, self.ranks = folder / "marks", ranks
        self.marks.mkdir()
        env = {**ENV, "OMP_NUM_THREADS": "1", "LD_PRELOAD": shim, "STALL_AT": at, "STALL_IN": str(self.marks)}
        env.update({"STALL_AFTER": after} if after else {})
        self.child = subprocess.Popen(command(*arguments, ranks=ranks), cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        wait_for(lambda: len(list(self.marks.iterdir())) == stalled_ranks, 60)
        self.pids = processes(self.child, ranks)
        wait_for(lambda: all(catches(pid, signal.SIGUSR1) for pid in self.pids), 60)

    def release(self):
        for mark in self.marks.iterdir():
            mark.unlink()
        self.marks.rmdir()  # none is made any more

    def end(self, status):
        """What it printed, after it has ended in time and with this status."""
        began = time.monotonic()
        out, err = self.child.communicate(timeout=60)
        assert self.child.returncode == status, f"exit {self.child.returncode}\n{out}\n{err}"
        assert time.monotonic() - began < SECONDS
        return out


def catches(pid, number):
    """Has the process a handler for the signal?"""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return int(caught.split()[1], 16) >> (number - 1) & 1


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    library = tmp_path_factory.mktemp("stall") / "stall.so"
    subprocess.run(["cc", "-D_GNU_SOURCE", "-shared", "-fPIC", "-O1", "-o", library, ROOT / "tests/shim_stall.c", "-ldl"], check=True)
    return str(library)


def files(directory):
    return sorted(os.listdir(directory)) if directory.exists() else None


def evaluations(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["prefix"], row["loss"]) for row in rows if row["kind"] == "eval"]


def heldout_history(directory):
    with h5py.File(newest(directory)) as f:
        return f["history/heldout"][()].tobytes()


def assert_same_run(one, other):
    assert same_bits(newest(one), newest(other))
    assert evaluations(one) == evaluations(other)
    assert heldout_history(one) == heldout_history(other)


@pytest.mark.parametrize("ranks, sender", [(0, "rank"), (2, "mpirun"), (2, "rank")])
@pytest.mark.parametrize("at, stalled_ranks", [("small.yaml", 2), ("train.idx", 1), (".h5", 2)])
def test_while_loading_a_run_ends_where_it_is(start, shim, tmp_path, at, stalled_ranks, ranks, sender):
    """In its config, its data, or the checkpoint that it resumes from. Rank 0 looks at the data first, with the others waiting."""
    directory, arguments = start()
    if at == ".h5":
        run(*arguments, "train.stop_after=7", ranks=ranks)
    before = files(directory)
    run_ = Stalled([*arguments, "--resume"], ranks, shim, tmp_path, at, stalled_ranks if ranks else 1)
    if sender == "rank":
        os.kill(run_.pids[-1], signal.SIGTERM)
    else:
        run_.child.send_signal(signal.SIGUSR1)
    out = run_.end(status=75)
    if sender == "mpirun" or not ranks:
        assert out.count("while loading") == 1 and ("SIGUSR1" if ranks else "SIGTERM") in out
    assert files(directory) == before
    if at == ".h5":
        run("inspect", directory, "--verify")
    if at == ".h5" and sender == "rank":
        run(*arguments, "--resume", ranks=ranks)
        whole, arguments = start("whole")
        run(*arguments, ranks=ranks)
        assert_same_run(directory, whole)


@pytest.mark.parametrize("ranks", [0, 2])
@pytest.mark.parametrize("at", [".h5.tmp", ".h5"])
def test_a_checkpoint_that_is_being_written_is_finished(start, shim, tmp_path, at, ranks):
    """Before its first byte, and before it gets its name: both are done by rank 0, with the others waiting."""
    whole, arguments = start("whole", checkpoint__every=10)
    run(*arguments, ranks=ranks)
    directory, arguments = start(checkpoint__every=10)
    run_ = Stalled(arguments, ranks, shim, tmp_path, at)
    os.kill(run_.pids[-1], signal.SIGUSR1)
    run_.release()
    assert "stopped     by SIGUSR1 at step 10 of 20:" in run_.end(status=75)
    assert newest(directory).name == "step_0000000010.h5"
    assert not [name for name in os.listdir(directory) if "tmp" in name]
    run("inspect", directory, "--verify")
    run(*arguments, "--resume", ranks=ranks)
    assert_same_run(directory, whole)


def test_a_run_that_is_complete_is_not_stopped(start, shim, tmp_path):
    """A signal while its last checkpoint is being written."""
    directory, arguments = start()
    run_ = Stalled(arguments, 0, shim, tmp_path, ".h5.tmp")
    os.kill(run_.pids[0], signal.SIGTERM)
    run_.release()
    assert "stopped" not in run_.end(status=0)
    run(*arguments, "--resume")  # and there is nothing left to do
    assert newest(directory).name == "step_0000000020.h5"


@pytest.mark.parametrize("step", [10, 20])
@pytest.mark.parametrize("ranks", [0, 2])
def test_an_evaluation_is_abandoned_and_made_when_the_run_goes_on(start, corpus, shim, tmp_path, ranks, step):
    """Two sources: one is measured, one not. In the middle of the run, and at its end, where evaluations are all that is missing."""
    keys = dict(data__heldout=f"[{{prefix: {corpus}/heldout}}, {{prefix: {corpus}/other}}]", train__eval_every=step)
    whole, arguments = start("whole", **keys)
    run(*arguments, ranks=ranks)
    directory, arguments = start(**keys)
    run_ = Stalled(arguments, ranks, shim, tmp_path, "other.json", after="metrics.jsonl")  # the first time it is in the banner
    os.kill(run_.pids[-1], signal.SIGTERM)
    run_.release()
    assert f"stopped     by SIGTERM at step {step} of 20, before its evaluation" in run_.end(status=75)
    assert [row[:2] for row in evaluations(directory)] == [(step, f"{corpus}/heldout")]
    assert newest(directory).name == f"step_{step:010d}.h5"
    run(*arguments, "--resume", ranks=ranks)
    assert_same_run(directory, whole)
    assert len(evaluations(directory)) == 3 * 20 // step


def test_a_kill_after_the_evaluation_was_made_up_for_does_not_double_it(start, shim, tmp_path):
    keys = dict(train__eval_every=10)
    whole, arguments = start("whole", **keys)
    run(*arguments)
    directory, arguments = start(**keys)
    run_ = Stalled(arguments, 0, shim, tmp_path, "heldout.json", after="metrics.jsonl")
    os.kill(run_.pids[0], signal.SIGTERM)
    run_.release()
    assert "before its evaluation" in run_.end(status=75)
    run_ = Stalled([*arguments, "--resume"], 0, shim, tmp_path, ".h5.tmp")  # the last checkpoint
    assert [step for step, _, _ in evaluations(directory)] == [10, 20]
    run_.child.kill()
    run_.end(status=-signal.SIGKILL)
    run(*arguments, "--resume")
    assert_same_run(directory, whole)


def processor_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_long_step_is_abandoned_between_micro_batches(start, ranks):
    """Of each of two steps a rank has 2000 or 2001."""
    tokens = 32 * (2000 * max(ranks, 1) + 1)
    keys = dict(batch__tokens=tokens, batch__micro=1, train__tokens=2 * tokens, schedule__warmup_tokens=0)
    whole, arguments = start("whole", **keys)
    run(*arguments, ranks=ranks)
    directory, arguments = start(**keys)
    child = subprocess.Popen(command(*arguments, ranks=ranks), cwd=ROOT, env={**ENV, "OMP_NUM_THREADS": "1"}, text=True,
                             stdout=subprocess.PIPE)
    next(line for line in child.stdout if line.startswith("step 1/"))
    pid = processes(child, ranks)[-1]
    began = processor_seconds(pid)
    wait_for(lambda: processor_seconds(pid) > began + 0.2, 60)
    os.kill(pid, signal.SIGTERM)
    out, _ = child.communicate(timeout=SECONDS)
    assert child.returncode == 75, out
    assert "stopped     by SIGTERM at step 1 of 2:" in out
    run(*arguments, "--resume", ranks=ranks)
    assert_same_run(directory, whole)


def test_a_second_sigint_ends_a_run_at_once(start, shim, tmp_path):
    directory, arguments = start()
    run(*arguments, "train.stop_after=5")
    run_ = Stalled([*arguments, "--resume"], 0, shim, tmp_path, ".h5.tmp")
    os.kill(run_.pids[0], signal.SIGINT)
    wait_for(lambda: not catches(run_.pids[0], signal.SIGINT), SECONDS)
    os.kill(run_.pids[0], signal.SIGINT)
    run_.end(status=-signal.SIGINT)
    assert newest(directory).name == "step_0000000005.h5"
    run("inspect", directory, "--verify")


def test_eval_just_dies(start, corpus, shim, tmp_path):
    directory, arguments = start()
    run(*arguments)
    marks = tmp_path / "marks"
    marks.mkdir()
    child = subprocess.Popen(command("eval", directory, "--data", corpus / "heldout"), cwd=ROOT, stdout=subprocess.PIPE,
                             env={**ENV, "LD_PRELOAD": shim, "STALL_AT": "heldout.json", "STALL_IN": str(marks)})
    wait_for(lambda: list(marks.iterdir()), 60)
    child.terminate()
    out, _ = child.communicate(timeout=SECONDS)
    assert child.returncode == -signal.SIGTERM and out == b""
