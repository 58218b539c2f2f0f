"""Losses of models that predict ids: cross entropy, masked prediction, next-token prediction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cross_entropy(logits: Float[Array, "*b k"], ids: Int[Array, "*b"], *, smoothing: float = 0.0) -> Float[Array, "*b"]:
    """-log softmax(logits)[id] in nats, float32; `smoothing` of the target is spread evenly over all k."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    chosen = -jnp.take_along_axis(log_p, ids[..., None], -1)[..., 0]
    return (1 - smoothing) * chosen - smoothing * jnp.mean(log_p, -1)


def prediction(logits: Float[Array, "*b k"], ids: Int[Array, "*b"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean cross entropy in nats, and how often the most likely id is right."""
    return jnp.mean(cross_entropy(logits, ids)), jnp.mean(jnp.argmax(logits, -1) == ids)


def masked_prediction(
    logits: Float[Array, "b n k"],
    ids: Int[Array, "b n"],
    mask: Bool[Array, "b n"],
    *,
    smoothing: float = 0.1,
    unmasked_weight: float = 0.1,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The loss of MaskGIT (Chang et al. 2022, arXiv:2202.04200) with TiTok's small weight on what was visible.

    Args:
        logits, ids: prediction and truth.
        mask: True where the model did not see the id; at least one in each row.
        smoothing: of the targets.
        unmasked_weight: of the other positions.

    Returns:
        The weighted mean of the cross entropies in nats, and the mean over rows of the accuracy under the mask.
    """
    weights = jnp.where(mask, 1.0, unmasked_weight)
    loss = jnp.sum(weights * cross_entropy(logits, ids, smoothing=smoothing)) / (jnp.sum(weights) + 1e-8)
    right = mask & (jnp.argmax(logits, -1) == ids)
    return loss, jnp.mean(jnp.sum(right, 1) / jnp.sum(mask, 1))


def next_token(logits: Float[Array, "b m k"], ids: Int[Array, "b n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`prediction` by the logits for ids 0..n-1; further logits do not count."""
    return prediction(logits[:, : ids.shape[1]], ids)


def random_order_probability(step: Int[Array, "*b"], start: int, end: int) -> Float[Array, "*b"]:
    """How often RAR shuffles the ids of an image: 1 until `start`, then linear to 0 at `end` (arXiv:2411.00776)."""
    return jnp.clip(1 - (step - start) / (end - start), 0.0, 1.0)
