"""Codes that are signs: bits to ids and back, and entropies of 2^b codes from b bits.

With codes c in {-s, s}^b and temperature T the softmax over all of them is a product of independent bits:

    softmax_c(2 z.c / T) = prod_i p_i^[c_i > 0] (1 - p_i)^[c_i < 0]        p_i = sigmoid(4 s z_i / T)

so that the entropy of one vector is a sum over bits, exactly (O(n b)), and the mean of the probabilities over vectors
is a matrix product of two halves of the bits, block by block: never n x 2^b numbers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from zoo.errors import InputError
from zoo.quantize.common import vector_weights

Pooling = Literal["per group", "pooled"]
HALF = 6  # bits of the codes that are combined at a time: 64 x 64


def place_values(bits: int, big_endian: bool) -> np.ndarray:
    """int32 [bits]: what each channel's bit is worth in an id."""
    values = 2 ** np.arange(bits, dtype=np.int32)
    return values[::-1].copy() if big_endian else values


def to_ids(bits: Bool[Array, "*b g n"], big_endian: bool) -> Int[Array, "*b g"]:
    """n bits to an id in [0, 2^n)."""
    return jnp.sum(bits * place_values(bits.shape[-1], big_endian), -1, dtype=jnp.int32)


def to_bits(ids: Int[Array, "*b g"], bits: int, big_endian: bool) -> Bool[Array, "*b g n"]:
    """The inverse of `to_ids`; only the lowest `bits` bits of an id count."""
    return (ids[..., None] & place_values(bits, big_endian)) != 0


def regroup(
    ids: Int[Array, "*b g"], bits: int, factors: Sequence[int], *, big_endian: bool = False
) -> Int[Array, "*b f"]:
    """The same bits as ids of other widths, for a generator that predicts them in factors (Open-MAGVIT2's 6 + 12).

    Args:
        ids: one per group.
        bits: of each of them.
        factors: bits of each new id; their sum is g * bits.
        big_endian: the order within old and new ids.

    Raises:
        InputError: the sums differ, or a factor has not 1 to 31 bits.
    """
    if sum(factors) != ids.shape[-1] * bits:
        raise InputError(f"factors {tuple(factors)} have {sum(factors)} bits, the ids {ids.shape[-1]} x {bits}")
    flat = to_bits(ids, bits, big_endian).reshape(*ids.shape[:-1], -1)
    parts = jnp.split(flat, np.cumsum(factors)[:-1], -1)
    for factor in factors:
        check_bits(factor, "a factor")
    return jnp.stack([to_ids(part, big_endian) for part in parts], -1)


@dataclasses.dataclass(frozen=True)
class Entropy:
    """How the entropies of binary codes are taken. Defaults: exact, of each group by itself.

    Attributes:
        temperature: T above.
        pooling: the codebook entropy is that of each group's mean probabilities ("per group"), or of their mean over
            the groups too ("pooled", as WeTok's and Open-MAGVIT2's code does).
        epsilon: log(p + epsilon) in the codebook entropy. 1e-5 in WeTok and Open-MAGVIT2.
        clamp: log(max(p, clamp)) in both entropies, from all n x 2^b probabilities; 1e-5 in vector-quantize-pytorch.
    """

    temperature: float = 0.01
    pooling: Pooling = "per group"
    epsilon: float = 0.0
    clamp: float = 0.0

    def __call__(
        self, z: Float[Array, "*b g n"], scale: Float[Array, ""] | float, mask: Bool[Array, "*b"] | None = None
    ) -> tuple[Float[Array, " g"], Float[Array, " m"]]:
        """Entropies in nats of codes with the values -scale and +scale.

        Returns:
            The mean over vectors of each group's entropy [g], and the entropy of the mean probabilities: [g] per group,
            or [1] pooled.
        """
        logits = (4 / self.temperature * scale * z).reshape(-1, *z.shape[-2:])
        weights = vector_weights(mask, z.shape[:-2], z.dtype)
        if self.clamp:
            return self._clamped(logits, weights)
        sample = jnp.einsum("n,ngb->g", weights, bit_entropy(logits))
        if self.pooling == "pooled":
            groups = logits.shape[1]
            logits = logits.reshape(-1, 1, logits.shape[-1])
            weights = jnp.repeat(weights, groups) / groups
        terms = functools.partial(mean_code_entropy, weights=weights, epsilon=self.epsilon)
        return sample, jax.vmap(terms, 1)(logits)

    def _clamped(self, logits: Float[Array, "n g b"], weights: Float[Array, " n"]) -> tuple[Array, Array]:
        p = jnp.exp(code_log_probabilities(logits))

        def entropy(p: Array) -> Array:
            return -jnp.sum(p * jnp.log(jnp.maximum(p, self.clamp)), -1)

        mean = jnp.einsum("n,ngc->gc", weights, p)
        mean = jnp.mean(mean, 0, keepdims=True) if self.pooling == "pooled" else mean
        return jnp.einsum("n,ng->g", weights, entropy(p)), entropy(mean)


