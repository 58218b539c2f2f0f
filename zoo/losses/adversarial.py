"""Adversarial losses: of a discriminator, of the generator that it judges, and LeCAM regularisation.

Logits may have any shape; every loss is their mean, float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LECAM_DECAY = 0.999


def hinge(real: Float[Array, "*r"], fake: Float[Array, "*f"]) -> Float[Array, ""]:
    """Discriminator loss 0.5 (mean max(0, 1 - real) + mean max(0, 1 + fake)); Lim and Ye 2017, arXiv:1705.02894."""
    return 0.5 * (_mean(jax.nn.relu(1 - real)) + _mean(jax.nn.relu(1 + fake)))


def non_saturating(real: Float[Array, "*r"], fake: Float[Array, "*f"]) -> Float[Array, ""]:
    """Discriminator loss 0.5 (mean softplus(-real) + mean softplus(fake)); Goodfellow et al. 2014, arXiv:1406.2661."""
    return 0.5 * (_mean(jax.nn.softplus(-real)) + _mean(jax.nn.softplus(fake)))


def generator_hinge(fake: Float[Array, "*f"]) -> Float[Array, ""]:
    """Generator loss that goes with `hinge`: -mean fake."""
    return -_mean(fake)


def generator_non_saturating(fake: Float[Array, "*f"]) -> Float[Array, ""]:
    """Generator loss that goes with `non_saturating`: mean softplus(-fake)."""
    return _mean(jax.nn.softplus(-fake))


def lecam(real: Float[Array, "*r"], fake: Float[Array, "*f"], averages: Float[Array, 2]) -> Float[Array, ""]:
    """LeCAM regularisation of a discriminator on little data; Tseng et al. 2021, arXiv:2104.03310.

        max(0, mean real - average fake)^2 + max(0, average real - mean fake)^2

    Args:
        real, fake: logits.
        averages: moving averages of the mean logits, (real, fake), before this step.
    """
    return jax.nn.relu(_mean(real) - averages[1]) ** 2 + jax.nn.relu(averages[0] - _mean(fake)) ** 2


def lecam_averages(averages: Float[Array, 2], real: Float[Array, ""], fake: Float[Array, ""]) -> Float[Array, 2]:
    """The averages after a step whose mean logits were `real` and `fake`."""
    return LECAM_DECAY * averages + (1 - LECAM_DECAY) * jnp.stack([real, fake])


def _mean(x: Array) -> Array:
    return jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
