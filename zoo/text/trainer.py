"""Training of byte-level BPE vocabularies (Sennrich et al. 2016, arXiv:1508.07909), from nothing or from another.

    texts -> different pieces and how often -> the most frequent pair of neighbours becomes a token, again and again

Merges and their order are those of Hugging Face's trainer from an iterator: of pairs equally frequent the one of lower
ids comes first, and bytes are numbered by the characters that its files show for them. Pieces are counted, so that the
order of the texts has no part in it.
"""

from __future__ import annotations

import dataclasses
import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from zoo.errors import InputError
from zoo.text.bpe import ID, Merger
from zoo.text.vocabulary import BYTES, Vocabulary, as_bytes

Merge = tuple[bytes, bytes]


def shown_bytes() -> list[str]:
    """The character that GPT-2's files have for each byte: itself if it can be seen, else one from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(BYTES) if byte not in seen]
    found = {byte: chr(byte) for byte in seen} | {byte: chr(BYTES + i) for i, byte in enumerate(unseen)}
    return [found[byte] for byte in range(BYTES)]


def train(
    texts: Iterable[str | bytes],
    size: int,
    patterns: Sequence[str],
    *,
    specials: Sequence[str] = (),
    longest: int | None = None,
    least: int = 1,
) -> Vocabulary:
    """Trains a vocabulary.

    Args:
        texts: documents.
        size: of the vocabulary: 256 bytes, the tokens that are learned, and the special tokens, which come last.
        patterns: that cut a text into pieces; no token crosses pieces.
        specials: names of special tokens.
        longest: bytes of a token, at most.
        least: how often a pair must occur to become a token.

    Returns:
        The vocabulary; it is smaller than `size` where the texts have no more pairs.

    Raises:
        InputError: no text, something that is no text, or a size below 256 and the special tokens.
    """
    if size < BYTES + len(specials):
        raise InputError(f"size is {size}; accepted: at least {BYTES + len(specials)}, for 256 bytes and the specials")
    start = Vocabulary({bytes([byte]): byte for byte in range(BYTES)}, (), tuple(patterns))
    found = extend(start, texts, size - len(specials), longest=longest, least=least)
    return dataclasses.replace(found, specials={name: found.size + i for i, name in enumerate(specials)})


def extend(
    vocabulary: Vocabulary,
    texts: Iterable[str | bytes],
    size: int,
    *,
    patterns: Sequence[str] | None = None,
    veto: Callable[[bytes], bool] | None = None,
    longest: int | None = None,
    least: int = 1,
) -> Vocabulary:
    """Goes on with the training of a vocabulary: old ids and merges stay as they are, new ones come after them.

    Args:
        vocabulary: where to start.
        texts: documents.
        size: of the vocabulary in the end.
        patterns: that cut the texts, from now on also when encoding; None: those of the vocabulary.
        veto: of a token's bytes; where it is true the pair never merges.
        longest, least: as in `train`.

    Raises:
        InputError: as `train`.
    """
    cut = vocabulary if patterns is None else dataclasses.replace(vocabulary, patterns=tuple(patterns))
    tokens = [b""] * vocabulary.size  # no token where it is empty
    for token, number in vocabulary.ids.items():
        tokens[number] = token

    def allowed(token: bytes) -> bool:
        return not (veto and veto(token)) and (longest is None or len(token) <= longest)

    merges = Flat(count(cut, texts), Merger(cut), _order(vocabulary)).merges(tokens, size, allowed, least)
    ids = dict(vocabulary.ids) | {token: number for number, token in enumerate(tokens) if number >= vocabulary.size}
    return dataclasses.replace(cut, ids=ids, merges=None if cut.merges is None else [*cut.merges, *merges])


def count(vocabulary: Vocabulary, texts: Iterable[str | bytes]) -> Counter[bytes]:
    """How often the texts have each piece.

    Raises:
        InputError: a text that is none, or nothing to count.
    """
    found: Counter[str | bytes] = Counter()
    for number, text in enumerate(texts):
        if not isinstance(text, str | bytes):
            raise InputError(f"text {number} is {type(text).__name__}; accepted: str or bytes")
        found.update(vocabulary.cut(text))
    if not found:
        raise InputError("there is nothing to train on: no text, or only empty ones; give at least one")
    return Counter({as_bytes(piece): n for piece, n in found.items()})


def _order(vocabulary: Vocabulary) -> Callable[[int], int]:
    """Ids as ties compare them: single bytes by the character that is shown for them, others by their id."""
    rank = {char: i for i, char in enumerate(sorted(shown_bytes()))}
    order = {number: rank[char] for number, char in zip(vocabulary.byte_ids, shown_bytes(), strict=True)}
    return lambda number: order.get(number, number)


class Flat:
    """All different pieces one after the other, as linked lists of ids, and where each pair of neighbours is.

    Args:
        pieces: and how often each occurs.
        merge: that gives a piece's ids before training.
        order: of ids, for ties.
    """

    def __init__(self, pieces: Counter[bytes], merge: Merger, order: Callable[[int], int]):
        encoded = [(merge(piece), n) for piece, n in pieces.items()]
        lengths = np.fromiter((len(ids) for ids, _ in encoded), np.int64, len(encoded))
        ids = np.fromiter((number for ids, _ in encoded for number in ids), np.int64, int(lengths.sum()))
        weights = np.repeat(np.fromiter((n for _, n in encoded), np.int64, len(encoded)), lengths)
        last = np.zeros(len(ids), bool)
        last[np.cumsum(lengths) - 1] = True
        place = np.arange(len(ids))
        self.ids = array("i", ids.astype(np.int32).tobytes())
        self.weights = array("q", weights.tobytes())
        self.after = array("i", np.where(last, -1, place + 1).astype(np.int32).tobytes())
        self.before = array("i", np.where(np.roll(last, 1), -1, place - 1).astype(np.int32).tobytes())
        self._order = order
        here = np.flatnonzero(~last)
        pairs = ids[here] << 32 | ids[here + 1]
        by = np.argsort(pairs, kind="stable")
        found, starts = np.unique(pairs[by], return_index=True)
        self.where = {  # pair: places of its left token
            pair: array("i", places.astype(np.int32).tobytes())
            for pair, places in zip(found.tolist(), np.split(here[by], starts[1:]), strict=True)
        }
        totals = np.add.reduceat(weights[here[by]], starts) if len(starts) else []
        self.counts = dict(zip(found.tolist(), np.asarray(totals).tolist(), strict=True))

    def merges(self, tokens: list[bytes], size: int, allowed: Callable[[bytes], bool], least: int) -> list[Merge]:
        """Merges until there are `size` tokens, or no pair is left that occurs `least` times.

        Args:
            tokens: bytes by id; new ones are appended.
            size: of the vocabulary.
            allowed: of a token's bytes.
            least: see above.
        """
        known = {token: number for number, token in enumerate(tokens) if token}
        heap = [self._entry(pair, n) for pair, n in self.counts.items()]
        heapq.heapify(heap)
        found: list[Merge] = []
        while heap and len(tokens) < size:
            negative, _, pair = heapq.heappop(heap)
            now = self.counts.get(pair, 0)
            if now != -negative:  # it has become rarer since
                if now > 0:
                    heapq.heappush(heap, self._entry(pair, now))
                continue
            if now < least:
                break
            left, right = tokens[pair >> 32], tokens[pair & ID]
            if not allowed(left + right):
                continue
            new = known.setdefault(left + right, len(tokens))
            if new == len(tokens):
                tokens.append(left + right)
            found.append((left, right))
            for fresh in self._merge(pair, new):
                heapq.heappush(heap, self._entry(fresh, self.counts[fresh]))
        return found

    def _entry(self, pair: int, n: int) -> tuple[int, int, int]:
        return -n, self._order(pair >> 32) << 32 | self._order(pair & ID), pair

    def _merge(self, pair: int, new: int) -> list[int]:
        """Merges every occurrence of a pair, the leftmost first; the pairs that come up."""
        ids, weights, after, before, counts, where = (
            self.ids, self.weights, self.after, self.before, self.counts, self.where,
        )  # fmt: skip
        left, right = pair >> 32, pair & ID
        change: dict[int, int] = {}
        for i in sorted(where.pop(pair)):
            j = after[i]
            if ids[i] != left or j < 0 or ids[j] != right:
                continue
            n, h, k = weights[i], before[i], after[j]
            if h >= 0:
                old, fresh = ids[h] << 32 | left, ids[h] << 32 | new
                change[old] = change.get(old, 0) - n
                change[fresh] = change.get(fresh, 0) + n
                where.setdefault(fresh, array("i")).append(h)
            if k >= 0:
                old, fresh = right << 32 | ids[k], new << 32 | ids[k]
                change[old] = change.get(old, 0) - n
                change[fresh] = change.get(fresh, 0) + n
                where.setdefault(fresh, array("i")).append(i)
                before[k] = i
            ids[i], ids[j], after[i] = new, -1, k
        del counts[pair]
        change.pop(pair, None)
        for key, n in change.items():
            counts[key] = counts.get(key, 0) + n
        return [key for key, n in change.items() if n > 0 and counts[key] > 0]
