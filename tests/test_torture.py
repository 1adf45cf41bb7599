"""The torture of tests/torture.py in small: a few kills, and a failure of each kind, on up to three ranks. That one, by hand, goes on to
a hundred and more."""

import torture


def test_kills_lose_nothing(tmp_path):
    summary = torture.kill_again_and_again(kills=4, ranks=3, seed=2, where=tmp_path)
    assert summary["kills"] == 4, summary
    assert summary["losses of same"] == 0 and summary["losses of changed"] <= 1e-6


def test_a_rank_that_fails_is_named_and_ends_all(tmp_path):
    summary = torture.break_again_and_again(failures=3, ranks=3, seed=2, where=tmp_path)
    assert summary["dies"] == summary["hangs"] == summary["is sick"] == 1, summary
