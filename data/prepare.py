#!/usr/bin/env python3
"""prepare.py: text, tokenizers and token files. Needs Python 3.9 and Hugging Face's `tokenizers`; `gcide` needs Python alone.

  prepare.py gcide --out DIR                                 the dictionary GCIDE as text, shuffled and split
  prepare.py tokenizer --vocab-size N --out FILE INPUT ...   train a byte-level BPE
  prepare.py text --tokenizer FILE --out PREFIX INPUT ...    text to token files
  prepare.py encode --tokenizer FILE TEXT                    text to ids
  prepare.py decode --tokenizer FILE [IDS]                   ids to text

The same input gives the same output, byte for byte, whatever the number of threads. Exit status: 0 done, 2 command line, 3 a file is
missing, damaged or does not fit, 4 it cannot be written.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

import gcide
from megatron import TokenWriter, whole_file

BATCH_CHARACTERS = 4 << 20  # of text that are encoded at a time, by all cores
END_OF_DOCUMENT = "<|endoftext|>"


class InputError(Exception):
    """Something is wrong with a file: which, what was found, what was expected."""


# ---- documents out of files


def jsonl_documents(path, file, key):
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[key]
            text.encode()  # lone surrogates have no UTF-8
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            kind = type(problem).__name__
            raise InputError(f'{path}:{number}: expected an object with a string "{key}": {kind}: {problem}') from None
        yield text


def text_documents(file, split):
    if split == "whole":
        yield file.read()
        return
    paragraph = []
    for line in file:
        line = line.removesuffix("\n")
        if split == "lines":
            if line:
                yield line
        elif line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def documents(paths, split, key):
    """The documents of files, as `mobilellm data pack` finds them: JSON Lines if the name ends in .jsonl, else text."""
    for path in paths:
        with open(path, encoding="utf-8", newline="\n") as file:
            try:
                yield from jsonl_documents(path, file, key) if path.endswith(".jsonl") else text_documents(file, split)
            except UnicodeDecodeError as problem:
                raise InputError(f"{path}: not UTF-8: {problem}") from None


def batches(texts):
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# ---- tokenizers


def tokenizers_library():
    try:
        import tokenizers
    except ImportError:
        raise InputError("the Python package `tokenizers` is missing: pip install tokenizers") from None
    return tokenizers


def read_tokenizer(path):
    library = tokenizers_library()
    try:
        data = Path(path).read_bytes()
        tokenizer = library.Tokenizer.from_buffer(data)
    except OSError:
        raise
    except Exception as problem:  # the library raises nothing narrower
        raise InputError(f"{path}: not a tokenizer.json: {problem}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a text is text
    return tokenizer, hashlib.sha256(data).hexdigest()


def vocabulary_of(tokenizer):
    """Ids lie below this: the largest one plus 1, for vocabularies may have holes."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


# ---- commands


def command_gcide(o):
    texts = gcide.shuffled(gcide.entries(o.dictionary, o.index), o.seed)
    n_heldout = round(len(texts) * o.heldout)
    if not 0 < n_heldout < len(texts):
        raise InputError(f"--heldout {o.heldout} of {len(texts):,} entries leaves a part empty")
    os.makedirs(o.out, exist_ok=True)
    for name, part in (("train", texts[:-n_heldout]), ("heldout", texts[-n_heldout:])):
        with whole_file(f"{o.out}/{name}.txt") as file:
            file.writelines(text.encode() + b"\n" for text in part)
        with whole_file(f"{o.out}/{name}.jsonl") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in part)
        print(f"{o.out}/{name}.jsonl: {len(part):,} entries, {sum(len(text.encode()) for text in part):,} bytes")


