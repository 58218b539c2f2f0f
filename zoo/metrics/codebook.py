"""How evenly a tokenizer uses its codebooks, from counts of ids.

`usage`, `entropy_bits` and `perplexity` are plain jax functions: they run inside jit, and on numpy counts.
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


def _entropy(counts: Shaped[Array | np.ndarray, "q vocab"]) -> Float[Array, " q"]:
    counts = jnp.asarray(counts).astype(jnp.float32)
    total = jnp.sum(counts, axis=-1, keepdims=True)
    return jnp.sum(entr(counts / jnp.where(total > 0, total, 1.0)), axis=-1)
