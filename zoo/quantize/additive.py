"""Additive quantization: a vector is the sum of one code of each codebook, chosen together by a beam search.

Babenko and Lempitsky 2014, "Additive quantization for extreme vector compression", CVPR; the search goes through the
codebooks in order, as in the beam search of neural residual quantizers (QINCo, arXiv:2401.14732, section 3.3).

    ids = argmin |z - sum_m e_m,id_m|^2        found by keeping the `beam` best sums of the first m codebooks
    output = sum_m e_m,id_m                    commitment and codebook losses of the sum, as in VQ

Facts that bite: beam 1 is the search of a residual quantizer; a beam of all codes is exhaustive for two codebooks. The
codebooks are not ordered from coarse to fine, so a prefix of the ids means little. Memory is n x beam x k per step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.quantize.common import Module, counts_of, full_precision, vq_losses
from zoo.quantize.estimators import Estimator, StraightThrough
from zoo.types import Quantized


class AdditiveVQ(Module):
    """`books` codebooks of `vocab_size` vectors of `dim` channels, learned by gradient.

    Args:
        vocab_size: codes k of each codebook.
        dim: channels d.
        books: codebooks, and ids q of a vector.
        beam: sums that the search keeps.
        estimator: what the gradient is.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        books: int,
        beam: int = 16,
        estimator: Estimator = StraightThrough(),
        rngs: nnx.Rngs,
    ):
        self.codebooks = nnx.Param(jax.random.normal(rngs.params(), (books, vocab_size, dim)) / (books * dim) ** 0.5)
        self.vocab_size, self.books = vocab_size, books
        self.beam = beam
        self.estimator = estimator

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.vocab_size,) * self.books

    def __call__(
        self, z: Float[Array, "*b d"], *, mask: Bool[Array, "*b"] | None = None, key: PRNGKeyArray | None = None
    ) -> Quantized:
        """Quantizes z. Losses "commitment" and "codebook"; stats "counts" [books, k]."""
        z = full_precision(z)
        ids = self.search(jax.lax.stop_gradient(z).reshape(-1, z.shape[-1]))
        ids = ids.reshape(*z.shape[:-1], self.books)
        q = self.lookup(ids)
        losses = vq_losses(z, q, mask)
        stats = {"counts": counts_of(ids, self.vocab_size, mask)}
        return Quantized(z=self.estimator(z, q, key=key), ids=ids, losses=losses, stats=stats)

    def search(self, z: Float[Array, "n d"]) -> Int[Array, "n q"]:
        """The ids of the best sum that the beam finds; NaN gives ids 0."""
        residuals, ids = z[:, None], jnp.zeros((len(z), 1, 0), jnp.int32)
        for codes in jax.lax.stop_gradient(full_precision(self.codebooks[...])):
            # |r - e|^2 of every kept residual r and every code e
            near = jnp.sum(residuals**2, -1, keepdims=True) - 2 * residuals @ codes.T + jnp.sum(codes**2, -1)
            flat = jnp.where(jnp.isnan(near), jnp.inf, near).reshape(len(z), -1)
            best = jax.lax.top_k(-flat, min(self.beam, flat.shape[-1]))[1].astype(jnp.int32)
            parent, code = best // self.vocab_size, best % self.vocab_size
            residuals = jnp.take_along_axis(residuals, parent[..., None], 1) - codes[code]
            ids = jnp.concatenate([jnp.take_along_axis(ids, parent[..., None], 1), code[..., None]], -1)
        return ids[:, 0]

    def lookup(self, ids: Int[Array, "*b q"]) -> Float[Array, "*b d"]:
        """The sums of the codes, bit-equal to the quantized z. Ids past the end are clamped, -1 wraps."""
        codebooks = full_precision(self.codebooks[...])
        total = codebooks[0][ids[..., 0]]
        for m in range(1, self.books):
            total = total + codebooks[m][ids[..., m]]
        return total
