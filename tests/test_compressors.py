"""scripts/compressors.py: figures that are what they say, and kept ones shown only for exactly their texts."""

import bz2
import json
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script(tmp_path):
    """A copy of the script beside no kept figures; and two texts of which the second repeats lines of the first."""
    shutil.copy(ROOT / "scripts" / "compressors.py", tmp_path)
    lines = [f"line {i * i * 7919 % 100003} of {i * 31337 % 1009}" for i in range(4000)]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "heldout.txt").write_text("\n".join(lines[500:700] + ["new"] * 9) + "\n")

    def run(*args, status=0):
        done = subprocess.run([sys.executable, tmp_path / "compressors.py", tmp_path / "train.txt", tmp_path / "heldout.txt", *map(str, args)],
                              capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    run.directory = tmp_path
    return run


def test_a_figure_is_what_the_heldout_text_adds(script):
    train, heldout = ((script.directory / name).read_bytes() for name in ("train.txt", "heldout.txt"))
    told = json.loads(script("--json", "--model", "ours", "1.25"))
    assert not told["kept"]
    bits = told["bits_per_byte"]
    counted = len(heldout) - 209  # without the ends of 209 lines
    assert bits["bzip2 -9"] == 8 * (len(bz2.compress(train + heldout)) - len(bz2.compress(train))) / counted
    added = len(lzma.compress(train + heldout, preset=9 | lzma.PRESET_EXTREME)) - len(lzma.compress(train, preset=9 | lzma.PRESET_EXTREME))
    assert bits["xz -9e"] == 8 * added / counted
    assert 0 < bits["xz -9e"] < bits["bzip2 -9"], "one finds the repeated lines, the other's blocks hold less of them"
    assert bits["ours"] == 1.25


def test_figures_are_kept_for_exactly_their_texts(script):
    assert not json.loads(script("--json"))["kept"]
    assert not (script.directory / "compressors.json").exists()
    measured = json.loads(script("--json", "--save"))
    again = json.loads(script("--json"))
    assert again["kept"] and again["bits_per_byte"] == measured["bits_per_byte"]
    assert not json.loads(script("--json", "--recompute"))["kept"]
    table = script("--model", "ours", "0.001")
    assert "0.001 bits/byte  <- a model" in table and "kept in compressors.json" in table
    with open(script.directory / "heldout.txt", "a") as file:
        file.write("one more\n")
    assert not json.loads(script("--json"))["kept"]


def test_what_is_wrong_is_said(script):
    assert "--model" in script("--model", "ours", "much", status=2)
    (script.directory / "heldout.txt").write_text("\n")
    assert "there is no text" in script(status=3)
    (script.directory / "train.txt").unlink()
    assert "train.txt: No such file" in script(status=3)


def test_the_committed_figures_are_of_the_demo_s_compressors():
    known = json.loads((ROOT / "scripts" / "compressors.json").read_text())
    for figures in known.values():
        assert {"bzip2 -9", "zstd -19 --long=27", "xz -9e", "PPMd7 order 8"} == set(figures)
        assert all(1 < bits < 3 for bits in figures.values())
