"""A run of several ranks ends when one of them hangs, and says which; and no two runs write into one directory."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ENV, ROOT, command, newest, run

LONG = {"train__tokens": 384 * 100000, "train__log_every": 20, "checkpoint__every": 40}
REFUSED = 4


def launch(arguments, ranks):
    """Starts a run, returns it when it has logged a step."""
    child = subprocess.Popen(command(*arguments, ranks=ranks), cwd=ROOT, env={**ENV, "OMP_NUM_THREADS": "1"}, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    for line in child.stdout:
        if line.startswith("step"):
            return child
    raise AssertionError(child.stderr.read())


def processes(child, ranks):
    """The processes of a run, by rank."""
    if not ranks:
        return [child.pid]
    found = {}
    for pid in subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True).stdout.split():
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found.update({int(v.split(b"=")[1]): int(pid) for v in environment if v.startswith(b"OMPI_COMM_WORLD_RANK=")})
    assert sorted(found) == list(range(ranks))
    return [found[rank] for rank in range(ranks)]


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def gone(pid):
    return not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_stopped_rank_ends_all_and_is_named(start, seed):
    """SIGSTOP at a random moment of one rank of three: within 10 s nobody is left, and the newest checkpoint is good."""
    directory, arguments = start(train__hang_timeout=3, **LONG)
    child = launch(arguments, 3)
    draw, pids = random.Random(seed), processes(child, 3)
    wait_for((directory / "latest").exists, 60)
    time.sleep(draw.uniform(0, 0.5))
    which = draw.randrange(3)
    os.kill(pids[which], signal.SIGSTOP)
    began = time.monotonic()
    _, err = child.communicate(timeout=30)
    seconds = time.monotonic() - began
    wait_for(lambda: all(map(gone, pids)), 10 - seconds)
    told = [line for line in err.splitlines() if line.startswith("mobilellm: ")]
    assert len(told) == 1 and f"] rank {which} (" in told[0] and "no answer" in told[0], err
    assert "train.hang_timeout" in err and "--resume" in err
    assert child.returncode == 6
    assert 2 < seconds < 10
    run("inspect", newest(directory), "--verify")


def test_a_run_that_is_suspended_as_a_whole_goes_on(start):
    directory, arguments = start(train__hang_timeout=1.5, **LONG)
    child = launch(arguments, 2)
    pids = processes(child, 2)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    before = (directory / "metrics.jsonl").stat().st_size
    wait_for(lambda: (directory / "metrics.jsonl").stat().st_size > before, 20)
    child.send_signal(signal.SIGUSR1)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 75, err


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_directory_in_use_is_refused_until_its_run_is_gone(start, ranks):
    directory, arguments = start(**LONG)
    child = launch(arguments, ranks)
    pids = processes(child, ranks)
    config = (directory / "config.yaml").stat().st_mtime_ns
    for more in ([], ["--resume"]):
        _, err = run(*arguments, *more, ranks=ranks, status=REFUSED)
        assert str(directory) in err and f"process {pids[0]} on " in err and " since 20" in err, err
        assert err.count("in use") == 1
    assert (directory / "config.yaml").stat().st_mtime_ns == config
    run(*arguments, "--dry-run")
    wait_for((directory / "latest").exists, 60)
    os.kill(pids[0], signal.SIGKILL)
    child.communicate(timeout=30)
    out, _ = run(*arguments, "--resume", "train.stop_after=1", ranks=ranks)
    assert "resumed" in out


def test_a_rank_that_outlives_its_launcher_for_a_moment_is_waited_for(start):
    directory, arguments = start(**LONG)
    child = launch(arguments, 2)
    wait_for((directory / "latest").exists, 60)
    child.kill()
    out, _ = run(*arguments, "--resume", "train.stop_after=1", ranks=2)
    assert "resumed" in out
    child.communicate()
