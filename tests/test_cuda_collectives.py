"""The collectives between emulated GPUs under mpirun, and how a run of several ranks ends when one goes wrong: no hang."""

import re
import subprocess
import time

import pytest
from conftest import BUILD, ENV, ROOT

PROGRAM = BUILD / "emu-cov/tests/test_cuda_collectives"
TOKEN_ROWS = BUILD / "emu-cov/tests/test_cuda_token_rows"
SECONDS = 40  # within which a failed run has ended, on a busy machine


def start(ranks, *args, program=PROGRAM, **variables):
    assert program.exists(), "build it first: make emu EMU=cov"
    before = time.monotonic()
    done = subprocess.run(["mpirun", "-np", str(ranks), "--bind-to", "none", program, *map(str, args)], cwd=ROOT,
                          env={**ENV, "OMP_NUM_THREADS": "1", **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=120, stdin=subprocess.DEVNULL)
    return done, time.monotonic() - before


def told(done):
    return [line for line in done.stderr.splitlines() if line.startswith("mobilellm: ")]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("streams", ["eager", "lazy"])
def test_collectives(ranks, streams):
    """Eager: when they are enqueued. Lazy: only when somebody waits for them, so that a join that is missing shows."""
    done, _ = start(ranks, CUEMU_STREAMS=streams)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("ranks, streams", [(2, "eager"), (3, "lazy"), (5, "rand:3")])
def test_token_rows(ranks, streams):
    done, _ = start(ranks, program=TOKEN_ROWS, CUEMU_STREAMS=streams)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("streams", ["eager", "lazy"])
def test_a_collective_that_fails_ends_the_run_with_a_message(streams):
    done, seconds = start(3, "fail", 1, CUEMU_STREAMS=streams)
    assert done.returncode == 6, done.stderr
    assert len(told(done)) == 1, done.stderr
    assert re.search(r"\[rank 1 of 3 on \S+\] a collective failed: NCCL says remote process exited", told(done)[0])
    assert "NCCL_DEBUG=INFO" in done.stderr
    assert seconds < SECONDS


@pytest.mark.parametrize("which", [0, 2])
def test_a_rank_that_is_gone_is_named(which):
    """As when its machine fails: the launcher does not see it, and NCCL tells the others only that somebody is missing."""
    done, seconds = start(3, "lost", which, CUEMU_STREAMS="eager")
    assert done.returncode == 6, done.stderr
    assert len(told(done)) == 1, done.stderr
    speaker = 1 if which == 0 else 0
    assert re.search(rf"\[rank {speaker} of 3 on \S+\] no answer from rank {which} \(\S+\): a collective failed: NCCL says", told(done)[0])
    assert seconds < SECONDS


@pytest.mark.parametrize("streams", ["eager", "lazy"])
def test_a_rank_that_hangs_is_named(streams):
    done, seconds = start(3, "hang", 2, CUEMU_STREAMS=streams)
    assert done.returncode == 6, done.stderr
    assert len(told(done)) == 1, done.stderr
    assert re.search(r"rank 2 \(\S+\): no progress for 2 s, since a wait for the GPU; the other ranks wait", told(done)[0])
    assert seconds < SECONDS


def test_two_ranks_on_one_gpu_are_told():
    done, seconds = start(2, "share", 0)
    assert done.returncode == 4, done.stderr
    assert "ranks 0 and 1 share one GPU" in done.stderr and "Start no more ranks on a machine than it has GPUs" in done.stderr
    assert seconds < SECONDS


def test_ranks_with_different_gpus_are_told_which():
    done, seconds = start(3, "differ", 2)
    assert done.returncode == 4, done.stderr
    assert re.search(r"rank 0 on \S+ has emulated GPU \(4 SMs\), cuBLASLt [\d.]+, NCCL [\d.]+, cuDNN none,\n +and rank 2 on \S+ has another GPU", done.stderr)
    assert seconds < SECONDS
