"""Lookup-free quantization: each channel becomes its sign, and `bits` signs are one id.

Yu et al. 2023 (MAGVIT-v2), arXiv:2310.05737; in groups: WeTok, arXiv:2508.05599, and Open-MAGVIT2, arXiv:2409.04410.

    code = +scale where z > 0, else -scale (0 too)
    id   = sum_i 2^i [code_i > 0]                   i counts from the group's first channel
    commitment = mean (z - sg[code])^2
    sample_entropy   = mean over vectors and groups of H(softmax_c(2 z.c / T)): small = confident
    codebook_entropy = H(the mean of that softmax): large = all codes used; a recipe gives it a negative weight

Facts that bite: WeTok and Open-MAGVIT2 count bits from the first channel (little endian) although their comments say
otherwise, vector-quantize-pytorch from the last (`big_endian`). WeTok pools the codebook entropy over groups, contrary
to its paper. Where |z| is large against T the softmax is one-hot and the entropies have no gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.quantize import binary
from zoo.quantize.common import CodebookState, Module, full_precision, id_counts, l2_normalize, mean_squared
from zoo.quantize.estimators import Estimator, StraightThrough
from zoo.types import Quantized


class LFQ(Module):
    """`groups` codebooks of 2^`bits` sign vectors; z has groups * bits channels, group after group.

    Args:
        groups: codebooks q.
        bits: channels of each.
        scale: the codes are -scale and +scale.
        big_endian: a group's first channel is its id's most significant bit.
        spherical: a group's vector is normalised before, and its code after, to length `scale` (BSQ as a form of LFQ).
        rotate: a fixed random rotation of each group before, and back after (arXiv:2307.13304).
        entropy: how the entropies are taken; None: not at all.
        estimator: what the gradient is.
    """

    def __init__(
        self,
        groups: int,
        bits: int,
        *,
        scale: float = 1.0,
        big_endian: bool = False,
        spherical: bool = False,
        rotate: bool = False,
        entropy: binary.Entropy | None = binary.Entropy(),
        estimator: Estimator = StraightThrough(),
        rngs: nnx.Rngs,
    ):
        binary.check_bits(bits, "LFQ")
        if rotate:
            self.rotation = CodebookState(jax.random.orthogonal(rngs.params(), bits))
        self.groups, self.bits = groups, bits
        self.scale = scale
        self.big_endian = big_endian
        self.spherical = spherical
        self.rotate = rotate
        self.entropy = entropy
        self.estimator = estimator

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (2**self.bits,) * self.groups

    @property
    def magnitude(self) -> float:
        """What a channel of a code is, up to its sign."""
        return self.scale * self.bits**-0.5 if self.spherical else self.scale

    def __call__(
        self, z: Float[Array, "*b d"], *, mask: Bool[Array, "*b"] | None = None, key: PRNGKeyArray | None = None
    ) -> Quantized:
        """Quantizes z. Losses "commitment", "sample_entropy", "codebook_entropy"; stats "counts" [groups, 2^bits]."""
        z = self.continuous(z)
        ids = binary.to_ids(z > 0, self.big_endian)
        q = self._codes(ids)
        losses = {"commitment": mean_squared(z, jax.lax.stop_gradient(q), None if mask is None else mask[..., None])}
        if self.entropy:
            sample, codebook = self.entropy(z, self.magnitude, mask)
            losses |= {"sample_entropy": jnp.mean(sample), "codebook_entropy": jnp.mean(codebook)}
        out = self._outside(self.estimator(z, q, key=key))
        return Quantized(z=out, ids=ids, losses=losses, stats=id_counts(ids, 2**self.bits, mask))

    def continuous(self, z: Float[Array, "*b d"]) -> Float[Array, "*b g n"]:
        """z as its signs are taken: in groups, rotated and normalised."""
        z = full_precision(z)
        z = z.reshape(*z.shape[:-1], self.groups, self.bits)
        z = z @ self.rotation[...] if self.rotate else z
        return self.scale * l2_normalize(z) if self.spherical else z

    def _codes(self, ids: Int[Array, "*b g"]) -> Float[Array, "*b g n"]:
        signs = jnp.where(binary.to_bits(ids, self.bits, self.big_endian), 1, -1)
        return signs.astype(jnp.result_type(float)) * self.magnitude

    def _outside(self, q: Float[Array, "*b g n"]) -> Float[Array, "*b d"]:
        q = q @ self.rotation[...].T if self.rotate else q
        return q.reshape(*q.shape[:-2], -1)

    def lookup(self, ids: Int[Array, "*b g"]) -> Float[Array, "*b d"]:
        """The codes of ids, bit-equal to the quantized z. Bits above the lowest `bits` do not count."""
        return self._outside(self._codes(ids))
