"""Byte-pair encoding of one piece (Sennrich et al. 2016, arXiv:1508.07909), exact at any length.

    bytes -> ids of bytes -> while neighbours can merge: the pair of the lowest rank merges, the leftmost first

Three ways to the same ids: a short piece is scanned for every merge; one of few runs of equal bytes ("aaaa...", blanks)
merges run by run, a hundred million bytes at a time; any other has its pairs in a heap, n log n. A pair's value is one
number, rank << 32 | id of the merged token, so that the least value is the next merge.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from zoo.text.vocabulary import Vocabulary

SHORT = 128  # bytes of a piece that is scanned
RUNS = 64  # runs of equal bytes that are merged run by run
KNOWN = 1 << 20  # pairs that are remembered
NEVER = 1 << 63  # the value of a pair that does not merge
ID = (1 << 32) - 1


class Pairs(dict[int, int]):
    """left id << 32 | right id -> value, found when first asked for where the vocabulary has ranks and no merges."""

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        self._ranks = None if vocabulary.merges is not None else vocabulary.ids
        self._tokens = vocabulary.tokens
        ids = vocabulary.ids
        for rank, (left, right) in enumerate(vocabulary.merges or ()):
            self.setdefault(ids[left] << 32 | ids[right], rank << 32 | ids[left + right])

    def __missing__(self, pair: int) -> int:
        if self._ranks is None:
            return NEVER
        number = self._ranks.get(self._tokens[pair >> 32] + self._tokens[pair & ID])  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
        value = NEVER if number is None else number << 32 | number
        if len(self) >= KNOWN:
            self.clear()
        self[pair] = value
        return value


class Merger:
    """The ids of pieces by BPE."""

    remembered = True

    def __init__(self, vocabulary: Vocabulary):
        self._ids = vocabulary.ids
        self._bytes = vocabulary.byte_ids
        self._whole = vocabulary.whole_first or vocabulary.merges is None
        self._pairs = Pairs(vocabulary)

    def __call__(self, piece: bytes) -> Sequence[int]:
        """The ids of a piece."""
        if self._whole and (whole := self._ids.get(piece)) is not None:
            return (whole,)
        if len(piece) <= SHORT:
            return self._scan([self._bytes[byte] for byte in piece])
        starts = np.flatnonzero(np.diff(np.frombuffer(piece, np.uint8), prepend=np.uint8(~piece[0] & 255)))
        if len(starts) <= RUNS:
            counts = np.diff(starts, append=len(piece)).tolist()
            merged = self._runs([(self._bytes[piece[i]], n) for i, n in zip(starts.tolist(), counts, strict=True)])
            if merged is not None:
                return merged
        return self._heap([self._bytes[byte] for byte in piece])

    def parts(self, token: bytes) -> list[int]:
        """The ids that a token's bytes have before the last merge: two, or more if they never become the token."""
        return self._scan([self._bytes[byte] for byte in token], stop=2)

    def reaches(self, token: bytes) -> bool:
        """Whether a piece of a token's bytes becomes the token."""
        return list(self(token)) == [self._ids[token]]

    def _scan(self, ids: list[int], stop: int = 1) -> list[int]:
        pairs = self._pairs
        values = [pairs[left << 32 | right] for left, right in zip(ids, ids[1:], strict=False)]
        while len(ids) > stop and (best := min(values)) < NEVER:
            i = values.index(best)
            ids[i : i + 2] = [best & ID]
            del values[i]
            if i:
                values[i - 1] = pairs[ids[i - 1] << 32 | ids[i]]
            if i < len(values):
                values[i] = pairs[ids[i] << 32 | ids[i + 1]]
        return ids

    def _heap(self, ids: list[int]) -> list[int]:
        """A linked list of ids, and a heap of rank << 32 | position, whose entries may be out of date when popped."""
        pairs, n = self._pairs, len(ids)
        after, before = list(range(1, n + 1)), list(range(-1, n - 1))
        values = (pairs[ids[i] << 32 | ids[i + 1]] for i in range(n - 1))
        heap = [value >> 32 << 32 | i for i, value in enumerate(values) if value < NEVER]
        heapq.heapify(heap)
        while heap:
            least = heapq.heappop(heap)
            i = least & ID
            j = after[i]
            if ids[i] < 0 or j >= n:
                continue
            value = pairs[ids[i] << 32 | ids[j]]
            if value >> 32 != least >> 32:
                continue
            ids[i], ids[j] = value & ID, -1
            after[i] = k = after[j]
            if k < n:
                before[k] = i
                if (value := pairs[ids[i] << 32 | ids[k]]) < NEVER:
                    heapq.heappush(heap, value >> 32 << 32 | i)
            if (h := before[i]) >= 0 and (value := pairs[ids[h] << 32 | ids[i]]) < NEVER:
                heapq.heappush(heap, value >> 32 << 32 | h)
        return [number for number in ids if number >= 0]

    def _runs(self, runs: list[tuple[int, int]]) -> Sequence[int] | None:
        """The same of (id, count) runs; None where a merge makes a pair of lower rank, which would then come first."""
        pairs = self._pairs
        while True:
            inside = [pairs[token << 32 | token] for token, count in runs if count > 1]
            across = [pairs[a << 32 | b] for (a, _), (b, _) in zip(runs, runs[1:], strict=False)]
            best = min([NEVER, *inside, *across])
            if best == NEVER:
                return np.repeat([token for token, _ in runs], [count for _, count in runs]).tolist()
            merged = self._merged(runs, best)
            new = best & ID
            near = {token for token, _ in runs} | {token for token, _ in merged}
            if any(min(pairs[new << 32 | token], pairs[token << 32 | new]) < best for token in near):
                return None
            runs = merged

    def _merged(self, runs: list[tuple[int, int]], best: int) -> list[tuple[int, int]]:
        """All pairs of one value merged, from left to right."""
        pairs, new = self._pairs, best & ID
        found: list[tuple[int, int]] = []

        def put(token: int, count: int) -> None:
            if count and found and found[-1][0] == token:
                found[-1] = (token, found[-1][1] + count)
            elif count:
                found.append((token, count))

        taken = 0  # of the next run, by a merge across the border
        for number, (token, count) in enumerate(runs):
            count, taken = count - taken, 0
            if pairs[token << 32 | token] == best:
                put(new, count // 2)
                count %= 2
            if count and number + 1 < len(runs) and pairs[token << 32 | runs[number + 1][0]] == best:
                put(token, count - 1)
                put(new, 1)
                taken = 1
            else:
                put(token, count)
        return found


def unreachable(vocabulary: Vocabulary) -> list[int]:
    """Ids of ordinary tokens that encoding their own bytes, as one piece, does not give; sorted."""
    merge = Merger(vocabulary)
    return sorted(number for token, number in vocabulary.ids.items() if not merge.reaches(token))
