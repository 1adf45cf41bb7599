"""data/prepare.py: text, tokenizers and token files, checked against the library's own encoding and the C program's reader."""

import gzip
import json
import os
import re
import string
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BUILD
from tokenizers import Tokenizer, models, pre_tokenizers

ROOT = Path(__file__).resolve().parent.parent
BINARY = BUILD / "mobilellm"
EOD = "<|endoftext|>"


def prepare(*args, status=0, stdin="", env=None):
    """Runs prepare.py; returns what it printed, which is its one message when it fails."""
    done = subprocess.run([sys.executable, ROOT / "data" / "prepare.py", *map(str, args)], capture_output=True, text=True, input=stdin,
                          env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})})
    assert done.returncode == status, f"exit {done.returncode}, expected {status}\n{done.stdout}\n{done.stderr}"
    assert status == 0 or "Traceback" not in done.stderr
    return done.stderr if status else done.stdout


def refused(*args, says, status=3, **kwargs):
    message = prepare(*args, status=status, **kwargs)
    for fact in says:
        assert str(fact) in message, f"{fact!r} is not in: {message}"


def info(*prefixes):
    done = subprocess.run([BINARY, "data", "info", *map(str, prefixes), "--verify", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def read_megatron(prefix):
    """The sequences of PREFIX.bin and its document index, by the description of the format alone."""
    idx, data = Path(f"{prefix}.idx").read_bytes(), Path(f"{prefix}.bin").read_bytes()
    magic, version, code, n, d = struct.unpack_from("<9sQBQQ", idx)
    assert (magic, version) == (b"MMIDIDX\0\0", 1)
    assert len(idx) == 34 + 12 * n + 8 * d
    lengths = struct.unpack_from(f"<{n}i", idx, 34)
    offsets = struct.unpack_from(f"<{n}q", idx, 34 + 4 * n)
    documents = struct.unpack_from(f"<{d}q", idx, 34 + 12 * n)
    letter = {4: "i", 8: "H"}[code]
    return [list(struct.unpack_from(f"<{length}{letter}", data, at)) for length, at in zip(lengths, offsets)], list(documents)


TEXTS = ["The quick brown fox jumps over the lazy dog.", "", "naïve café — 中文 😀\n\ttabs and\r\nlines", "x" * 3000 + " y" * 500,
         f"a literal {EOD} in the text", "the the the then there these", "null \0 byte"] * 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory with texts.jsonl, a tokenizer trained on it, and the token files made of it."""
    where = tmp_path_factory.mktemp("made")
    (where / "texts.jsonl").write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    prepare("tokenizer", "--vocab-size", 300, "--out", where / "tokenizer.json", where / "texts.jsonl")
    prepare("text", "--tokenizer", where / "tokenizer.json", "--out", where / "tokens", where / "texts.jsonl")
    return where


# ---- token files


def test_tokens_are_the_library_s_encoding(made):
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    sequences, documents = read_megatron(made / "tokens")
    assert documents == list(range(len(TEXTS) + 1))
    for text, ids in zip(TEXTS, sequences):
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids + [tokenizer.token_to_id(EOD)]


def test_tokens_decode_to_the_text(made):
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    eod = tokenizer.token_to_id(EOD)
    for text, ids in zip(TEXTS, read_megatron(made / "tokens")[0]):
        assert ids[-1] == eod and eod not in ids[:-1], "the name of the special token within a text is text"
        assert tokenizer.decode(ids[:-1], skip_special_tokens=False) == text


def test_the_program_reads_what_was_written(made):
    (told,) = info(made / "tokens")
    sequences, _ = read_megatron(made / "tokens")
    lengths = sorted(map(len, sequences))
    assert told["type"] == "uint16"
    assert told["documents"] == told["sequences"] == len(TEXTS)
    assert told["tokens"] == sum(lengths)
    assert told["lengths"] == {"shortest": lengths[0], "median": lengths[len(lengths) // 2], "longest": lengths[-1]}
    assert told["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert told["largest_id"] == max(map(max, sequences))
    assert told["vocab_size"] == 300 and told["tokenizer"] == "bpe"
    sha256 = subprocess.run(["sha256sum", made / "tokenizer.json"], capture_output=True, text=True, check=True).stdout.split()[0]
    assert told["tokenizer_hash"] == sha256


def test_a_large_vocabulary_takes_int32(tmp_path):
    words = {EOD: 0, **{f"w{i}": i for i in range(1, 70000)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([EOD])
    tokenizer.save(str(tmp_path / "words.json"))
    (tmp_path / "a.txt").write_text("w69999 w65536 w7")
    prepare("text", "--tokenizer", tmp_path / "words.json", "--out", tmp_path / "a", tmp_path / "a.txt")
    assert read_megatron(tmp_path / "a")[0] == [[69999, 65536, 7, 0]]
    (told,) = info(tmp_path / "a")
    assert (told["type"], told["largest_id"], told["vocab_size"], told["tokenizer"]) == ("int32", 69999, 70000, "wordlevel")


@pytest.mark.parametrize("split", ["whole", "lines", "blank"])
def test_documents_are_those_of_data_pack(tmp_path, split):
    """prepare.py and the C program find the same documents in the same files."""
    (tmp_path / "a.txt").write_bytes("one\n\n two \r\n \t\nthree\nfour\n\n\nfünf".encode())
    (tmp_path / "b.jsonl").write_text('{"text": "x\\ny"}\n\n{"text": ""}\n')
    (tmp_path / "c.txt").write_bytes(b"\n\nend\n")
    files = [tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.txt"]
    subprocess.run([BINARY, "data", "pack", tmp_path / "packed", *files, "--split", split], check=True, capture_output=True)
    packed = [bytes(ids[:-1]).decode() for ids in read_megatron(tmp_path / "packed")[0]]
    prepare("tokenizer", "--vocab-size", 257, "--out", tmp_path / "bytes.json", *files)
    prepare("text", "--tokenizer", tmp_path / "bytes.json", "--out", tmp_path / "prepared", "--split", split, *files)
    tokenizer = Tokenizer.from_file(str(tmp_path / "bytes.json"))
    prepared = [tokenizer.decode(ids[:-1]) for ids in read_megatron(tmp_path / "prepared")[0]]
    assert prepared == packed
    assert len(packed) == {"whole": 4, "lines": 9, "blank": 7}[split]
    a, b = info(tmp_path / "packed", tmp_path / "prepared")
    assert a["bytes"] == b["bytes"] and a["tokens"] == b["tokens"]


def test_the_same_input_gives_the_same_files(made, tmp_path):
    for threads in ("1", "3"):
        env = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        prepare("tokenizer", "--vocab-size", 300, "--out", tmp_path / "tokenizer.json", made / "texts.jsonl", env=env)
        prepare("text", "--tokenizer", tmp_path / "tokenizer.json", "--out", tmp_path / "tokens", made / "texts.jsonl", env=env)
        for name in ("tokenizer.json", "tokens.bin", "tokens.idx", "tokens.json"):
            assert (tmp_path / name).read_bytes() == (made / name).read_bytes(), f"{name} with {threads} threads"


def test_encode_and_decode(made):
    tokenizer = ["--tokenizer", made / "tokenizer.json"]
    text = "The fox — 中文"
    ids = prepare("encode", *tokenizer, text)
    assert [int(word) for word in ids.split()] == Tokenizer.from_file(str(made / "tokenizer.json")).encode(text).ids
    assert prepare("decode", *tokenizer, stdin=ids) == text + "\n"
    assert prepare("decode", *tokenizer, ids.strip().replace(" ", ", ")) == text + "\n"
    refused("decode", *tokenizer, "5 300", says=["300", "0 to 299"])
    refused("decode", *tokenizer, "5 x", says=["'x'"])


# ---- errors


def test_bad_input_is_named_and_leaves_nothing(made, tmp_path):
    good = '{"text": "good"}\n'
    cases = {
        "cut": ('{"text": "a', ["cut.jsonl:2", '"text"']),
        "key": ('{"content": "a"}', ["key.jsonl:2", "KeyError"]),
        "number": ('{"text": 5}', ["number.jsonl:2"]),
        "array": ('["text"]', ["array.jsonl:2"]),
        "surrogate": ('{"text": "\\ud83d"}', ["surrogate.jsonl:2", "surrogates"]),
        "empty": (None, ["empty.jsonl", "no document"]),
    }
    for name, (line, says) in cases.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n" if line is None else good + line + "\n")
        refused("text", "--tokenizer", made / "tokenizer.json", "--out", tmp_path / "out", path, says=says)
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    refused("text", "--tokenizer", made / "tokenizer.json", "--out", tmp_path / "out", tmp_path / "latin.txt", says=["latin.txt", "not UTF-8"])
    refused("text", "--tokenizer", made / "tokenizer.json", "--out", tmp_path / "out", tmp_path / "none.txt", says=["none.txt", "No such file"])
    assert not list(tmp_path.glob("out*"))


def test_bad_tokenizers_are_named(made, tmp_path):
    text = made / "texts.jsonl"
    refused("text", "--tokenizer", tmp_path / "none.json", "--out", tmp_path / "out", text, says=["none.json", "No such file"])
    (tmp_path / "bad.json").write_text("{}")
    refused("text", "--tokenizer", tmp_path / "bad.json", "--out", tmp_path / "out", text, says=["bad.json", "not a tokenizer.json"])
    refused("text", "--tokenizer", made / "tokenizer.json", "--eod", "</s>", "--out", tmp_path / "out", text, says=["</s>", EOD, "--eod"])
    refused("tokenizer", "--vocab-size", 256, "--out", tmp_path / "out", text, says=["256", "257"])
    assert not list(tmp_path.glob("out*"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("ending", ["bin", "idx", "json"])
def test_a_full_disk_leaves_what_was_there(made, tmp_path, ending):
    for name in ("tokens.bin", "tokens.idx", "tokens.json"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    (tmp_path / f"tokens.{ending}.tmp").symlink_to("/dev/full")
    refused("text", "--tokenizer", made / "tokenizer.json", "--out", tmp_path / "tokens", made / "texts.jsonl", says=["tokens", "No space left"],
            status=4)
    assert not list(tmp_path.glob("*.tmp"))
    assert info(tmp_path / "tokens") == [{**info(made / "tokens")[0], "prefix": str(tmp_path / "tokens")}]


def test_usage():
    prepare("--help")
    for command in ("gcide", "tokenizer", "text", "encode", "decode"):
        assert "usage: prepare.py " + command in prepare(command, "--help")
    refused("txt", says=["txt", "text"], status=2)
    refused("text", "--out", "x", "y", says=["--tokenizer"], status=2)


# ---- the dictionary


def dictd_number(value):
    digits = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    text = digits[value % 64]
    while value := value // 64:
        text = digits[value % 64] + text
    return text


@pytest.fixture
def dictionary(tmp_path):
    """A dictd pair in the style of GCIDE: 40 entries, one with every mark that is cleaned away, one under two headwords."""
    marked = (b'Haminura \\Ham`i*nu"ra\\ (h[a^]m`[i^]*n[=u]"r[.a]), n. [NL. + AS. ham.] (Zool.)\n   A large river fish ({Erythrinus\n'
              b"   macrodon}) of Guiana, the market\x92s best. [Obs.]\n   [1913 Webster]\n\n   Note: Eaten. --Shak.\n         [WordNet 1.5 +PJC]\n")
    entries = [("00-database-info", b"00-database-info\n   about\n"), ("Haminura", marked)]
    entries += [(f"word{i}", f"word{i} n.\n   the meaning of {i}.\n   [Webster 1913 Suppl.]\n".encode()) for i in range(39)]
    raw, index = b"", []
    for headword, entry in entries:
        index.append((headword, len(raw), len(entry)))
        raw += entry + b"\n"
    index.append(("Erythrinus macrodon", *index[1][1:]))
    (tmp_path / "d.dict.dz").write_bytes(gzip.compress(raw))
    (tmp_path / "d.index").write_text("".join(f"{word}\t{dictd_number(at)}\t{dictd_number(n)}\n" for word, at, n in sorted(index)))
    return ["--dictionary", tmp_path / "d.dict.dz", "--index", tmp_path / "d.index"]


def test_entries_are_cleaned_shuffled_and_split(dictionary, tmp_path):
    prepare("gcide", *dictionary, "--out", tmp_path / "a", "--heldout", 0.1)
    parts = {}
    for name in ("train", "heldout"):
        parts[name] = [json.loads(line)["text"] for line in (tmp_path / "a" / f"{name}.jsonl").read_text().splitlines()]
        assert (tmp_path / "a" / f"{name}.txt").read_text() == "".join(text + "\n" for text in parts[name])
    assert len(parts["train"]) == 36 and len(parts["heldout"]) == 4
    every = parts["train"] + parts["heldout"]
    assert sorted(every) == sorted([
        "Haminura, n. [NL. + AS. ham.] (Zool.) A large river fish (Erythrinus macrodon) of Guiana, the market’s best. [Obs.]"
        " Note: Eaten. --Shak.",
        *[f"word{i} n. the meaning of {i}." for i in range(39)],
    ])
    numbers = [int(re.search(r"word(\d+)", text).group(1)) for text in every if text.startswith("word")]
    assert sum(b == a + 1 for a, b in zip(numbers, numbers[1:])) < 8, "the order is not the file's"

    prepare("gcide", *dictionary, "--out", tmp_path / "b", "--heldout", 0.1)
    prepare("gcide", *dictionary, "--out", tmp_path / "c", "--heldout", 0.1, "--seed", 2)
    for name in ("train.jsonl", "heldout.jsonl", "train.txt", "heldout.txt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_bad_dictionaries_are_named(dictionary, tmp_path):
    refused("gcide", "--out", tmp_path / "out", "--dictionary", tmp_path / "none.dz", says=["none.dz", "No such file", "dict-gcide"])
    index = tmp_path / "d.index"
    good = index.read_text()
    for line, says in [("word\tA!\tB\n", "expected headword, offset and length"), ("word\tA\n", "expected headword"), ("far\t////\tB\n", "ends at byte")]:
        index.write_text(good + line)
        refused("gcide", *dictionary, "--out", tmp_path / "out", says=["d.index:43", says])
    index.write_text(good)
    refused("gcide", *dictionary, "--out", tmp_path / "out", "--heldout", 0.001, says=["0.001", "empty"])
    assert not (tmp_path / "out").exists()
    whole = (tmp_path / "d.dict.dz").read_bytes()
    for damaged in (b"not gzip", whole[:-20], whole[:100] + b"\xff" * 50 + whole[150:]):
        (tmp_path / "d.dict.dz").write_bytes(damaged)
        refused("gcide", *dictionary, "--out", tmp_path / "out", says=["d.dict.dz", "not a file of dictzip"])
