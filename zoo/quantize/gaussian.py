"""Continuous latents: a diagonal Gaussian per token (Kingma & Welling 2013, arXiv:1312.6114), or the mean with noise of
a variance that is not learned (sigma-VAE, Sun et al. 2024, arXiv:2412.08635, section 3.2), or the encoder's output,
standardised.

The encoder gives [mean | logvar] along the channels, logvar clamped to [-30, 20].

    z = mean + exp(logvar / 2) * noise      KL = 1/2 sum (mean^2 + exp(logvar) - 1 - logvar)

Fact that bites: "kl" is summed over all tokens and channels of a sample and averaged over the batch (as in TiTok and
latent diffusion), so published weights such as 1e-6 are per sample, not per value.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.errors import InputError
from zoo.quantize.common import Module, full_precision, masked_mean
from zoo.types import Quantized


def split_moments(h: Float[Array, "*b d2"]) -> tuple[Float[Array, "*b d"], Float[Array, "*b d"]]:
    """[mean | logvar] -> mean, clamped logvar."""
    mean, logvar = jnp.split(full_precision(h), 2, -1)
    return mean, jnp.clip(logvar, -30.0, 20.0)


def kl_divergence(mean: Float[Array, "*b d"], logvar: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """KL to the standard normal in nats, summed over channels."""
    return 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1.0 - logvar, -1)


class Continuous(Module):
    """A quantizer without ids."""

    vocab_sizes: tuple[int, ...] = ()

    def lookup(self, ids: Int[Array, "*b q"]) -> Float[Array, "*b d"]:
        raise InputError(f"{type(self).__name__} is continuous: it has no ids to look up")


class DiagonalGaussian(Continuous):
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


class SigmaGaussian(Continuous):
    """z without a key; with one, z plus noise whose standard deviation is drawn for each item as |N(0, sigma^2)|, so
    that the decoder learns a range of noise and the latents cannot collapse.

    Args:
        sigma: 0.75 in the paper.
    """

    def __init__(self, sigma: float = 0.75):
        self.sigma = sigma

    def __call__(
        self, z: Float[Array, "*b d"], *, mask: Bool[Array, "*b"] | None = None, key: PRNGKeyArray | None = None
    ) -> Quantized:
        """Loss "norm", the mean of z^2 over values: half of it is the KL term up to a constant."""
        z = full_precision(z)
        losses = {"norm": masked_mean(z * z, mask)}
        if key is None:
            return Quantized(z=z, losses=losses)
        deviation, noise = jax.random.split(key)
        scale = self.sigma * jnp.abs(jax.random.normal(deviation, (z.shape[0], *(1,) * (z.ndim - 1)), z.dtype))
        return Quantized(z=z + scale * jax.random.normal(noise, z.shape, z.dtype), losses=losses)


class Standardized(Continuous):
    """(z - mean) / deviation, for latents that a generator should see with unit variance; `raw` goes back.

    Args:
        mean, deviation: of each channel, or one number for all.
    """

    def __init__(self, mean: float | Sequence[float] = 0.0, deviation: float | Sequence[float] = 1.0):
        self.mean = mean if isinstance(mean, float | int) else tuple(mean)
        self.deviation = deviation if isinstance(deviation, float | int) else tuple(deviation)

    def __call__(
        self, z: Float[Array, "*b d"], *, mask: Bool[Array, "*b"] | None = None, key: PRNGKeyArray | None = None
    ) -> Quantized:
        z = full_precision(z)
        return Quantized(z=(z - jnp.asarray(self.mean, z.dtype)) / jnp.asarray(self.deviation, z.dtype))

    def raw(self, z: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The inverse."""
        return z * jnp.asarray(self.deviation, z.dtype) + jnp.asarray(self.mean, z.dtype)
