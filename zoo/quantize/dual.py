"""Dual codebooks with shared ids: one id names a semantic and a pixel code, chosen by both distances together.

Qu et al. 2024 (TokenFlow), arXiv:2412.03069, section 3.1.

    id = argmin_k sum_p w_p |z_p - e_pk|^2        p over the parts, z_p and e_pk l2-normalised
    output = [e_1,id | e_2,id | ...]              commitment and codebook losses per part, as in VQ

The weighted sum of distances is the distance of concatenated vectors, each part times the root of its weight, so that
there is one search.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.quantize.common import Module, count, full_precision, l2_normalize, vq_losses
from zoo.quantize.estimators import Estimator, StraightThrough
from zoo.types import Quantized


class SharedIdsVQ(Module):
    """Codebooks of the widths `dims`; z holds their channels one after the other.

    Args:
        vocab_size: codes k, of each codebook.
        dims: channels of each.
        weights: of their distances; all 1 if None.
        l2_norm: compare, train and return unit vectors in each part.
        estimator: what the gradient is, of all channels together.
    """

    def __init__(
        self,
        vocab_size: int,
        dims: Sequence[int],
        *,
        weights: Sequence[float] | None = None,
        l2_norm: bool = True,
        estimator: Estimator = StraightThrough(),
        rngs: nnx.Rngs,
    ):
        bound = 1 / vocab_size
        draw = lambda d: jax.random.uniform(rngs.params(), (vocab_size, d), minval=-bound, maxval=bound)  # noqa: E731
        self.codebooks = nnx.List([nnx.Param(draw(d)) for d in dims])
        self.vocab_size = vocab_size
        self.dims = tuple(dims)
        self.weights = (1.0,) * len(dims) if weights is None else tuple(weights)
        self.l2_norm = l2_norm
        self.estimator = estimator

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.vocab_size,)

    def parts(self, z: Float[Array, "*b d"]) -> list[Float[Array, "*b c"]]:
        """z as it is compared, one array per codebook."""
        parts = jnp.split(full_precision(z), np.cumsum(self.dims)[:-1], -1)
        return [l2_normalize(part) if self.l2_norm else part for part in parts]

    def codes(self) -> Float[Array, "k d"]:
        """All codebooks side by side."""
        return jnp.concatenate(self.parts(jnp.concatenate([c[...] for c in self.codebooks], -1)), -1)

    def __call__(
        self, z: Float[Array, "*b d"], *, mask: Bool[Array, "*b"] | None = None, key: PRNGKeyArray | None = None
    ) -> Quantized:
        """Quantizes z. Losses "commitment" and "codebook" are sums over the codebooks; stats "counts" [1, k]."""
        parts, codes = self.parts(z), self.codes()
        z = jnp.concatenate(parts, -1)
        root = jnp.asarray(np.repeat(np.sqrt(self.weights), self.dims), z.dtype)
        flat = (z * root).reshape(-1, z.shape[-1])
        ids = self.estimator.choose(flat, codes * root, key=key).reshape(z.shape[:-1])
        q = codes[ids]
        by_part = [vq_losses(*pair, mask) for pair in zip(parts, self.parts_of(q), strict=True)]
        losses = jax.tree.map(lambda *values: sum(values), *by_part)
        stats = {"counts": count(ids, self.vocab_size, mask)[None]}
        out = self.estimator(z, q, codes, key=key)
        return Quantized(z=out, ids=ids[..., None], losses=losses, stats=stats)

    def parts_of(self, q: Float[Array, "*b d"]) -> list[Float[Array, "*b c"]]:
        """The codebooks' shares of a quantized vector."""
        return jnp.split(q, np.cumsum(self.dims)[:-1], -1)

    def lookup(self, ids: Int[Array, "*b 1"]) -> Float[Array, "*b d"]:
        """The codes of ids, bit-equal to the quantized z. Ids past the end are clamped, -1 wraps."""
        return self.codes()[ids[..., 0]]
