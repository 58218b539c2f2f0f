"""A smaller vocabulary from a larger one: the tokens that texts use least go, and all that stay can be reached."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable

import numpy as np

from zoo.errors import InputError
from zoo.text.bpe import Merger, unreachable
from zoo.text.trainer import count
from zoo.text.vocabulary import BYTES, Vocabulary


def prune(vocabulary: Vocabulary, texts: Iterable[str | bytes], size: int) -> tuple[Vocabulary, np.ndarray]:
    """Drops the tokens that texts use least, one after the other.

    A token can only go once no kept token is merged from it; what used it then uses its two parts. So every kept token
    is still what its own bytes encode to. Bytes and special tokens stay.

    Args:
        vocabulary: to prune.
        texts: what it is for.
        size: in the end, special tokens included; it is smaller if more tokens than that have to go, because their own
            bytes never become them.

    Returns:
        The vocabulary, whose ids have the old order without gaps and end with the special tokens, and int32 [old size]
        with the new id of each old one or -1: new_embedding[new_of_old[kept]] = old_embedding[kept], kept where it is
        not -1.

    Raises:
        InputError: a size that is not from 256 and the special tokens to the present one, or no texts.
    """
    low, high = BYTES + len(vocabulary.specials), len(vocabulary.ids) + len(vocabulary.specials)
    if not low <= size <= high:
        raise InputError(f"size is {size}; accepted: {low} (bytes and special tokens) to {high}, what there is")
    merge, used = Merger(vocabulary), np.zeros(vocabulary.size, np.int64)
    for piece, n in count(vocabulary, texts).items():
        np.add.at(used, np.asarray(merge(piece)), n)
    dropped = _least(vocabulary, merge, used.tolist(), high - size)
    kept = {token: number for token, number in vocabulary.ids.items() if number not in dropped}
    order = sorted(kept, key=kept.__getitem__)
    ids = {token: number for number, token in enumerate(order)}
    names = sorted(vocabulary.specials, key=vocabulary.specials.__getitem__)
    specials = {name: len(ids) + i for i, name in enumerate(names)}
    new_of_old = np.full(vocabulary.size, -1, np.int32)
    for token, number in [*ids.items(), *specials.items()]:
        new_of_old[kept[token] if isinstance(token, bytes) else vocabulary.specials[token]] = number
    merges = vocabulary.merges and [(a, b) for a, b in vocabulary.merges if {a, b, a + b} <= ids.keys()]
    return dataclasses.replace(vocabulary, ids=ids, merges=merges, specials=specials), new_of_old


def _least(vocabulary: Vocabulary, merge: Merger, used: list[int], number: int) -> set[int]:
    """The ids of the `number` tokens that go, and of all that their own bytes do not give."""
    parts = {i: merge.parts(token) for token, i in vocabulary.ids.items() if len(token) > 1}
    lost = set(unreachable(vocabulary))
    needed = dict.fromkeys(vocabulary.ids.values(), 0)  # by how many kept tokens
    for pair in parts.values():
        for part in pair:
            needed[part] += 1

    def entry(i: int) -> tuple[bool, int, int]:
        return i not in lost, used[i], -i  # those that are lost go first

    heap = [entry(i) for i in parts if not needed[i]]
    heapq.heapify(heap)
    gone: set[int] = set()
    while heap and (len(gone) < number or not heap[0][0]):
        i = -heapq.heappop(heap)[-1]
        gone.add(i)
        for part in parts[i]:
            used[part] += used[i]
            needed[part] -= 1
        for part in {part for part in parts[i] if part in parts and not needed[part]}:
            heapq.heappush(heap, entry(part))
    return gone
