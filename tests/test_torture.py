"""The torture of tests/torture.py in small: a few kills on up to three ranks. That one, by hand, goes on to a hundred and more."""

import torture


def test_three_kills_lose_nothing(tmp_path):
    summary = torture.go(kills=3, ranks=3, seed=2, where=tmp_path, steps=250)
    assert summary["kills"] == 3, summary
    assert summary["losses of same"] == 0 and summary["losses of changed"] <= 1e-6
