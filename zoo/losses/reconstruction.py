"""Pixel losses."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def l1(x: Float[Array, "*b"], x_hat: Float[Array, "*b"]) -> Float[Array, ""]:
    """Mean absolute difference over all values.

    Args:
        x: any shape and range.
        x_hat: the same shape and range.

    Returns:
        A scalar in the unit of x, float32 also for bfloat16 images (float64 for float64 ones).
    """
    return jnp.mean(jnp.abs(_difference(x, x_hat)))


def l2(x: Float[Array, "*b"], x_hat: Float[Array, "*b"]) -> Float[Array, ""]:
    """Mean squared difference over all values.

    Args:
        x: any shape and range.
        x_hat: the same shape and range.

    Returns:
        A scalar in the squared unit of x, float32 also for bfloat16 images (float64 for float64 ones).
    """
    return jnp.mean(_difference(x, x_hat) ** 2)


def _difference(x: Array, x_hat: Array) -> Array:
    dtype = jnp.promote_types(jnp.result_type(x, x_hat), jnp.float32)
    return x.astype(dtype) - x_hat.astype(dtype)
