"""Further losses of a codebook, as values that VQ is given: scalars by name, unweighted."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.quantize import soft
from zoo.quantize.binary import plogp
from zoo.quantize.common import l2_normalize, masked_mean, vector_weights


class Regularizer(Protocol):
    """Losses by name, of latents z, their ids and the codes."""

    def __call__(
        self,
        z: Float[Array, "*b d"],
        ids: Int[Array, "*b"],
        codes: Float[Array, "k d"],
        mask: Bool[Array, "*b"] | None,
    ) -> dict[str, Float[Array, ""]]: ...


def distances(z: Float[Array, "*b d"], codes: Float[Array, "k d"]) -> Float[Array, "*b k"]:
    """Euclidean distances, squares clamped at 1e-8 so that their gradient is finite."""
    squared = jnp.sum(z * z, -1, keepdims=True) + jnp.sum(codes * codes, -1) - 2 * z @ codes.T
    return jnp.sqrt(jnp.maximum(squared, 1e-8))


@dataclasses.dataclass(frozen=True)
class Orthogonality:
    """Codes that point in different directions (Shin et al. 2021, arXiv:2112.00384, equation 2).

    sum_ij cos(e_i, e_j)^2 / k^2 - 1 / k, from a d x d matrix: the sum is the squared norm of the codes' second moment.

    Attributes:
        active: only the codes that the batch chose.
    """

    active: bool = False

    def __call__(self, z: Array, ids: Array, codes: Array, mask: Array | None) -> dict[str, Array]:
        unit, k = l2_normalize(codes), jnp.asarray(len(codes), codes.dtype)
        if self.active:
            counted = ids if mask is None else jnp.where(mask, ids, len(codes))
            used = jnp.zeros(len(codes), codes.dtype).at[counted].set(1.0, mode="drop")
            unit, k = unit * used[:, None], jnp.maximum(jnp.sum(used), 1)
        return {"orthogonality": jnp.sum((unit.T @ unit) ** 2) / k**2 - 1 / k}


@dataclasses.dataclass(frozen=True)
class Diversity:
    """Minus the entropy of how the batch softly uses the codes at each position, averaged over positions.

    p = mean over the first axis of softmax(-temperature |z - e|); a z of two axes or fewer is one position.

    Attributes:
        temperature: what the distances are multiplied by, despite its name.
    """

    temperature: float = 100.0

    def __call__(self, z: Array, ids: Array, codes: Array, mask: Array | None) -> dict[str, Array]:
        return self.of(distances(z, codes), ids, mask)

    def of(self, distances: Array, ids: Array, mask: Array | None) -> dict[str, Array]:
        """Of given distances [..., k]."""
        p = jax.nn.softmax(-self.temperature * distances, -1)
        if mask is not None:
            p = jnp.where(mask[..., None], p, 0)
        weight = jnp.ones(ids.shape) if mask is None else mask
        mean = jnp.sum(p, 0) / jnp.maximum(jnp.sum(weight, 0), 1)[..., None]
        return {"diversity": jnp.mean(jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-5)), -1))}


@dataclasses.dataclass(frozen=True)
class CrossEntropyCommitment:
    """Commitment as classification: the cross entropy of softmax(-|z - e|) against the chosen id (NaturalSpeech 2,
    arXiv:2304.09116, equation 7)."""

    def __call__(self, z: Array, ids: Array, codes: Array, mask: Array | None) -> dict[str, Array]:
        return self.of(distances(z, codes), ids, mask)

    def of(self, distances: Array, ids: Array, mask: Array | None) -> dict[str, Array]:
        """Of given distances [..., k]."""
        log_p = jax.nn.log_softmax(-distances, -1)
        return {"cross_entropy": -masked_mean(jnp.take_along_axis(log_p, ids[..., None], -1), mask)}


@dataclasses.dataclass(frozen=True)
class CodeEntropy:
    """Entropies, in nats, of p = softmax(logits / temperature) over the codes (Yu et al. 2023, arXiv:2310.05737).

    "sample_entropy" is the mean over vectors of the entropy of p: low where decisions are clear. "codebook_entropy" is
    the entropy of the mean of p: high where all codes are used; a recipe gives it a negative weight. Both come from
    blocks of codes, and no n x k matrix.

    Attributes:
        temperature: 0.01 in IBQ (arXiv:2412.02692).
        dot: the logits are dot products; else negative squared distances.
    """

    temperature: float = 0.01
    dot: bool = False

    def __call__(self, z: Array, ids: Array, codes: Array, mask: Array | None) -> dict[str, Array]:
        flat, weights = z.reshape(-1, z.shape[-1]), vector_weights(mask, z.shape[:-1], z.dtype)
        scale, bias = (1, jnp.zeros(len(codes), codes.dtype)) if self.dot else (2, -jnp.sum(codes * codes, -1))
        sample, mean = soft.entropy_sums(flat, scale * codes, bias, weights, self.temperature)
        return {"sample_entropy": sample, "codebook_entropy": -plogp(mean)}
