"""Binary latents: a vector of independent bits, each its own token.

Instella-T2I (arXiv:2506.21022, section 3.1): the latent of a position is the sum of learned vectors of the bits that
are set, and has no codebook of 2^b entries.

    p = sigmoid(z)      bit = [p > 1/2], or a Bernoulli sample of p with a key      d bit / dz = dp / dz

Facts that bite: the values are 0 and 1, not -1 and +1; ids are the bits themselves, q = d and a vocabulary of 2 each.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.quantize.binary import bit_entropy
from zoo.quantize.common import Module, full_precision, id_counts, masked_mean
from zoo.quantize.estimators import Estimator, StraightThrough
from zoo.types import Quantized


class BinaryLatents(Module):
    """d bits of d logits.

    Args:
        bits: channels d.
        estimator: what the gradient is, from the probabilities on.
    """

    def __init__(self, bits: int, *, estimator: Estimator = StraightThrough()):
        self.bits = bits
        self.estimator = estimator

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (2,) * self.bits

    def __call__(
        self, z: Float[Array, "*b d"], *, mask: Bool[Array, "*b"] | None = None, key: PRNGKeyArray | None = None
    ) -> Quantized:
        """Bits of logits z. Loss "sample_entropy": nats per vector, small = confident; stats "counts" [d, 2]."""
        z = full_precision(z)
        p = jax.nn.sigmoid(z)
        ids = (z > 0 if key is None else jax.random.uniform(key, z.shape, z.dtype) < p).astype(jnp.int32)
        entropy = masked_mean(jnp.sum(bit_entropy(z), -1, keepdims=True), mask)
        out = self.estimator(p, self.lookup(ids))
        return Quantized(z=out, ids=ids, losses={"sample_entropy": entropy}, stats=id_counts(ids, 2, mask))

    def lookup(self, ids: Int[Array, "*b d"]) -> Float[Array, "*b d"]:
        """0.0 and 1.0, bit-equal to the quantized z; any id but 0 is 1."""
        return (ids != 0).astype(jnp.result_type(float))
