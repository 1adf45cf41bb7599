"""The faults of tests/write_faults.py: all of them where one process writes, and some where ranks write together. That one, by hand,
goes through all."""

import random

import pytest
import write_faults


@pytest.mark.parametrize("ranks, sample", [(0, None), (2, 12), (3, 6)])
def test_a_call_that_fails_leaves_the_checkpoint_before(tmp_path, ranks, sample):
    summary, failures = write_faults.go(ranks, sample, random.Random(3), tmp_path)
    assert not failures, "\n".join(failures)
    assert summary["faults"] == sample or summary["faults"] >= 100
    assert summary["refused"] > summary["faults"] / 2
