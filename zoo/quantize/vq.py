"""Vector quantization: the nearest code of a learned codebook.

van den Oord et al. 2017, arXiv:1711.00937, equation 3; l2-normalised codes as in ViT-VQGAN, arXiv:2110.04627.

    id = argmin_k |z - e_k|^2        q = e_id
    commitment = mean (z - sg[q])^2  codebook = mean (sg[z] - q)^2
    output = q forward, gradient straight to z

Facts that bite: with l2_norm z and codes are normalised for the search, in both losses AND in the output, while the
stored codebook stays un-normalised; the first of equally near codes wins; the search runs in float32 whatever the
model's dtype, and its memory does not grow with the codebook.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.quantize.common import CodebookState, count, full_precision, masked_mean, straight_through
from zoo.types import Quantized

BLOCK = 4096  # codes compared at a time: 8,192 vectors x 4,096 distances are 134 MB


def l2_normalize(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """x / max(|x|, 1e-12), torch's F.normalize; its gradient at x = 0 is finite."""
    squared = jnp.sum(x * x, -1, keepdims=True)
    norm = jnp.sqrt(jnp.where(squared > 0, squared, 1.0))
    return x / jnp.where(squared > 0, jnp.maximum(norm, 1e-12), 1e-12)


def nearest(z: Float[Array, "n d"], codebook: Float[Array, "k d"], *, block: int = BLOCK) -> Int[Array, " n"]:
    """Index of the code with the smallest Euclidean distance to each vector; the first one on ties.

    Distances come from one matmul per block of codes (|e|^2 - 2 z.e; |z|^2 does not change the order), so that memory
    is n x block whatever k is. The last block overlaps its predecessor instead of being padded. A vector with NaN gets
    0 (and stays NaN in `VQ`'s output and losses).
    """
    k = codebook.shape[0]
    block = min(block, k)
    half_norms = 0.5 * jnp.sum(codebook * codebook, -1)

    def search(best, index):
        start = jnp.minimum(index * block, k - block)
        codes = jax.lax.dynamic_slice_in_dim(codebook, start, block)
        scores = jax.lax.dynamic_slice_in_dim(half_norms, start, block) - z @ codes.T
        winner = jnp.argmin(scores, -1).astype(jnp.int32)
        score = jnp.take_along_axis(scores, winner[:, None], -1)[:, 0]
        better = score < best[0]
        return (jnp.where(better, score, best[0]), jnp.where(better, start.astype(jnp.int32) + winner, best[1])), None

    start = (jnp.full(z.shape[0], jnp.inf, z.dtype), jnp.zeros(z.shape[0], jnp.int32))
    return jax.lax.scan(search, start, jnp.arange(-(-k // block)))[0][1].astype(jnp.int32)


class VQ(nnx.Module):
    """One codebook of `vocab_size` vectors of `dim` channels.

    Args:
        vocab_size: number of codes k.
        dim: channels d.
        l2_norm: compare, train and return unit vectors.
        clustering: carry `embed_prob` [k], the usage estimate of TA-TiTok's clustering VQ (arXiv:2501.07730).
    """

    def __init__(self, vocab_size: int, dim: int, *, l2_norm: bool = False, clustering: bool = False, rngs: nnx.Rngs):
        bound = 1 / vocab_size
        self.codebook = nnx.Param(jax.random.uniform(rngs.params(), (vocab_size, dim), minval=-bound, maxval=bound))
        if clustering:
            self.embed_prob = CodebookState(jnp.zeros(vocab_size))
        self.vocab_size = vocab_size
        self.l2_norm = l2_norm
        self.clustering = clustering

    def _normalize(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        x = full_precision(x)
        return l2_normalize(x) if self.l2_norm else x

    def __call__(
        self,
        z: Float[Array, "*b d"],
        *,
        mask: Bool[Array, "*b"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Quantized:
        """Quantizes z. Losses "commitment" and "codebook" are unweighted; stats "counts" [1, k]."""
        z = self._normalize(z)
        codebook = self._normalize(self.codebook[...])
        ids = nearest(jax.lax.stop_gradient(z).reshape(-1, z.shape[-1]), jax.lax.stop_gradient(codebook))
        ids = ids.reshape(z.shape[:-1])
        q = codebook[ids]
        losses = {
            "commitment": masked_mean((z - jax.lax.stop_gradient(q)) ** 2, mask),
            "codebook": masked_mean((q - jax.lax.stop_gradient(z)) ** 2, mask),
        }
        stats = {"counts": count(ids, self.vocab_size, mask)[None]}
        return Quantized(z=straight_through(z, q), ids=ids[..., None], losses=losses, stats=stats)

    def lookup(self, ids: Int[Array, "*b 1"]) -> Float[Array, "*b d"]:
        """The code vectors of ids, bit-equal to the quantized z. Ids past the end are clamped, -1 wraps."""
        return self._normalize(self.codebook[...])[ids[..., 0]]

    def soft(self, weights: Float[Array, "*b k"]) -> Float[Array, "*b d"]:
        """The mean of the codes under `weights`, normalised after the mean."""
        return self._normalize(full_precision(weights) @ full_precision(self.codebook[...]))

    def continuous(self, z: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """What the quantizer would return if every vector were a code."""
        return self._normalize(z)

    def clustered(self, z: Float[Array, "*b d"], counts: Float[Array, " k"]) -> tuple[Array, Array]:
        """Clustering VQ: codes that are seldom chosen move to their nearest latent (Zheng and Vedaldi 2023,
        arXiv:2307.15139, equations 3 and 4, with the constants of TA-TiTok).

            p_k <- 0.99 p_k + 0.01 n_k / n      a_k = exp(-10 K p_k / 0.01 - 0.001)
            e_k <- (1 - a_k) e_k + a_k z_i      i = the nearest of the batch, z not normalised

        Args:
            z: what `__call__` got, the whole batch.
            counts: how often it chose each code.

        Returns:
            The codebook [k, d] and `embed_prob` [k] after a step; nothing is changed here.
        """
        z = full_precision(z).reshape(-1, z.shape[-1])
        codebook = self.codebook[...]
        probability = 0.99 * self.embed_prob[...] + 0.01 * counts / z.shape[0]
        anchor = z[nearest(self._normalize(codebook), self._normalize(z))]
        share = jnp.exp(-10 * self.vocab_size * probability / 0.01 - 1e-3)[:, None]
        return (1 - share) * codebook + share * anchor, probability

    def codebook_from(self, z: Float[Array, "*b d"], key: PRNGKeyArray) -> Float[Array, "k d"]:
        """A codebook of vectors drawn from z, without repetition as far as there are enough."""
        z = self._normalize(z).reshape(-1, z.shape[-1])
        order = jnp.concatenate(
            [jax.random.permutation(k, z.shape[0]) for k in jax.random.split(key, -(-self.vocab_size // z.shape[0]))]
        )
        return z[order[: self.vocab_size]]
