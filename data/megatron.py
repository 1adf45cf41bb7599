"""megatron.py: writes Megatron-LM indexed datasets (PREFIX.bin, PREFIX.idx) and their card (PREFIX.json). docs/data.md has the format.

The same promise as data/token_writer.h: files are written under temporary names, forced to disk and renamed, the .idx last, so that
nothing that lies under its own name is half-written.
"""

import json
import os
import struct
import sys
import zlib
from array import array
from contextlib import contextmanager, suppress

UINT16, INT32 = 8, 4  # Megatron's codes
TYPE_CODES = {UINT16: "H", INT32: "i"}
TYPE_MAX = {UINT16: 2**16 - 1, INT32: 2**31 - 1}


def little_endian(numbers):
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def remove(path):
    with suppress(FileNotFoundError):
        os.remove(path)


def force_to_disk(file):
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def whole_file(path):
    """A binary file that appears under its name when the block has succeeded, and not at all when it has failed."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            force_to_disk(file)
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise


class TokenWriter:
    """A stream of documents, each one sequence, to PREFIX.bin; used as `with TokenWriter(...) as w`, then w.finish(card)."""

    def __init__(self, prefix, largest_id):
        self.prefix = prefix
        self.type = UINT16 if largest_id <= TYPE_MAX[UINT16] else INT32
        self.lengths = array("i")
        self.n_tokens = 0
        self.bin_crc = 0
        self.bin = open(f"{prefix}.bin.tmp", "wb")

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        with suppress(OSError):  # of a disk that is full, which is what failed before
            self.bin.close()
        for ending in ("bin", "idx", "json"):  # after finish() there are none
            remove(f"{self.prefix}.{ending}.tmp")

    def add(self, ids):
        data = little_endian(array(TYPE_CODES[self.type], ids))
        self.bin.write(data)
        self.bin_crc = zlib.crc32(data, self.bin_crc)
        self.lengths.append(len(ids))
        self.n_tokens += len(ids)

    def index(self):
        n, size = len(self.lengths), array(TYPE_CODES[self.type]).itemsize
        offsets, offset = array("q"), 0
        for length in self.lengths:
            offsets.append(offset)
            offset += length * size
        yield b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, self.type, n, n + 1)
        for numbers in (array("i", self.lengths), offsets, array("q", range(n + 1))):
            yield little_endian(numbers)

    def finish(self, card):
        """Puts the files in place. An index of earlier data goes first: beside the new .bin it would be wrong."""
        force_to_disk(self.bin)
        index = b"".join(self.index())
        sums = {"bin_crc32": self.bin_crc, "idx_crc32": zlib.crc32(index)}
        card = {"tokens": self.n_tokens, "n_documents": len(self.lengths), **sums, **card}
        for ending, data in (("idx", index), ("json", json.dumps(card, indent=1).encode() + b"\n")):
            with open(f"{self.prefix}.{ending}.tmp", "wb") as file:
                file.write(data)
                force_to_disk(file)
        remove(f"{self.prefix}.idx")
        for ending in ("bin", "json", "idx"):
            os.replace(f"{self.prefix}.{ending}.tmp", f"{self.prefix}.{ending}")
        directory = os.open(os.path.dirname(self.prefix) or ".", os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return card
