"""Ids as bits, and counts of codes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import InputError
from zoo.quantize import usage


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_packed_ids_come_back(data):
    widths = data.draw(st.lists(st.integers(1, 64), min_size=1, max_size=4))
    rows = data.draw(st.integers(0, 9))
    columns = [data.draw(st.lists(st.integers(0, 2**w - 1), min_size=rows, max_size=rows)) for w in widths]
    ids = np.array(columns, np.uint64).T.reshape(rows, len(widths))
    packed = usage.pack(ids, widths)
    assert packed.dtype == np.uint8 and packed.size == -(-rows * sum(widths) // 8)
    back = usage.unpack(packed, widths, ids.shape)
    np.testing.assert_array_equal(back.astype(np.uint64), ids)
    assert back.dtype == (np.int32 if max(widths) < 32 else np.uint64)


def test_bits_follow_each_other_from_the_lowest():
    packed = usage.pack(np.array([[5, 1], [2, 0]], np.int32), (3, 1))
    np.testing.assert_array_equal(packed, [0b0010_1101])
    np.testing.assert_array_equal(usage.unpack(packed, (3, 1), (2, 2)), [[5, 1], [2, 0]])
    ids = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    np.testing.assert_array_equal(usage.unpack(usage.pack(ids, 5), 5, ids.shape), ids)
    assert usage.pack(ids, 5).size == 15


@pytest.mark.parametrize(
    ("ids", "widths", "message"),
    [
        ([[8]], 3, "id 8 of codebook 0 does not fit in 3 bits: 0 to 7 do"),
        ([[0, -1]], 3, "id -1 of codebook 1 does not fit"),
        ([[0]], 65, "give 1 to 64 bits"),
        ([[0, 1]], (3,), "for each of the 2 codebooks"),
    ],
)
def test_what_does_not_fit_is_refused(ids, widths, message):
    with pytest.raises(InputError, match=message):
        usage.pack(np.array(ids), widths)
    with pytest.raises(InputError, match="3 bytes packed, but ids of shape"):
        usage.unpack(np.zeros(3, np.uint8), 3, (2, 1))


def test_counts_say_what_is_used():
    counts = np.array([[4, 0, 4, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(usage.dead_codes(counts), [2, 0])
    np.testing.assert_array_equal(usage.dead_codes(np.array([[3, 0, 0, 0]]), (2,)), [1])
    assert usage.bits_per_token(counts) == pytest.approx(1 + 2)
    edges, codes = usage.histogram(counts, bins=4)
    assert codes.sum() == 8 and codes[0] == 2 and codes[1] == 4 and codes[-1] == 2
    assert edges[0] == 0 and edges[1] == 1 and edges[-1] == 4 and len(edges) == len(codes) + 1
