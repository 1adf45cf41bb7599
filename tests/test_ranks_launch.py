"""How a run of several ranks ends when one of them fails: exit status, one message, no hang. Also the C test under mpirun."""

import re
import subprocess
import time

import pytest
from conftest import BUILD, ENV, ROOT

PROGRAM = BUILD / "tests/test_ranks"
SECONDS = 30  # within which a failed run has ended, on a busy machine


def start(ranks, *args, env=None, program=PROGRAM):
    assert program.exists(), "build it first: make test-programs"
    before = time.monotonic()
    done = subprocess.run(["mpirun", "-np", str(ranks), "--bind-to", "none", program, *map(str, args)], cwd=ROOT, env={**ENV, **(env or {})},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120, stdin=subprocess.DEVNULL)
    return done, time.monotonic() - before


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_collectives(ranks):
    done, _ = start(ranks)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("how", ["abort", "agree", "share"])
@pytest.mark.parametrize("which", [0, 2])
def test_one_rank_that_fails_ends_all_with_its_message(how, which):
    done, seconds = start(3, how, which)
    lines = [line for line in done.stderr.splitlines() if "mobilellm" in line or "Write it" in line]
    assert len(lines) == 2, done.stderr
    assert re.fullmatch(rf"mobilellm: \[rank {which} of 3 on \S+\] data\.bin: is short\.", lines[0])
    assert lines[1] == "           Write it again."
    assert done.returncode == 3
    assert seconds < SECONDS


@pytest.mark.parametrize("how", ["agree-all", "share-all"])
def test_a_failure_of_all_is_told_once(how):
    done, seconds = start(3, how, 0)
    assert done.stderr.count("data.bin: is short") == 1, done.stderr
    assert "[rank 0 of 3" in done.stderr
    assert done.returncode == 3
    assert seconds < SECONDS


@pytest.mark.parametrize("which", [0, 2])
def test_a_collective_that_fails_ends_all_with_its_name(which):
    done, seconds = start(3, "network", which)
    told = [line for line in done.stderr.splitlines() if line.startswith("mobilellm")]
    assert len(told) == 1 and re.match(rf"mobilellm: \[rank {which} of 3 on \S+\] MPI_Barrier failed: MPI_ERR_OTHER", told[0]), done.stderr
    assert "Is the network between the machines up" in done.stderr
    assert done.returncode == 1
    assert seconds < SECONDS


def test_an_mpi_without_threads_is_refused():
    done, _ = start(2, env={"TEST_RANKS_SINGLE": "1"})
    assert "MPI does not start with thread support" in done.stderr, done.stderr
    assert done.returncode == 4


def test_tasks_that_do_not_know_of_each_other_are_refused():
    """srun without --mpi: each task would train alone, on the same directory."""
    env = {**alone(), "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}
    done = subprocess.run([PROGRAM], env=env, capture_output=True, text=True, timeout=SECONDS)
    assert "srun started 2 tasks, but MPI sees one" in done.stderr, done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize("how, status", [("kill", 137), ("exit", 7)])
def test_a_rank_that_dies_ends_the_others(how, status):
    done, seconds = start(3, how, 1)
    assert done.returncode == status, done.stderr
    assert seconds < SECONDS


@pytest.mark.parametrize("which", [0, 2])
def test_a_rank_that_hangs_is_named_and_ends_all(which):
    """Its main thread alone: that of the watch answers, and tells how far the rank has come."""
    done, seconds = start(3, "hang", which)
    told = [line for line in done.stderr.splitlines() if line.startswith("mobilellm")]
    assert len(told) == 1 and re.search(rf"\] rank {which} \(\S+\): no progress for 1 s, since MPI_\w+; the other ranks wait", told[0])
    assert "           Look at it." in done.stderr
    assert done.returncode == 6
    assert seconds < SECONDS


def test_a_rank_that_works_for_longer_than_the_limit_is_waited_for():
    done, seconds = start(3, "work", 1)
    assert done.returncode == 0, done.stderr
    assert seconds > 3


@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
@pytest.mark.parametrize("how, status", [("work", 0), ("hang", 6)])
def test_the_watch_under_the_sanitizers(sanitizer, how, status):
    program = BUILD / sanitizer / "tests/test_ranks"
    if not program.exists():
        pytest.skip("`make test` builds it")
    done, _ = start(2, how, 1, program=program)
    assert "Sanitizer" not in done.stderr, done.stderr
    assert done.returncode == status, done.stderr


def alone():
    """The environment of a program that no launcher started."""
    return {name: value for name, value in ENV.items() if not name.startswith(("OMPI_COMM", "PMIX_", "SLURM_"))}


def test_alone_there_is_no_mpi_and_no_rank_in_the_message():
    done = subprocess.run([PROGRAM, "abort", "0"], env=alone(), capture_output=True, text=True, timeout=SECONDS)
    assert done.stderr == "mobilellm: data.bin: is short.\n           Write it again.\n"
    assert done.returncode == 3
