"""gcide.py: the GNU Collaborative International Dictionary of English, as Debian packs it, to clean text.

The package dict-gcide installs a dictd pair: a text compressed with dictzip (gzip with an index that Python need not know) and
a table of `headword TAB offset TAB length` in dictd's base 64. Many headwords name the same entry, so an entry is a distinct
(offset, length). The text is ASCII but for three bytes of Windows-1252.
"""

import gzip
import hashlib
import re
import zlib

DICTD_DIGITS = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}

# [1913 Webster], [WordNet 1.5 +PJC]: whence an editor has the sentence. Etymologies and [Obs.] are text and stay.
SOURCE = r"(?:(?:Webster )?1913 (?:Webster|Suppl\.?)|WordNet 1\.\d|PJC|AS|RDH|RHUD|MI11|RP|JC|Century Dict\. 1906)"
SOURCE_TAG = re.compile(r" ?\[" + SOURCE + r"(?:[ ,+]+" + SOURCE + r")*\.?\](?!\S)")
# \Ham`i*nu"ra\ (h[a^]m`[i^]*n[=u]"r[.a]): syllables and sounds after the headword, in an ASCII notation of their own.
PRONUNCIATION = re.compile(r" ?\\[^\\]*\\(?:,? \([^()]*[\[\]\"`*][^()]*\))?")
CROSS_REFERENCE = re.compile(r"[{}]")


def dictd_number(text):
    value = 0
    for digit in text:
        value = value * 64 + DICTD_DIGITS[digit]
    return value


def clean(entry):
    """One entry on one line: no wrapping, sources, pronunciation or marks of cross-references."""
    text = " ".join(entry.split())
    text = SOURCE_TAG.sub("", text)
    text = PRONUNCIATION.sub("", text)
    return CROSS_REFERENCE.sub("", text).strip()


def entries(dictionary, index):
    """The cleaned entries of a dictd pair, each once, in the order of the file (which is alphabetical)."""
    try:
        with gzip.open(dictionary) as f:
            raw = f.read()
    except FileNotFoundError:
        raise ValueError(f"{dictionary}: No such file. Debian and Ubuntu have it in the package dict-gcide.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise ValueError(f"{dictionary}: not a file of dictzip: {problem}") from None
    spans = set()
    with open(index, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            try:
                headword, offset, length = line.rstrip("\n").split("\t")[:3]
                span = dictd_number(offset), dictd_number(length)
            except (ValueError, KeyError):
                raise ValueError(f"{index}:{number}: expected headword, offset and length, found {line!r}") from None
            if sum(span) > len(raw):
                raise ValueError(f"{index}:{number}: {headword!r} ends at byte {sum(span):,} of {len(raw):,} in {dictionary}")
            if not headword.startswith("00-"):  # 00-database-info and its like: about the dictionary, not of it
                spans.add(span)
    texts = (clean(raw[offset : offset + length].decode("cp1252")) for offset, length in sorted(spans))
    return list(dict.fromkeys(texts))


def shuffled(texts, seed):
    """An order that depends on nothing but the seed and the texts: not on Python's random numbers, nor on the order given."""
    return sorted(texts, key=lambda text: (hashlib.sha256(f"{seed}:{text}".encode()).digest(), text))
