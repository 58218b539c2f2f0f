"""SuperBPE: tokens that span words, learned after those that do not (Liu et al. 2025, arXiv:2503.13423).

    stage 1: BPE to `start` tokens, text cut at words
    stage 2: goes on to `size` tokens, text cut at digits and punctuation only

The merges of stage 1 stay as they are, and encoding is ordinary BPE with all merges and the patterns of stage 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from zoo.errors import InputError
from zoo.text.patterns import SUPERBPE
from zoo.text.trainer import extend, train
from zoo.text.vocabulary import BYTES, Vocabulary

WORDS = 4  # of a token, at most


def superbpe(
    texts: Iterable[str | bytes],
    size: int,
    patterns: Sequence[str],
    *,
    start: int | None = None,
    words: int = WORDS,
    specials: Sequence[str] = (),
) -> Vocabulary:
    """Trains a SuperBPE vocabulary.

    Args:
        texts: documents; they are read twice, so that an iterator does not do.
        size: of the vocabulary, special tokens included.
        patterns: of stage 1.
        start: tokens where stage 2 begins; None: 80% of `size`.
        words: that a token may have, separated by white space.
        specials: names of special tokens; they come last.

    Raises:
        InputError: an iterator, or as `zoo.text.train`.
    """
    if iter(texts) is texts:
        raise InputError(
            "texts is an iterator, and SuperBPE reads its texts twice; give a list, or an object with __iter__"
        )
    start = int(0.8 * size) if start is None else start
    if not BYTES <= start <= size - len(specials):
        raise InputError(f"start is {start}; accepted: 256 to {size - len(specials)}, the size without special tokens")

    def veto(token: bytes) -> bool:  # as the authors': no token goes on after a colon and a blank
        return b": " in token or len(token.split()) > words

    first = train(texts, start, patterns)
    both = extend(first, texts, size - len(specials), patterns=[SUPERBPE], veto=veto)
    return dataclasses.replace(both, specials={name: both.size + i for i, name in enumerate(specials)})
