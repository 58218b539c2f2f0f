"""Continuous latents: a diagonal Gaussian per token (Kingma & Welling 2013, arXiv:1312.6114).

The encoder gives [mean | logvar] along the channels, logvar clamped to [-30, 20].

    z = mean + exp(logvar / 2) * noise      KL = 1/2 sum (mean^2 + exp(logvar) - 1 - logvar)

Fact that bites: "kl" is summed over all tokens and channels of a sample and averaged over the batch (as in TiTok and
latent diffusion), so published weights such as 1e-6 are per sample, not per value.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from zoo.quantize.common import full_precision
from zoo.types import Quantized


def split_moments(h: Float[Array, "*b d2"]) -> tuple[Float[Array, "*b d"], Float[Array, "*b d"]]:
    """[mean | logvar] -> mean, clamped logvar."""
    mean, logvar = jnp.split(full_precision(h), 2, -1)
    return mean, jnp.clip(logvar, -30.0, 20.0)


def kl_divergence(mean: Float[Array, "*b d"], logvar: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """KL to the standard normal in nats, summed over channels."""
    return 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1.0 - logvar, -1)


class DiagonalGaussian(nnx.Module):
    """The mean without a key, a sample with one. `h` is [b, t, 2 d]."""

    def __call__(
        self,
        h: Float[Array, "b t d2"],
        *,
        mask: Bool[Array, "b t"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Quantized:
        mean, logvar = split_moments(h)
        kl = kl_divergence(mean, logvar)
        kl = jnp.sum(kl if mask is None else jnp.where(mask, kl, 0)) / h.shape[0]
        z = mean if key is None else self.sample(h, jax.random.normal(key, mean.shape, mean.dtype))
        return Quantized(z=z, losses={"kl": kl})

    def sample(self, h: Float[Array, "b t d2"], noise: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """mean + standard deviation * noise."""
        mean, logvar = split_moments(h)
        return mean + jnp.exp(0.5 * logvar) * noise

    def continuous(self, h: Float[Array, "b t d2"]) -> Float[Array, "b t d"]:
        """The mean, without noise."""
        return split_moments(h)[0]
