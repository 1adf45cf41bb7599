"""`mobilellm eval` against PyTorch: the exact loss of a whole token file, by tests/fixtures/make.py (make_evaluation)."""

import json

import pytest
from conftest import ROOT, run_json

FIXTURES = ROOT / "tests" / "fixtures" / "model"
EXPECTED = json.loads((FIXTURES / "eval_expected.json").read_text())["losses"]


def measure(row, *options, **kwargs):
    mask = ["--mask-documents"] if row["mask_documents"] else []
    options = ["--seq-len", row["seq_len"], *mask, *options]
    return run_json("eval", FIXTURES / "eval.h5", "--data", FIXTURES / "eval", *options, **kwargs)["files"][0]


@pytest.mark.parametrize("row", EXPECTED, ids=lambda row: f"{row['seq_len']}-{'masked' if row['mask_documents'] else 'whole'}")
def test_loss_is_pytorchs(row):
    got = measure(row)
    assert got["tokens"] == row["tokens"]
    for key in ("nats", "loss", "bits_per_byte"):
        assert got[key] == pytest.approx(row[key], rel=1e-7), key


@pytest.mark.parametrize("ranks, batch", [(0, 1), (0, 5), (2, 3), (3, 8)])
def test_ranks_and_batches_do_not_matter(ranks, batch):
    for row in EXPECTED[:2]:
        got = measure(row, "--batch", batch, ranks=ranks)
        assert got["tokens"] == row["tokens"]
        assert got["nats"] == pytest.approx(row["nats"], rel=1e-7)
