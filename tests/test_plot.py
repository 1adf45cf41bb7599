"""scripts/plot.py draws whole and half-written logs, and says what is wrong with the others."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

ROOT = Path(__file__).resolve().parent.parent


def plot(*args):
    return subprocess.run([sys.executable, ROOT / "scripts" / "plot.py", *map(str, args)], capture_output=True, text=True)


def write_run(directory, n=40, scale=1, tail=""):
    directory.mkdir()
    rows = [{"kind": "train", "step": i, "tokens": 1000 * i, "loss": None if i == 7 else scale / i, "lr": 1e-4, "grad_norm": 1.0,
             "tokens_per_s": 900.0} for i in range(1, n)]
    rows.append({"kind": "eval", "prefix": "heldout/wiki", "step": n, "tokens": 1000 * n, "loss": 1.0})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return directory


def has_color(image, color):
    rgb = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return (np.abs(imread(image)[:, :, :3] - rgb).max(axis=2) < 0.02).sum() > 500


def test_a_run_is_drawn_beside_its_log(tmp_path):
    run = write_run(tmp_path / "a", tail='{"kind": "train", "st')  # still being written
    done = plot(run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run / "metrics.png")
    assert has_color(run / "metrics.png", "#2563a8") and not has_color(run / "metrics.png", "#d9622b")


def test_runs_are_overlaid_in_colours_of_their_own(tmp_path):
    out = tmp_path / "both.png"
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", n=80, scale=5)]
    done = plot(*runs, "-o", out)
    assert done.returncode == 0, done.stderr
    assert has_color(out, "#2563a8") and has_color(out, "#d9622b")


@pytest.mark.parametrize("text, message", [
    (None, "metrics.jsonl: No such file or directory. Give the directory of a run (its checkpoint.dir)."),
    ("", "metrics.jsonl: nothing is logged yet. The first line comes after train.log_every steps."),
    ('{"kind": "train", "st', "metrics.jsonl: nothing is logged yet."),
    ('{"kind": "train", "step": 1}\nhello\n', 'metrics.jsonl:2: expected a JSON object of kind "train" or "eval".'),
    ('{"kind": "other"}\n', 'metrics.jsonl:1: expected a JSON object of kind "train" or "eval".'),
])
def test_what_cannot_be_drawn_is_said_in_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    done = plot(tmp_path)
    assert done.returncode == 1 and not (tmp_path / "metrics.png").exists()
    assert done.stderr.startswith("plot.py: ") and message in done.stderr and done.stderr.count("\n") == 1
