"""Vector quantization: the nearest code of a learned codebook.

van den Oord et al. 2017, arXiv:1711.00937, equation 3; l2-normalised codes as in ViT-VQGAN, arXiv:2110.04627.

    id = argmin_k |z - e_k|^2        q = e_id
    commitment = mean (z - sg[q])^2  codebook = mean (sg[z] - q)^2
    output = q forward, gradient straight to z (or as the estimator says)

Facts that bite: with l2_norm z and codes are normalised for the search, in both losses AND in the output, while the
stored codebook stays un-normalised; DAC's factorised codes (arXiv:2306.06546) are normalised for the search alone. The
first of equally near codes wins; the search runs in float32 whatever the model's dtype, and its memory does not grow
with the codebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.quantize.common import CodebookState, Module, count, full_precision, l2_normalize, rows, vq_losses
from zoo.quantize.estimators import Estimator, StraightThrough
from zoo.quantize.regularizers import Regularizer
from zoo.quantize.search import kmeans, nearest
from zoo.types import Quantized

Distance = Literal["euclidean", "dot", "direction"]


class VQ(Module):
    """One codebook of `vocab_size` vectors of `dim` channels, learned by gradient.

    Args:
        vocab_size: number of codes k.
        dim: channels d.
        l2_norm: compare, train and return unit vectors.
        distance: what the search compares: "euclidean", "dot" (IBQ's largest dot product), or "direction": Euclidean
            after normalising both, for the search alone (DAC, SNAC, BigCodec).
        clustering: carry `embed_prob` [k], the usage estimate of TA-TiTok's clustering VQ (arXiv:2501.07730).
        estimator: what the gradient is.
        regularizers: further losses, by their names.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        l2_norm: bool = False,
        distance: Distance = "euclidean",
        clustering: bool = False,
        estimator: Estimator = StraightThrough(),
        regularizers: Sequence[Regularizer] = (),
        rngs: nnx.Rngs,
    ):
        bound = 1 / vocab_size
        self.codebook = nnx.Param(jax.random.uniform(rngs.params(), (vocab_size, dim), minval=-bound, maxval=bound))
        if clustering:
            self.embed_prob = CodebookState(jnp.zeros(vocab_size))
        self.vocab_size = vocab_size
        self.l2_norm = l2_norm
        self.distance = distance
        self.clustering = clustering
        self.estimator = estimator
        self.regularizers = tuple(regularizers)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.vocab_size,)

    def codes(self) -> Float[Array, "k d"]:
        """The codes as they are looked up, in float32."""
        return self._normalize(self.codebook[...])

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
        given, z = z, self._normalize(z)
        codes = self.codes()
        ids = self._choose(z, codes, key)
        q = codes[ids]
        losses = self.losses(z, q, mask)
        for regularizer in self.regularizers:
            losses |= regularizer(z, ids, codes, mask)
        out = self.estimator(z, q, codes, dot=self.distance == "dot", key=key)
        stats, samples = self._statistics(z, ids, mask, key)
        if self.clustering:
            samples["vectors"] = full_precision(given).reshape(-1, z.shape[-1])
        return Quantized(z=out, ids=ids[..., None], losses=losses, stats=stats, samples=samples)

    def _choose(self, z: Float[Array, "*b d"], codes: Float[Array, "k d"], key: Any) -> Int[Array, "*b"]:
        if self.distance == "direction":
            z, codes = l2_normalize(z), l2_normalize(codes)
        flat = z.reshape(-1, z.shape[-1])
        return self.estimator.choose(flat, codes, dot=self.distance == "dot", key=key).reshape(z.shape[:-1])

    def losses(self, z: Float[Array, "*b d"], q: Float[Array, "*b d"], mask: Any) -> dict[str, Array]:
        return vq_losses(z, q, mask)

    def _statistics(
        self, z: Float[Array, "*b d"], ids: Int[Array, "*b"], mask: Any, key: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(sums over the batch, rows of the batch); see Quantized."""
        return {"counts": count(ids, self.vocab_size, mask)[None]}, {}

    def lookup(self, ids: Int[Array, "*b 1"]) -> Float[Array, "*b d"]:
        """The code vectors of ids, bit-equal to the quantized z. Ids past the end are clamped, -1 wraps."""
        return self.codes()[ids[..., 0]]

    def initialize(
        self, z: Float[Array, "*b d"], *, iterations: int = 10, mask: Any = None, key: PRNGKeyArray | None = None
    ) -> dict[str, Array]:
        """The codebook after k-means over z, which starts from random vectors of it (from the first without a key).

        Nothing for the largest dot product, which takes codes of about one length; means are not.
        """
        if self.distance == "dot":
            return {}
        return {"codebook": self._kmeans(z, iterations, mask, key)[0]}

    def _kmeans(self, z: Array, iterations: int, mask: Any, key: Any) -> tuple[Array, Array]:
        z = self._normalize(z).reshape(-1, z.shape[-1])
        mask = None if mask is None else mask.reshape(-1)
        first = rows(z, self.vocab_size, mask=mask, key=key)
        first = first[jnp.arange(self.vocab_size) % len(first)]
        return kmeans(z, first, iterations, l2_norm=self.l2_norm, mask=mask)

    def soft(self, weights: Float[Array, "*b k"]) -> Float[Array, "*b d"]:
        """The mean of the codes under `weights`, normalised after the mean."""
        return self._normalize(full_precision(weights) @ full_precision(self.codebook[...]))

    def continuous(self, z: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """What the quantizer would return if every vector were a code."""
        return self._normalize(z)

    def update(self, stats: dict[str, Any], samples: dict[str, Any]) -> dict[str, Array]:
        """With `clustering`: codes that are seldom chosen move to their nearest latent (Zheng and Vedaldi 2023,
        arXiv:2307.15139, equations 3 and 4, with the constants of TA-TiTok).

            p_k <- 0.99 p_k + 0.01 n_k / n      a_k = exp(-10 K p_k / 0.01 - 0.001)
            e_k <- (1 - a_k) e_k + a_k z_i      i = the nearest of the batch, z not normalised

        Args:
            stats: "counts" [1, k].
            samples: "vectors" [n, d], all of the batch.
        """
        if not self.clustering:
            return {}
        z, codebook = samples["vectors"], self.codebook[...]
        probability = 0.99 * self.embed_prob[...] + 0.01 * stats["counts"][0] / z.shape[0]
        anchor = z[nearest(self._normalize(codebook), self._normalize(z))]
        share = jnp.exp(-10 * self.vocab_size * probability / 0.01 - 1e-3)[:, None]
        return {"codebook": (1 - share) * codebook + share * anchor, "embed_prob": probability}

    def codebook_from(self, z: Float[Array, "*b d"], key: PRNGKeyArray) -> Float[Array, "k d"]:
        """A codebook of vectors drawn from z, without repetition as far as there are enough."""
        z = self._normalize(z).reshape(-1, z.shape[-1])
        keys = jax.random.split(key, -(-self.vocab_size // z.shape[0]))
        return jnp.concatenate([rows(z, self.vocab_size, key=key) for key in keys])[: self.vocab_size]
