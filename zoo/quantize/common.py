"""What quantizers share: the straight-through estimator, masked means, counts, and mutable codebook state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int


class CodebookState(nnx.Variable):
    """State that the train step updates from sums (EMA codebooks, usage estimates); never a Param."""


def full_precision(z: Array) -> Array:
    """At least float32, so that ids never depend on a bfloat16 trunk's rounding of the search."""
    return z.astype(jnp.promote_types(z.dtype, jnp.float32))


def straight_through(z: Float[Array, "*b d"], q: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """q in the forward pass, bit for bit; the gradient goes to z as if q were z (Bengio et al., 1308.3432)."""
    return jax.lax.stop_gradient(q) + (z - jax.lax.stop_gradient(z))


def masked_mean(x: Float[Array, "*b d"], mask: Bool[Array, "*b"] | None) -> Float[Array, ""]:
    """Mean over all values of the positions where mask is True (all of them if None)."""
    if mask is None:
        return jnp.mean(x)
    weight = jnp.broadcast_to(mask[..., None], x.shape)
    return jnp.sum(jnp.where(weight, x, 0)) / jnp.maximum(jnp.sum(weight), 1)


def count(ids: Int[Array, "*b"], vocab_size: int, mask: Bool[Array, "*b"] | None = None) -> Int[Array, " k"]:
    """How often each code occurs."""
    ones = jnp.ones(ids.shape, jnp.int32) if mask is None else mask.astype(jnp.int32)
    return jnp.zeros(vocab_size, jnp.int32).at[ids.reshape(-1)].add(ones.reshape(-1))
