"""Other ways from a text to ids of the same vocabulary; whatever the ids, their bytes are the text.

Dropout        BPE whose merges fail by chance, for training (Provilkov et al. 2020, arXiv:1910.13267)
stochastok     tokens split by chance after encoding (Sims et al. 2025, arXiv:2506.01687)
Greedy         the longest token from the left, without merges
Fewest         the fewest tokens of all, without merges
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from zoo.errors import InputError
from zoo.text.bpe import ID, NEVER, Pairs
from zoo.text.vocabulary import Vocabulary


class Dropout:
    """Ids of a piece where each merge fails with a probability, at each step anew: for `BPETokenizer(segment=...)`.

    The same seed and the same texts in the same order give the same ids. No merge fails with 0, which is BPE; all fail
    with 1, which gives bytes.

    Args:
        vocabulary: whose merges.
        probability: of failing, from 0 to 1.
        seed: of all draws.

    Raises:
        InputError: not a probability.
    """

    remembered = False

    def __init__(self, vocabulary: Vocabulary, probability: float, seed: int):
        _check(probability)
        self._probability, self._random = probability, random.Random(seed)
        self._pairs = Pairs(vocabulary)
        self._bytes = vocabulary.byte_ids

    def __call__(self, piece: bytes) -> Sequence[int]:
        """The ids of a piece; in quadratic time."""
        ids, pairs = [self._bytes[byte] for byte in piece], self._pairs
        while True:
            values = [pairs[left << 32 | right] for left, right in zip(ids, ids[1:], strict=False)]
            draw, p = self._random.random, self._probability
            kept = [value if value < NEVER and draw() >= p else NEVER for value in values]
            if not kept or (best := min(kept)) == NEVER:
                return ids
            i = kept.index(best)
            ids[i : i + 2] = [best & ID]


class Greedy:
    """Ids of a piece by the longest token that fits, from left to right: for `BPETokenizer(segment=...)`."""

    remembered = True

    def __init__(self, vocabulary: Vocabulary):
        self._prefixes = prefixes(vocabulary)

    def __call__(self, piece: bytes) -> Sequence[int]:
        found, start = [], 0
        while start < len(piece):
            end, token = matches(self._prefixes, piece, start)[-1]
            found.append(token)
            start = end
        return found


class Fewest:
    """Ids of a piece in the fewest tokens, of equally many those whose first token is longest, then the second...

    For `BPETokenizer(segment=...)`. By dynamic programming from the right: need[i] = 1 + min need[j], tokens i to j.
    """

    remembered = True

    def __init__(self, vocabulary: Vocabulary):
        self._prefixes = prefixes(vocabulary)

    def __call__(self, piece: bytes) -> Sequence[int]:
        n = len(piece)
        need, step, token = [0] * (n + 1), [0] * n, [0] * n
        for i in range(n - 1, -1, -1):
            need[i] = n + 1
            for end, number in matches(self._prefixes, piece, i):
                if need[end] + 1 <= need[i]:
                    need[i], step[i], token[i] = need[end] + 1, end, number
        found, i = [], 0
        while i < n:
            found.append(token[i])
            i = step[i]
        return found


def stochastok(vocabulary: Vocabulary, ids: Sequence[int] | np.ndarray, share: float, seed: int) -> np.ndarray:
    """Splits tokens by chance: floor(share * n) times a position is drawn, and its token, where it is the concatenation
    of two others, becomes one of those pairs.

    Args:
        vocabulary: of the ids.
        ids: [n], of ordinary and special tokens; the latter stay.
        share: from 0 to 1.
        seed: of numpy's and Python's generator, which draw positions and pairs as the authors' code does.

    Returns:
        int32 [n + splits].

    Raises:
        InputError: not a share.
    """
    _check(share)
    positions, pairs = np.random.RandomState(seed), random.Random(seed)
    found, known = np.asarray(ids).tolist(), vocabulary.ids
    special = set(vocabulary.specials.values())
    for _ in range(int(len(found) * share)):
        i = positions.randint(len(found))
        token = b"" if found[i] in special else vocabulary.tokens[found[i]] or b""
        splits = [(token[:j], token[j:]) for j in range(1, len(token)) if token[:j] in known and token[j:] in known]
        if splits:
            left, right = pairs.choice(splits)
            found[i : i + 1] = [known[left], known[right]]
    return np.array(found, np.int32)


def prefixes(vocabulary: Vocabulary) -> dict[bytes, int]:
    """Every beginning of a token -> the token's id, or -1 if it is none itself."""
    found = {token[:n]: -1 for token in vocabulary.ids for n in range(1, len(token))}
    return found | dict(vocabulary.ids)


def matches(known: dict[bytes, int], piece: bytes, start: int) -> list[tuple[int, int]]:
    """(end, id) of all tokens that fit at `start`, the shortest first."""
    found, end = [], start + 1
    while end <= len(piece) and (number := known.get(piece[start:end])) is not None:
        if number >= 0:
            found.append((end, number))
        end += 1
    return found


def _check(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise InputError(f"the probability is {probability}; accepted: 0 to 1")
