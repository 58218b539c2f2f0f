"""The nearest code, with memory that does not grow with the codebook, and k-means.

Both compare by one matmul per block of codes. Euclidean: |e|^2 / 2 - z.e, since |z|^2 does not change the order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.quantize.common import count, l2_normalize, sums_by_code

BLOCK = 4096  # codes compared at a time on an accelerator: 8,192 vectors x 4,096 scores are 134 MB
CPU_SCORES, CPU_BLOCK = 2**20, 64  # scores at a time that stay in a CPU's cache, and the fewest codes


def block_of(n: int) -> int:
    """How many codes are compared with n vectors at a time, a power of two.

    An accelerator is best at large products. A CPU waits for memory, and new pages, where the scores leave its cache:
    32,768 vectors and 1,024 codes take an eighth of the time in blocks of 64 codes.
    """
    if jax.default_backend() != "cpu":
        return BLOCK
    fit = max(CPU_SCORES // max(n, 1), 1)
    return min(max(2 ** (fit.bit_length() - 1), CPU_BLOCK), BLOCK)


def first_minimum(scores: Float[Array, "n k"]) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """The smallest score of each row and its first index; index 0 where the row holds NaN.

    A minimum and a comparison vectorise where XLA's argmin on a CPU does not.
    """
    least = jnp.min(scores, -1)
    k = scores.shape[-1]
    index = jnp.min(jnp.where(scores == least[:, None], jnp.arange(k, dtype=jnp.int32), k), -1)
    return least, jnp.where(index == k, 0, index)


def nearest(
    z: Float[Array, "n d"], codebook: Float[Array, "k d"], *, dot: bool = False, block: int | None = None
) -> Int[Array, " n"]:
    """Index of the code with the smallest Euclidean distance to each vector; the first one on ties.

    The last block overlaps its predecessor instead of being padded. A vector with NaN gets id 0 (and stays NaN in the
    output and the losses); one with inf gets a valid id.

    Args:
        z: vectors.
        codebook: codes.
        dot: the largest dot product instead.
        block: codes compared at a time, `block_of(n)` if None; memory is n x block whatever k is.
    """
    k = codebook.shape[0]
    block = min(block or block_of(len(z)), k)
    half_norms = 0.0 * codebook[:, 0] if dot else 0.5 * jnp.sum(codebook * codebook, -1)

    def scores(start: Array) -> Array:
        codes = jax.lax.dynamic_slice_in_dim(codebook, start, block)
        return jax.lax.dynamic_slice_in_dim(half_norms, start, block) - z @ codes.T

    if block == k:
        return first_minimum(scores(jnp.int32(0)))[1]

    def search(best: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
        start = jnp.minimum(index * block, k - block)
        score, winner = first_minimum(scores(start))
        better = score < best[0]
        return (jnp.where(better, score, best[0]), jnp.where(better, start.astype(jnp.int32) + winner, best[1])), None

    start = (jnp.full(z.shape[0], jnp.inf, z.dtype), jnp.zeros(z.shape[0], jnp.int32))
    return jax.lax.scan(search, start, jnp.arange(-(-k // block)))[0][1]


def kmeans(
    z: Float[Array, "n d"],
    means: Float[Array, "k d"],
    iterations: int,
    *,
    l2_norm: bool = False,
    mask: Bool[Array, " n"] | None = None,
) -> tuple[Float[Array, "k d"], Int[Array, " k"]]:
    """Lloyd's algorithm from given means. Empty clusters keep their mean.

    Args:
        z: vectors; unit vectors with l2_norm.
        means: where it starts.
        iterations: how often vectors are assigned and means taken.
        l2_norm: spherical k-means, whose means are unit vectors.
        mask: which vectors count.

    Returns:
        The means, and the size of each cluster at the last assignment, which is before the last means.
    """
    k = means.shape[0]

    def iterate(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        means = state[0]
        ids = nearest(z, means, dot=l2_norm)
        sizes = count(ids, k, mask)
        new = sums_by_code(z, ids, k, mask) / jnp.maximum(sizes, 1)[:, None]
        return jnp.where(sizes[:, None] > 0, l2_normalize(new) if l2_norm else new, means), sizes

    return jax.lax.fori_loop(0, iterations, iterate, (means, jnp.zeros(k, jnp.int32)))
