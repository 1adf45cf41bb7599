#!/usr/bin/env python3
"""compressors.py: how many bits per byte compressors need for a held-out text when they have seen the training text.

  scripts/compressors.py TRAIN.txt HELDOUT.txt [--model NAME BITS]... [--json] [--recompute] [--save]

A compressor's figure is the length of compressed(train + heldout) less that of compressed(train). Each line is a document; its newline
is coded but not counted among the bytes, as a model predicts the end of a document and `mobilellm eval` does not count it. So the
figures stand beside a model's bits per byte.

It takes minutes, so scripts/compressors.json keeps the figures of texts that were measured, by their sha256: they are shown when the
texts are the same, and measured otherwise, or with --recompute. --save puts what was measured into that file. A compressor that this
machine lacks (the program zstd, the Python package pyppmd) is left out.
"""

import argparse
import bz2
import hashlib
import json
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

FIGURES = Path(__file__).with_suffix(".json")
MEGABYTE = 1 << 20


def bzip2(data):
    return len(bz2.compress(data, 9))


def zstd(data):
    command = ["zstd", "-q", "-19", "--long=27", "-T1", "-c"]
    return len(subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout)


def xz(data):
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))  # a dictionary of 64 MiB


def ppmd(data):
    import pyppmd

    encoder = pyppmd.Ppmd7Encoder(8, 1024 * MEGABYTE)
    return len(encoder.encode(data)) + len(encoder.flush())


def have_ppmd():
    try:
        import pyppmd  # noqa: F401
    except ImportError:
        return False
    return True


COMPRESSORS = {  # name: function, is it here?, bytes of text that it can look back on
    "bzip2 -9": (bzip2, lambda: True, None),
    "zstd -19 --long=27": (zstd, lambda: shutil.which("zstd") is not None, 128 * MEGABYTE),
    "xz -9e": (xz, lambda: True, 64 * MEGABYTE),
    "PPMd7 order 8": (ppmd, have_ppmd, None),
}


def counted_bytes(heldout):
    return len(heldout) - heldout.count(b"\n")


def measure(train, heldout):
    figures = {}
    for name, (compressed, is_here, reach) in COMPRESSORS.items():
        if not is_here():
            print(f"compressors.py: {name} is not installed", file=sys.stderr)
            continue
        if reach is not None and len(train) + len(heldout) > reach:
            print(f"compressors.py: {name} looks back {reach:,} bytes, less than the texts have", file=sys.stderr)
        figures[name] = 8 * (compressed(train + heldout) - compressed(train)) / counted_bytes(heldout)
    return figures


def print_table(figures, models):
    rows = [(bits, name, "") for name, bits in figures.items()] + [(bits, name, "  <- a model") for name, bits in models]
    for bits, name, mark in sorted(rows, reverse=True):
        print(f"  {name:<24}{bits:8.3f} bits/byte{mark}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", metavar="TRAIN.txt", type=Path)
    parser.add_argument("heldout", metavar="HELDOUT.txt", type=Path)
    parser.add_argument("--model", nargs=2, action="append", default=[], metavar=("NAME", "BITS"), help="a model's bits per byte, to show beside")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--recompute", action="store_true", help="measure, also what was measured before")
    parser.add_argument("--save", action="store_true", help=f"put what was measured into {FIGURES.name}")
    o = parser.parse_args()
    try:
        models = [(name, float(bits)) for name, bits in o.model]
    except ValueError as problem:
        parser.error(f"--model: {problem}")
    try:
        train, heldout = o.train.read_bytes(), o.heldout.read_bytes()
    except OSError as problem:
        print(f"compressors.py: {problem.filename}: {problem.strerror}", file=sys.stderr)
        return 3
    if counted_bytes(heldout) == 0:
        print(f"compressors.py: {o.heldout}: there is no text", file=sys.stderr)
        return 3

    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    key = " ".join(hashlib.sha256(text).hexdigest() for text in (train, heldout))
    kept = key in known and not o.recompute
    if not kept:
        known[key] = measure(train, heldout)
        if o.save:
            FIGURES.write_text(json.dumps(known, indent=1) + "\n")

    if o.json:
        print(json.dumps({"kept": kept, "bits_per_byte": {**known[key], **dict(models)}}, indent=1))
        return 0
    print_table(known[key], models)
    if kept:
        print(f"  compressors: kept in {FIGURES.name} for exactly these texts; --recompute measures them again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