def command_tokenizer(o):
    library = tokenizers_library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    if o.vocab_size < len(alphabet) + 1:
        raise InputError(f"--vocab-size {o.vocab_size}: the bytes and {o.eod} alone take {len(alphabet) + 1}")
    trainer = library.trainers.BpeTrainer(
        vocab_size=o.vocab_size, special_tokens=[o.eod], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(batches(documents(o.inputs, o.split, o.key)), trainer)
    with whole_file(o.out) as file:
        file.write(tokenizer.to_str().encode())
    print(f"{o.out}: {tokenizer.get_vocab_size():,} tokens")


def command_text(o):
    tokenizer, tokenizer_hash = read_tokenizer(o.tokenizer)
    eod = tokenizer.token_to_id(o.eod)
    if eod is None:
        special = sorted(token.content for token in tokenizer.get_added_tokens_decoder().values())[:20]
        raise InputError(f"{o.tokenizer}: has no token {o.eod}; name what ends a document with --eod, one of {special}")
    vocab_size = vocabulary_of(tokenizer)
    n_bytes = 0
    with TokenWriter(o.out, vocab_size - 1) as writer:
        for batch in batches(documents(o.inputs, o.split, o.key)):
            for text, encoding in zip(batch, tokenizer.encode_batch_fast(batch, add_special_tokens=False)):
                writer.add(encoding.ids + [eod])
                n_bytes += len(text.encode())
        if not writer.lengths:
            raise InputError(f"{', '.join(o.inputs)}: there is no document")
        kind = json.loads(tokenizer.to_str())["model"]["type"].lower()
        card = {"bytes": n_bytes, "vocab_size": vocab_size, "tokenizer": kind, "tokenizer_hash": tokenizer_hash}
        card = writer.finish(card)
    print(
        f"{o.out}: {card['n_documents']:,} documents, {n_bytes:,} bytes, {card['tokens']:,} tokens of a vocabulary of {vocab_size:,}"
    )


def command_encode(o):
    tokenizer, _ = read_tokenizer(o.tokenizer)
    print(*tokenizer.encode(o.text, add_special_tokens=False).ids)


def command_decode(o):
    tokenizer, _ = read_tokenizer(o.tokenizer)
    text = o.ids if o.ids is not None else sys.stdin.read()
    vocab_size = vocabulary_of(tokenizer)
    try:
        ids = [int(word) for word in text.replace(",", " ").split()]
    except ValueError as problem:
        raise InputError(f"expected ids, whole numbers parted by spaces or commas: {problem}") from None
    for number in ids:
        if not 0 <= number < vocab_size:
            raise InputError(f"id {number} is outside of the vocabulary of {o.tokenizer} (ids 0 to {vocab_size - 1})")
    print(tokenizer.decode(ids, skip_special_tokens=False))


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="prepare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, run, purpose):
        added = commands.add_parser(name, help=purpose, description=purpose, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        added.set_defaults(run=run)
        return added

    def takes_documents(added):
        added.add_argument("inputs", nargs="+", metavar="INPUT", help="files: JSON Lines if the name ends in .jsonl, else UTF-8 text")
        added.add_argument("--key", default="text", help="the member of each JSON object that is the document")
        added.add_argument("--split", choices=("whole", "lines", "blank"), default="whole",
                           help="a document of a text is the file, a line, or what stands between blank lines")  # fmt: skip
        added.add_argument("--eod", default=END_OF_DOCUMENT, metavar="TOKEN", help="the special token after each document")

    def takes_tokenizer(added):
        added.add_argument("--tokenizer", required=True, metavar="FILE", help="a tokenizer.json of Hugging Face's tokenizers")

    added = command("gcide", command_gcide, "the dictionary GCIDE (Debian's dict-gcide) as text, shuffled, and split in two")
    added.add_argument("--out", required=True, metavar="DIR", help="writes DIR/{train,heldout}.{jsonl,txt}")
    added.add_argument("--dictionary", default="/usr/share/dictd/gcide.dict.dz", metavar="FILE", help="the entries")
    added.add_argument("--index", default="/usr/share/dictd/gcide.index", metavar="FILE", help="where each entry stands")
    added.add_argument("--seed", type=int, default=1, metavar="N", help="of the order of the entries")
    added.add_argument("--heldout", type=float, default=0.05, metavar="X", help="the fraction of the entries, the last, to hold out")

    added = command("tokenizer", command_tokenizer, "train a byte-level BPE")
    takes_documents(added)
    added.add_argument("--vocab-size", type=int, required=True, metavar="N", help="tokens, with the 256 bytes and the special one")
    added.add_argument("--out", required=True, metavar="FILE", help="the tokenizer.json to write")

    added = command("text", command_text, "text to PREFIX.bin, PREFIX.idx and PREFIX.json")
    takes_documents(added)
    takes_tokenizer(added)
    added.add_argument("--out", required=True, metavar="PREFIX", help="of the files to write")

    added = command("encode", command_encode, "print the ids of a text")
    takes_tokenizer(added)
    added.add_argument("text", metavar="TEXT")

    added = command("decode", command_decode, "print the text of ids")
    takes_tokenizer(added)
    added.add_argument("ids", nargs="?", metavar="IDS", help="parted by spaces or commas (default: standard input)")
    return parser.parse_args(arguments)


def main(arguments):
    o = parse(arguments)
    try:
        o.run(o)
    except (InputError, ValueError) as problem:
        print(f"prepare.py {o.command}: {problem}", file=sys.stderr)
        return 3
    except OSError as problem:
        path = problem.filename or getattr(o, "out", "standard output")
        print(f"prepare.py {o.command}: {path}: {problem.strerror}", file=sys.stderr)
        return 3 if isinstance(problem, FileNotFoundError) else 4
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
