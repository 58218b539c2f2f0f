"""Binary spherical quantization: the corner of a hypercube in the sphere that is nearest to a unit vector.

Zhao et al. 2024, arXiv:2406.07548, equations 3 to 10.

    u = z / |z|                     code = sign(u) / sqrt(d), 0 counts as -1
    commitment = mean over vectors of sum_i (u_i - sg[code_i])^2
    sample_entropy, codebook_entropy: of softmax_c(2 u.c / T) in groups of `entropy_bits` bits, SUMMED over the groups

All d bits are one id in the paper. int32 holds 31 of them, so ids come in groups of d / groups bits, big endian.

Facts that bite: the sign is estimated and then scaled, so that the gradient is 1 / sqrt(d) of the output's. Unlike
LFQ's, the commitment is a sum over channels and the entropies are sums over groups. With
entropy_bits = 1 both entropies are exact for independent bits ("analytical" in the original). The original normalises z
outside of its quantizer, and adds weights gamma0 sample - gamma codebook, times zeta T.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.quantize import binary
from zoo.quantize.common import Module, full_precision, id_counts, l2_normalize, masked_mean
from zoo.quantize.estimators import Estimator, StraightThrough
from zoo.types import Quantized


class BSQ(Module):
    """`dim` bits in `groups` ids.

    Args:
        dim: channels d.
        groups: ids q of a vector; d / groups is at most 31.
        l2_norm: False leaves z as it is, with codes -1 and +1.
        entropy_bits: bits of the groups in which entropies are taken.
        entropy: how.
        estimator: what the gradient is.
    """

    def __init__(
        self,
        dim: int,
        *,
        groups: int = 1,
        l2_norm: bool = True,
        entropy_bits: int = 1,
        entropy: binary.Entropy = binary.Entropy(temperature=1.0, epsilon=1e-8),
        estimator: Estimator = StraightThrough(),
    ):
        binary.check_divides(dim, groups, "BSQ's groups")
        binary.check_divides(dim, entropy_bits, "BSQ's entropy_bits")
        binary.check_bits(dim // groups, "BSQ")
        self.dim, self.groups = dim, groups
        self.l2_norm = l2_norm
        self.entropy_bits = entropy_bits
        self.entropy = entropy
        self.estimator = estimator

    @property
    def bits(self) -> int:
        return self.dim // self.groups

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (2**self.bits,) * self.groups

    @property
    def magnitude(self) -> float:
        """What a channel of a code is, up to its sign."""
        return self.dim**-0.5 if self.l2_norm else 1.0

    def __call__(
        self, z: Float[Array, "*b d"], *, mask: Bool[Array, "*b"] | None = None, key: PRNGKeyArray | None = None
    ) -> Quantized:
        """Quantizes z. Losses "commitment", "sample_entropy", "codebook_entropy"; stats "counts" [groups, 2^bits]."""
        z = self.continuous(z)
        ids = binary.to_ids((z > 0).reshape(*z.shape[:-1], self.groups, self.bits), True)
        q = self.lookup(ids)
        squared = jnp.sum((z - jax.lax.stop_gradient(q)) ** 2, -1, keepdims=True)
        grouped = z.reshape(*z.shape[:-1], -1, self.entropy_bits)
        sample, codebook = self.entropy(grouped, self.magnitude, mask)
        losses = {"commitment": masked_mean(squared, mask)}
        losses |= {"sample_entropy": jnp.sum(sample), "codebook_entropy": jnp.sum(codebook)}
        stats = id_counts(ids, 2**self.bits, mask)
        out = self.estimator(z, self._signs(ids), key=key) * self.magnitude
        return Quantized(z=out, ids=ids, losses=losses, stats=stats)

    def continuous(self, z: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """z as its signs are taken."""
        z = full_precision(z)
        return l2_normalize(z) if self.l2_norm else z

    def lookup(self, ids: Int[Array, "*b g"]) -> Float[Array, "*b d"]:
        """The codes of ids, bit-equal to the quantized z. Bits above the lowest d / groups do not count."""
        return self._signs(ids) * self.magnitude

    def _signs(self, ids: Int[Array, "*b g"]) -> Float[Array, "*b d"]:
        bits = binary.to_bits(ids, self.bits, True).reshape(*ids.shape[:-1], self.dim)
        return jnp.where(bits, 1, -1).astype(jnp.result_type(float))
