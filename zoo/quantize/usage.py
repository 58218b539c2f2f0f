"""How codebooks are used, and ids as bits.

`usage`, `entropy_bits`, `perplexity` and `dead_codes` are plain jax functions of counts: they run inside jit, and on
numpy counts. `count_ids`, `histogram`, `bits_per_token`, `pack` and `unpack` run on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr
from jaxtyping import Array, Float, Shaped

from zoo.errors import InputError


def count_ids(ids: np.ndarray, vocab_sizes: Sequence[int]) -> np.ndarray:
    """How often each code occurs, counted on the host.

    Args:
        ids: integers [b, t, q]; -1 marks a position past an item's end and is not counted.
        vocab_sizes: the size of each of the q codebooks.

    Returns:
        int64 [q, max(vocab_sizes)]; a smaller codebook's row ends in zeros.

    Raises:
        InputError: an id is outside its codebook.
    """
    counts = np.zeros((len(vocab_sizes), max(vocab_sizes)), np.int64)
    for q, vocab in enumerate(vocab_sizes):
        seen = np.asarray(ids)[..., q].ravel()
        outside = seen[(seen < -1) | (seen >= vocab)]
        if outside.size:
            raise InputError(f"id {outside[0]} of codebook {q} is outside 0..{vocab - 1} (-1 for none)")
        counts[q] = np.bincount(seen[seen >= 0], minlength=counts.shape[1])
    return counts


def usage(
    counts: Shaped[Array | np.ndarray, "q vocab"], vocab_sizes: Sequence[int] | None = None
) -> Float[Array, " q"]:
    """Share of each codebook's codes that occur at least once.

    Args:
        counts: occurrences [q, vocab], integer or float.
        vocab_sizes: the size of each codebook where they differ; default: all have `vocab` codes.

    Returns:
        float32 [q] in [0, 1].
    """
    counts = jnp.asarray(counts)
    sizes = counts.shape[-1] if vocab_sizes is None else jnp.asarray(vocab_sizes, jnp.float32)
    return jnp.sum(counts > 0, axis=-1) / sizes


def entropy_bits(counts: Shaped[Array | np.ndarray, "q vocab"]) -> Float[Array, " q"]:
    """Shannon entropy of each codebook's ids, in bits; 0 if nothing was counted. counts [q, vocab] -> [q]."""
    return _entropy(counts) / jnp.log(2.0)


def perplexity(counts: Shaped[Array | np.ndarray, "q vocab"]) -> Float[Array, " q"]:
    """exp(entropy in nats): how many equally likely codes would be as even. counts [q, vocab] -> [q] >= 1."""
    return jnp.exp(_entropy(counts))


def dead_codes(
    counts: Shaped[Array | np.ndarray, "q vocab"], vocab_sizes: Sequence[int] | None = None
) -> Shaped[Array, " q"]:
    """How many of each codebook's codes never occur. counts [q, vocab] -> int32 [q]."""
    counts = jnp.asarray(counts)
    sizes = counts.shape[-1] if vocab_sizes is None else jnp.asarray(vocab_sizes)
    return sizes - jnp.sum(counts > 0, axis=-1)


def bits_per_token(counts: Shaped[Array | np.ndarray, "q vocab"]) -> float:
    """Bits that a token really needs: the sum over codebooks of the entropy of their ids, each coded by itself.

    Never more than `Spec.bits_per_item` says, which takes all ids as equally likely.
    """
    return float(jnp.sum(entropy_bits(counts)))


def histogram(counts: np.ndarray, bins: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """How many codes occur how often: counts of all codebooks in logarithmic bins.

    Args:
        counts: occurrences, any shape.
        bins: of counts of 1 and more; codes that never occur have a bin of their own in front.

    Returns:
        (edges [bins + 2], float64, the first two 0 and 1; codes [bins + 1], int64.)
    """
    counts = np.asarray(counts).ravel()
    edges = np.geomspace(1, max(2, counts.max(initial=1)), bins + 1)
    codes, _ = np.histogram(counts[counts > 0], edges)
    return np.concatenate([[0.0], edges]), np.concatenate([[np.sum(counts == 0)], codes])


def pack(ids: np.ndarray, widths: int | Sequence[int]) -> np.ndarray:
    """Ids as a string of bits, without a gap: each id in its width, the least significant bit first.

    Args:
        ids: integers [..., q], non-negative.
        widths: bits of an id, one number or one for each of the q; 1 to 64 each. Wider than the ids need is allowed.

    Returns:
        uint8 [ceil(number of bits / 8)]: the first bit in the lowest bit of the first byte, zeros after the last.

    Raises:
        InputError: an id is negative or too large for its width, or a width is not in 1..64.
    """
    ids = np.asarray(ids)
    widths = _widths(widths, ids.shape[-1])
    bits = []
    for q, width in enumerate(widths):
        column = ids[..., q].ravel()
        wrong = column[(column < 0) | (column.astype(np.uint64) >> np.uint64(width - 1) > 1)]
        if wrong.size:
            raise InputError(f"id {wrong[0]} of codebook {q} does not fit in {width} bits: 0 to {2**width - 1} do")
        eight = np.ascontiguousarray(column.astype("<u8")).view(np.uint8).reshape(-1, 8)
        bits.append(np.unpackbits(eight, axis=1, bitorder="little")[:, :width])
    return np.packbits(np.concatenate(bits, 1), bitorder="little")


def unpack(packed: np.ndarray, widths: int | Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """The inverse of `pack`.

    Args:
        packed: uint8 [m].
        widths: as in `pack`.
        shape: [..., q] of the ids.

    Returns:
        Ids of that shape: int32 where all widths are below 32, else uint64.

    Raises:
        InputError: `packed` is not as long as ids of that shape are.
    """
    widths = _widths(widths, shape[-1])
    rows, total = int(np.prod(shape[:-1])), sum(widths)
    if packed.size != -(-rows * total // 8):
        raise InputError(f"{packed.size} bytes packed, but ids of shape {tuple(shape)} are {-(-rows * total // 8)}")
    bits = np.unpackbits(np.asarray(packed, np.uint8), count=rows * total, bitorder="little").reshape(rows, total)
    out = np.zeros((rows, len(widths)), np.uint64)
    start = 0
    for q, width in enumerate(widths):
        eight = np.zeros((rows, 64), np.uint8)
        eight[:, :width] = bits[:, start : start + width]
        out[:, q] = np.packbits(eight, axis=1, bitorder="little").view("<u8")[:, 0]
        start += width
    return out.reshape(shape).astype(np.int32 if max(widths) < 32 else np.uint64)


def _widths(widths: int | Sequence[int], q: int) -> tuple[int, ...]:
    widths = (widths,) * q if isinstance(widths, int) else tuple(widths)
    if len(widths) != q or not all(1 <= width <= 64 for width in widths):
        raise InputError(f"widths {widths}: give 1 to 64 bits for each of the {q} codebooks")
    return widths


def _entropy(counts: Shaped[Array | np.ndarray, "q vocab"]) -> Float[Array, " q"]:
    counts = jnp.asarray(counts).astype(jnp.float32)
    total = jnp.sum(counts, axis=-1, keepdims=True)
    return jnp.sum(entr(counts / jnp.where(total > 0, total, 1.0)), axis=-1)