def bit_entropy(logits: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Entropy in nats of a bit with p = sigmoid(logit); its gradient is exact where p is 0 or 1, too."""
    return jax.nn.softplus(logits) - logits * jax.nn.sigmoid(logits)


def code_log_probabilities(logits: Float[Array, "*b n"]) -> Float[Array, "*b c"]:
    """log of the probabilities of all 2^n codes; code c sets the bits of c, the first channel counts 1."""
    n = logits.shape[-1]
    bits = jnp.asarray((np.arange(2**n)[:, None] >> np.arange(n)) & 1, logits.dtype)
    return jax.nn.log_sigmoid(logits) @ bits.T + jax.nn.log_sigmoid(-logits) @ (1 - bits).T


def mean_code_entropy(logits: Float[Array, "n b"], weights: Float[Array, " n"], epsilon: float) -> Float[Array, ""]:
    """-sum_c p_c log(p_c + epsilon) of p = sum_n weights_n p_n, over all 2^b codes.

    The codes are taken 2^12 at a time: the bits in front of the last 12 are scanned over, the last 12 are the product
    of two halves. Memory is O(n (b + 2^6)), forward and backward.
    """
    b = logits.shape[-1]
    low = min(b, 2 * HALF)
    scanned, rest = logits[:, : b - low], logits[:, b - low :]
    left = jnp.exp(code_log_probabilities(rest[:, : low // 2]))
    right = jnp.exp(code_log_probabilities(rest[:, low // 2 :]))

    if b == low:
        return -plogp((left * weights[:, None]).T @ right, epsilon)

    @jax.checkpoint
    def body(total: Array, code: Array) -> tuple[Array, None]:
        signs = jnp.where((code >> jnp.arange(b - low)) & 1 == 1, 1, -1)
        prefix = jnp.exp(jnp.sum(jax.nn.log_sigmoid(signs * scanned), -1))
        p = (left * (weights * prefix)[:, None]).T @ right
        return total + plogp(p, epsilon), None

    return -jax.lax.scan(body, jnp.zeros((), logits.dtype), jnp.arange(2 ** (b - low)))[0]


def plogp(p: Float[Array, "*b"], epsilon: float = 0.0) -> Float[Array, ""]:
    """sum p log(p + epsilon); 0 log 0 is 0, with a finite gradient."""
    safe = jnp.where(p > 0, p, 1.0)
    return jnp.sum(jnp.where(p > 0, p * jnp.log(safe + epsilon), 0.0))


def check_bits(bits: int, what: str) -> None:
    """Raises InputError where an id of `bits` bits is no int32."""
    if not 1 <= bits <= 31:
        raise InputError(f"{what} has {bits} bits in one id, and int32 holds 1 to 31: use more groups")


def check_divides(whole: int, part: int, what: str) -> None:
    """Raises InputError where `part` does not divide `whole`."""
    if part < 1 or whole % part:
        raise InputError(f"{what} = {part} does not divide {whole} channels")
