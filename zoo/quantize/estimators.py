"""Gradient estimators: what the backward pass takes the choice of a code for. Values that a quantizer is given.

    out = estimator(z, q, codes, key=key)          z [..., d] the latents, q their codes, codes [k, d] the codebook

The forward value is q bit for bit, except where an estimator draws noise, which none does without a key. Gradients go
to z, and to q (that is, to the codebook) where that is said.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from zoo.errors import InputError
from zoo.quantize import soft
from zoo.quantize.common import l2_normalize
from zoo.quantize.search import nearest

sg = jax.lax.stop_gradient


def forward(value: Float[Array, "*b d"], like: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """`value` in the forward pass, bit for bit; the gradient goes to `like`."""
    return sg(value) + (like - sg(like))


def straight_through(z: Float[Array, "*b d"], q: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """q in the forward pass, bit for bit; the gradient goes to z as if q were z (Bengio et al., 1308.3432)."""
    return forward(q, z)


class Estimator:
    """Base of the estimators."""

    def choose(
        self, z: Float[Array, "n d"], codes: Float[Array, "k d"], *, dot: bool = False, key: PRNGKeyArray | None = None
    ) -> Int[Array, " n"]:
        """The id of each vector: that of the nearest code, or of the largest dot product."""
        return nearest(sg(z), sg(codes), dot=dot)

    def __call__(
        self,
        z: Float[Array, "*b d"],
        q: Float[Array, "*b d"],
        codes: Float[Array, "k d"] | None = None,
        *,
        dot: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*b d"]:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class StraightThrough(Estimator):
    """The gradient of the output is the gradient of z (Bengio et al. 2013, arXiv:1308.3432)."""

    def __call__(self, z: Array, q: Array, codes: Array | None = None, *, dot: bool = False, key: Any = None) -> Array:
        return straight_through(z, q)


@dataclasses.dataclass(frozen=True)
class RotationTrick(Estimator):
    """z is rotated onto q and stretched to its length, and the rotation is a constant (Fifty et al. 2024,
    arXiv:2410.06424, section 4.2).

        u = z / |z|    v = q / |q|    w = (u + v) / |u + v|
        out = |q| / |z| (z - 2 (w.z) w + 2 (u.z) v)

    The gradient keeps its angle to the code. Norms are at least 1e-6.
    """

    def __call__(self, z: Array, q: Array, codes: Array | None = None, *, dot: bool = False, key: Any = None) -> Array:
        norm_z = jnp.maximum(jnp.linalg.norm(sg(z), axis=-1, keepdims=True), 1e-6)
        norm_q = jnp.linalg.norm(sg(q), axis=-1, keepdims=True)
        u, v = sg(z) / norm_z, sg(q) / jnp.maximum(norm_q, 1e-6)
        w = (u + v) / jnp.maximum(jnp.linalg.norm(u + v, axis=-1, keepdims=True), 1e-6)

        def along(direction: Array) -> Array:
            return jnp.sum(z * direction, -1, keepdims=True)

        return forward(q, norm_q / norm_z * (z - 2 * along(w) * w + 2 * along(u) * v))


@dataclasses.dataclass(frozen=True)
class DiVeQ(Estimator):
    """Differentiable vector quantization: a step from z of the length |q - z|, in a noisy and constant direction
    (Vali et al. 2025, arXiv:2509.26469).

        out = z + |q - z| sg[unit(q - z + sqrt(variance) noise)]

    The length carries gradients to z and to the codebook, which needs no other loss. Without a key there is no noise,
    and the value is q.
    """

    variance: float = 5e-3

    def __call__(self, z: Array, q: Array, codes: Array | None = None, *, dot: bool = False, key: Any = None) -> Array:
        if key is None:
            return forward(q, self.moved(z, q, jnp.zeros_like(z)))
        return self.moved(z, q, jax.random.normal(key, z.shape, z.dtype))

    def moved(self, z: Float[Array, "*b d"], q: Float[Array, "*b d"], noise: Float[Array, "*b d"]) -> Array:
        """The formula with given standard normal noise."""
        error = q - z
        squared = jnp.sum(error * error, -1, keepdims=True)
        length = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
        return z + sg(l2_normalize(error + self.variance**0.5 * noise)) * length


@dataclasses.dataclass(frozen=True)
class IndexBackpropagation(Estimator):
    """All codes get gradients through the softmax over them (Shi et al. 2024, IBQ, arXiv:2412.02692).

        onehot = hard + soft - sg[soft]    soft = softmax(logits / temperature)    out = onehot @ codes

    The logits are those of the quantizer: dot products, or negative squared distances.
    """

    temperature: float = 1.0

    def __call__(self, z: Array, q: Array, codes: Array | None = None, *, dot: bool = False, key: Any = None) -> Array:
        flat, keys, bias = logits_of(self, z, codes, dot)
        soft_part = soft.gradient_only(flat, keys, bias, sg(codes), None, self.temperature)
        return q + jnp.reshape(jnp.asarray(soft_part), z.shape) + 0 * sg(z)  # a NaN in z stays visible


@dataclasses.dataclass(frozen=True)
class Gumbel(Estimator):
    """Straight-through Gumbel-softmax (Jang et al. 2016, arXiv:1611.01144; as in vq-wav2vec, arXiv:1910.05453).

        id = argmax(logits + noise)    out = onehot(id) + soft - sg[soft], times the codes
        soft = softmax((logits + noise) / temperature)

    Without a key there is no noise: the nearest code, with the gradient of the softmax.
    """

    temperature: float = 1.0

    def choose(self, z: Array, codes: Array, *, dot: bool = False, key: Any = None) -> Array:
        if key is None:
            return nearest(sg(z), sg(codes), dot=dot)
        flat, keys, bias = logits_of(self, sg(z), sg(codes), dot)
        return soft.sampled(flat, keys, bias, key)

    def __call__(self, z: Array, q: Array, codes: Array | None = None, *, dot: bool = False, key: Any = None) -> Array:
        flat, keys, bias = logits_of(self, z, codes, dot)
        soft_part = soft.gradient_only(flat, keys, bias, sg(codes), key, self.temperature)
        return q + jnp.reshape(jnp.asarray(soft_part), z.shape) + 0 * sg(z)  # a NaN in z stays visible


def logits_of(
    estimator: Estimator, z: Float[Array, "*b d"], codes: Float[Array, "k d"] | None, dot: bool
) -> tuple[Float[Array, "n d"], Float[Array, "k d"], Float[Array, " k"]]:
    """(z [n, d], keys [k, d], bias [k]), of which z @ keys.T + bias are the logits up to a constant per vector.

    Raises:
        InputError: the quantizer has no codebook.
    """
    if codes is None:
        name = type(estimator).__name__
        raise InputError(
            f"{name} compares with all codes and this quantizer has no codebook: give it StraightThrough, "
            "RotationTrick or DiVeQ"
        )
    flat = z.reshape(-1, z.shape[-1])
    if dot:
        return flat, codes, jnp.zeros(len(codes), codes.dtype)
    return flat, 2 * codes, -jnp.sum(codes * codes, -1)
