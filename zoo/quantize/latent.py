"""Latent quantization: each channel has a few learned values of its own and takes the nearest.

Hsu et al. 2023, arXiv:2305.18378, section 3.

    level_i = argmin_j |z_i - v_ij|        q_i = v_i,level_i        commitment and codebook losses as in VQ
    id = sum_i level_i prod_{j < i} L_j    the first channel is the fastest

Facts that bite: the values start evenly spaced in [-1/2, 1/2]; vector-quantize-pytorch computes ids from the values
instead of the levels, so that its ids mean nothing once the values have moved. Ours are the levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.quantize.common import Module, full_precision, id_counts, levels_of, place_values, vq_losses
from zoo.quantize.estimators import Estimator, StraightThrough
from zoo.types import Quantized


class LatentQuantizer(Module):
    """One codebook of prod(levels) codes.

    Args:
        levels: L, the number of values of each channel.
        estimator: what the gradient is.
    """

    def __init__(self, levels: Sequence[int], *, estimator: Estimator = StraightThrough()):
        self.levels = tuple(levels)
        start = [np.linspace(-0.5, 0.5, L) if L % 2 else np.arange(L) / L - 0.5 for L in levels]
        self.values = nnx.List([nnx.Param(jnp.asarray(v, jnp.float32)) for v in start])
        self.estimator = estimator

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (math.prod(self.levels),)

    def __call__(
        self, z: Float[Array, "*b d"], *, mask: Bool[Array, "*b"] | None = None, key: PRNGKeyArray | None = None
    ) -> Quantized:
        """Quantizes z. Losses "commitment" and "codebook"; stats "counts" [1, prod(levels)]."""
        z = full_precision(z)
        far = [jnp.abs(z[..., i, None] - values[...]) for i, values in enumerate(self.values)]
        levels = jnp.stack([jnp.argmin(jax.lax.stop_gradient(f), -1).astype(jnp.int32) for f in far], -1)
        q = self._values(levels)
        ids = jnp.sum(levels * place_values(self.levels), -1, keepdims=True)
        out = self.estimator(z, q, key=key)
        stats = id_counts(ids, self.vocab_sizes[0], mask)
        return Quantized(z=out, ids=ids, losses=vq_losses(z, q, mask), stats=stats)

    def _values(self, levels: Int[Array, "*b d"]) -> Float[Array, "*b d"]:
        return jnp.stack([full_precision(values[...])[levels[..., i]] for i, values in enumerate(self.values)], -1)

    def lookup(self, ids: Int[Array, "*b 1"]) -> Float[Array, "*b d"]:
        """The values of ids, bit-equal to the quantized z. Ids past the end wrap around."""
        return self._values(levels_of(ids, self.levels))
