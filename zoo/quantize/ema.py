"""Codebooks that follow their vectors: exponential moving averages, k-means initialisation, dead-code replacement.

van den Oord et al. 2017, arXiv:1711.00937, appendix A.1; dead codes as in Jukebox (arXiv:2005.00341, section 3.1).

    n_k, s_k = how many vectors of the batch chose code k, and their sum
    N_k <- decay N_k + (1 - decay) n_k        S_k <- decay S_k + (1 - decay) s_k
    e_k  = S_k / smoothed N_k                 smoothed N_k = (N_k + eps) / (sum N + K eps) sum N
    a code with N_k < dead_below after that becomes a vector of the batch, with N_k = dead_below

Facts that bite: a step's own output comes from the codebook before its update. `__call__` returns sums (`stats`) and
vectors to replace dead codes with (`samples`: random ones with a key, else the first); `update` makes the new state of
them, after accumulation and over all devices, and changes nothing itself.
"""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from zoo.quantize.common import CodebookState, full_precision, rows, sums_by_code
from zoo.quantize.vq import VQ


class EMAVQ(VQ):
    """VQ whose codes are averages of the vectors that chose them.

    Args:
        decay: of the averages. 0.99 is EnCodec's.
        epsilon: of the smoothing.
        dead_below: codes whose average count is below are replaced; 0: never.
        learned: "ema", or "gradient": the codebook is a parameter, and the averages only tell which codes are dead.
        **options: of VQ.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        dead_below: float = 0.0,
        learned: Literal["ema", "gradient"] = "ema",
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(vocab_size, dim, rngs=rngs, **options)
        codes = self._normalize(self.codebook[...])
        self.codebook = CodebookState(codes) if learned == "ema" else nnx.Param(codes)
        self.cluster_size = CodebookState(jnp.ones(vocab_size))
        self.embed_sum = CodebookState(jnp.copy(codes))
        self.decay = decay
        self.epsilon = epsilon
        self.dead_below = dead_below
        self.learned = learned

    def codes(self) -> Float[Array, "k d"]:
        return full_precision(self.codebook[...])  # unit vectors with l2_norm already

    def losses(self, z: Array, q: Array, mask: Any) -> dict[str, Array]:
        losses = super().losses(z, q, mask)
        return losses if self.learned == "gradient" else {"commitment": losses["commitment"]}

    def _statistics(self, z: Array, ids: Array, mask: Any, key: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        stats, samples = super()._statistics(z, ids, mask, key)
        stats["sums"] = sums_by_code(z, ids, self.vocab_size, mask)[None]
        if self.dead_below:
            samples["vectors"] = rows(z, self.vocab_size, mask=mask, key=key)
        return stats, samples

    def update(self, stats: dict[str, Any], samples: dict[str, Any]) -> dict[str, Array]:
        """The state after a step: new values of the arrays by name, for `assign`.

        Args:
            stats: "counts" [u, k] and "sums" [u, k, d]; averaged one after the other where a codebook is used u times.
            samples: "vectors" [m, d], of which dead codes get the first, second, ... in their order, cyclically.
        """
        size, total = self._averages(stats, self.cluster_size[...], self.embed_sum[...])
        any_counted = jnp.sum(stats["counts"]) > 0
        codebook = self.codebook[...]
        if self.learned == "ema":
            codebook = jnp.where(any_counted, self._mean(size, total), codebook)
        state = {"codebook": codebook, "cluster_size": size, "embed_sum": total}
        if not self.dead_below:
            return state
        return replaced(state, (size < self.dead_below) & any_counted, samples["vectors"], self.dead_below)

    def _averages(self, stats: dict[str, Any], size: Float[Array, " k"], total: Float[Array, "k d"]) -> tuple:
        """The moved averages. A use of the codebook in which no vector counted, as a dropped layer, moves nothing."""
        for counts, sums in zip(stats["counts"], stats["sums"], strict=True):
            step = jnp.where(jnp.sum(counts) > 0, 1 - self.decay, 0)
            size, total = size + step * (counts - size), total + step * (sums - total)
        return size, total

    def _mean(self, size: Float[Array, " k"], total: Float[Array, "k d"]) -> Float[Array, "k d"]:
        n = jnp.sum(size)
        smoothed = (size + self.epsilon) / (n + self.vocab_size * self.epsilon) * n
        return self._normalize(total / smoothed[:, None])

    def initialize(
        self,
        z: Float[Array, "*b d"],
        *,
        iterations: int = 10,
        mask: Bool[Array, "*b"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> dict[str, Array]:
        """The state after k-means over z, which starts from random vectors of it (from the first without a key).

        Give it about as many vectors as a step has: the sizes of the clusters are the averages' start.
        """
        means, sizes = self._kmeans(z, iterations, mask, key)
        total, sizes = means * sizes[:, None], sizes.astype(means.dtype)
        return {"codebook": self._mean(sizes, total), "cluster_size": sizes, "embed_sum": total}


class EncodecVQ(EMAVQ):
    """EMAVQ as in the code of EnCodec (arXiv:2210.13438), WavTokenizer and SpeechTokenizer, for parity with them.

    Two things differ, and both hurt. Their replacement of dead codes writes into the codebook, which the averages then
    overwrite in the same step: it has no effect, and there is none here. Their k-means does not multiply the means by
    the counts, so that the first average shrinks the codes by about their counts. Train new codebooks with EMAVQ.
    """

    def initialize(self, z: Array, *, iterations: int = 50, mask: Any = None, key: Any = None) -> dict[str, Array]:
        means, sizes = self._kmeans(z, iterations, mask, key)
        return {"codebook": means, "cluster_size": sizes.astype(means.dtype), "embed_sum": means}


class MimiVQ(EMAVQ):
    """EMAVQ as in Moshi's Mimi (Defossez et al. 2024, arXiv:2410.00037): only sums and counts are state.

        e_k = S_k / max(N_k, eps)

    Dead codes are found and replaced before the averages move: code k with N_k < dead_below * mean N becomes vector k
    of `samples`, with N_k = refill * mean N. `update` replaces at each call; the original does at every fifth step.

    Args:
        dead_below: a share of the mean count.
        refill: likewise.
        **options: of EMAVQ.
    """

    def __init__(self, vocab_size: int, dim: int, *, dead_below: float = 0.1, refill: float = 1.0, **options: Any):
        super().__init__(vocab_size, dim, dead_below=dead_below, **options)
        del self.codebook
        self.refill = refill

    def codes(self) -> Float[Array, "k d"]:
        size = jnp.maximum(self.cluster_size[...], self.epsilon)
        return full_precision(self.embed_sum[...]) / size[:, None]

    def update(self, stats: dict[str, Any], samples: dict[str, Any]) -> dict[str, Array]:
        size, total = self.cluster_size[...], self.embed_sum[...]
        mean = jnp.mean(size)
        dead = (size < self.dead_below * mean) & (jnp.sum(stats["counts"]) > 0)
        new = samples["vectors"][jnp.arange(self.vocab_size) % len(samples["vectors"])]
        size = jnp.where(dead, self.refill * mean, size)
        total = jnp.where(dead[:, None], self.refill * mean * new, total)
        size, total = self._averages(stats, size, total)
        return {"cluster_size": size, "embed_sum": total}

    def initialize(self, z: Array, *, iterations: int = 10, mask: Any = None, key: Any = None) -> dict[str, Array]:
        means, sizes = self._kmeans(z, iterations, mask, key)
        return {"cluster_size": sizes.astype(means.dtype), "embed_sum": means * sizes[:, None]}


class AffineVQ(EMAVQ):
    """EMAVQ whose codes are whitened by running statistics of the codebook and coloured by those of the latents (Huh et
    al. 2023, arXiv:2305.08842, section 4.1), so that one shift and scale per channel follows the encoder at once.

        code = (e - mean_e) * std_z / std_e + mean_z

    The averages are taken over the vectors mapped back to the codebook's frame. The first batch's statistics are taken
    as they are. Variances are biased, standard deviations at least sqrt(1e-5).

    Args:
        batch_decay: of the running mean and variance of the latents.
        codebook_decay: of those of the codebook.
        **options: of EMAVQ, without l2_norm.
    """

    def __init__(self, vocab_size: int, dim: int, *, batch_decay: float = 0.99, codebook_decay: float = 0.9, **options):
        super().__init__(vocab_size, dim, **options)
        self.batch_mean, self.batch_variance = CodebookState(jnp.zeros(dim)), CodebookState(jnp.zeros(dim))
        self.codebook_mean, self.codebook_variance = CodebookState(jnp.zeros(dim)), CodebookState(jnp.zeros(dim))
        self.batch_seen = CodebookState(jnp.zeros(()))
        self.codebook_seen = CodebookState(jnp.zeros(()))
        self.batch_decay = batch_decay
        self.codebook_decay = codebook_decay

    def _scale(self) -> Float[Array, " d"]:
        """std_z / std_e; 1 before the first update."""
        ratio = jnp.maximum(self.batch_variance[...], 1e-5) / jnp.maximum(self.codebook_variance[...], 1e-5)
        return jnp.where(self.batch_seen[...] > 0, jnp.sqrt(ratio), 1.0)

    def codes(self) -> Float[Array, "k d"]:
        return (super().codes() - self.codebook_mean[...]) * self._scale() + self.batch_mean[...]

    def _statistics(self, z: Array, ids: Array, mask: Any, key: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        own = (z - self.batch_mean[...]) / self._scale() + self.codebook_mean[...]
        stats, samples = super()._statistics(own, ids, mask, key)
        weight = (jnp.ones(z.shape[:-1]) if mask is None else mask).astype(z.dtype)[..., None]
        axes = tuple(range(z.ndim - 1))
        off = (z - self.batch_mean[...]) * weight  # from a fixed point near the mean: no cancellation
        stats["moments"] = jnp.stack([jnp.sum(off, axes), jnp.sum(off * off, axes)])
        stats["number"] = jnp.sum(weight)
        return stats, samples

    def update(self, stats: dict[str, Any], samples: dict[str, Any]) -> dict[str, Array]:
        new = super().update(stats, samples)
        return new | self.observe(stats, new["codebook"])

    def observe(self, stats: dict[str, Any], codebook: Float[Array, "k d"]) -> dict[str, Array]:
        """The running statistics after a batch and with a codebook; the same where nothing counted."""
        first, second = stats["moments"] / jnp.maximum(stats["number"], 1)
        moments = {
            "batch": (self.batch_mean[...] + first, second - first**2),
            "codebook": (jnp.mean(codebook, 0), jnp.var(codebook, 0)),
        }
        out = {}
        for name, decay in (("batch", self.batch_decay), ("codebook", self.codebook_decay)):
            seen = getattr(self, f"{name}_seen")[...]
            keep = jnp.where(stats["number"] > 0, jnp.where(seen > 0, decay, 0.0), 1.0)
            for moment, value in zip(("mean", "variance"), moments[name], strict=True):
                out[f"{name}_{moment}"] = keep * getattr(self, f"{name}_{moment}")[...] + (1 - keep) * value
            out[f"{name}_seen"] = jnp.where(stats["number"] > 0, 1.0, seen)
        return out


def replaced(
    state: dict[str, Array], dead: Bool[Array, " k"], vectors: Float[Array, "m d"], size: float
) -> dict[str, Array]:
    """EMAVQ's state in which each dead code, in their order, is the next of the vectors (from the start again after the
    last), as if `size` vectors had chosen it."""
    new, chosen = vectors[(jnp.cumsum(dead) - 1) % len(vectors)], dead[:, None]
    return {
        "codebook": jnp.where(chosen, new, state["codebook"]),
        "cluster_size": jnp.where(dead, size, state["cluster_size"]),
        "embed_sum": jnp.where(chosen, new * size, state["embed_sum"]),
    }
