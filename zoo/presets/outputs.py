"""What the parity adapters of the families share."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Ids:
    """Computed ids with the margin of each decision, relative to the scale of its scores."""

    ids: Any
    margin: Any


def code_margin(z: jax.Array, codebook: jax.Array) -> jax.Array:
    """How far the second nearest code of each z [..., d] is behind the nearest, relative to the largest distance."""
    distances = jnp.sum(z**2, -1, keepdims=True) + jnp.sum(codebook**2, -1) - 2 * z @ codebook.T
    return top_margin(-distances)


def top_margin(scores: jax.Array) -> jax.Array:
    """How far the second highest of the scores [..., k] is below the highest, relative to the largest magnitude."""
    two = jax.lax.top_k(scores, 2)[0]
    return (two[..., 0] - two[..., 1]) / jnp.max(jnp.abs(scores))
