"""A bit that flips in token data is found: in the index whenever it is opened, in the ids by `data info --verify`.

Of a checkpoint: test_checkpoint_files.py.
"""

import random
import struct
import subprocess
import sys

import pytest
from conftest import ROOT, command, run, words

sys.path.insert(0, str(ROOT / "data"))
from megatron import TokenWriter  # noqa: E402

FLIPS = 200


def write_with_c(prefix):
    (prefix.parent / "text").write_text(words(300, 5))
    run("data", "pack", prefix, prefix.parent / "text", "--split", "lines")


def write_with_python(prefix):
    draw = random.Random(6)
    with TokenWriter(str(prefix), 99999) as writer:  # int32
        for _ in range(300):
            writer.add([draw.randrange(100000) for _ in range(draw.randrange(40))])
        writer.finish({"vocab_size": 100000})


@pytest.fixture(scope="module", params=[write_with_c, write_with_python])
def prefix(request, tmp_path_factory):
    prefix = tmp_path_factory.mktemp("data") / "tokens"
    request.param(prefix)
    run("data", "info", prefix, "--verify")
    return prefix


@pytest.mark.parametrize("ending, options", [("idx", []), ("bin", ["--verify"])])
def test_each_flipped_bit_is_found(prefix, ending, options):
    file = prefix.with_suffix("." + ending)
    good, draw = file.read_bytes(), random.Random(7)
    for bit in draw.sample(range(8 * len(good)), FLIPS):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        done = subprocess.run(command("data", "info", prefix, *options), capture_output=True, text=True)
        assert done.returncode == 3, f"bit {bit} of {file.name}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.stderr.startswith("mobilellm: ") and str(prefix) in done.stderr
    file.write_bytes(good)
    run("data", "info", prefix, "--verify")


def test_a_moved_document_boundary_is_told_by_the_checksum(prefix):
    """The damage that the format itself cannot know: document 1 begins a sequence later."""
    file = prefix.with_suffix(".idx")
    good = file.read_bytes()
    n, = struct.unpack_from("<Q", good, 18)
    moved = bytearray(good)
    struct.pack_into("<q", moved, 34 + 12 * n + 8, 2)
    file.write_bytes(moved)
    _, err = run("data", "info", prefix, status=3)
    file.write_bytes(good)
    assert "tokens.idx: its CRC-32 is " in err and "it has changed since it was written" in err and "remove the card" in err
