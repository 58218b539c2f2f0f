"""tiktoken as the fast way to the ids of the plain tokenizer, for vocabularies by rank, where it gives the same ones.

Where it would not, text goes the plain way: with code points whose Unicode class is another in its tables than in those
of `regex`, and with long runs of blanks, at which it panics.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import numpy as np
import regex

from zoo.text.vocabulary import BYTES, Vocabulary

# pyright: reportMissingImports=false
# (tiktoken is an extra)

CLASSES = (r"\p{Lu}", r"\p{Ll}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\p{M}", r"\p{N}", r"\p{P}", r"\p{S}", r"\s", r"\d")
FOLDED = "".join(rf"(?i:{letter})|" for letter in "abcdefghijklmnopqrstuvwxyz")[:-1]
BLANKS = 50_000  # a text with twice as many in a row goes the plain way

Engine = Callable[[str], "np.ndarray | None"]


def engine(vocabulary: Vocabulary) -> Engine | None:
    """A function from a text to its ids [n] or, where the plain tokenizer has to do it, to None.

    None where there is no tiktoken, or the vocabulary has what it cannot have: a list of merges, several patterns, a
    normalizer.
    """
    if vocabulary.merges is not None or len(vocabulary.patterns) != 1 or vocabulary.normalizer:
        return None
    try:
        import tiktoken
    except ImportError:
        return None
    try:
        fast = tiktoken.Encoding(
            "zoo", pat_str=vocabulary.patterns[0], mergeable_ranks=dict(vocabulary.ids), special_tokens={}
        )
    except ValueError:  # its engine does not know the pattern
        return None
    unlike = drifted()

    def encode(text: str) -> np.ndarray | None:
        if not text.isascii() and unlike[np.frombuffer(text.encode("utf-32-le"), np.uint32)].any():
            return None
        if any(text[i : i + BLANKS].isspace() for i in range(0, len(text) - BLANKS, BLANKS)):
            return None
        ids = fast.encode_ordinary(text)
        return np.fromiter(ids, np.int32, len(ids))

    return encode


@functools.cache
def drifted() -> np.ndarray:
    """bool [0x110000]: code points of which tiktoken and `regex` think differently."""
    import tiktoken

    bytes_only = {bytes([byte]): byte for byte in range(BYTES)}
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]))
    found: set[str] = set()
    for pattern in (*CLASSES, FOLDED):
        theirs = tiktoken.Encoding(pattern, pat_str=pattern, mergeable_ranks=bytes_only, special_tokens={})
        found |= set(bytes(theirs.encode_ordinary(every)).decode()) ^ set(regex.findall(pattern, every))
    table = np.zeros(sys.maxunicode + 1, bool)
    table[[ord(char) for char in found]] = True
    return table
