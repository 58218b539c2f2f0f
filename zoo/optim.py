"""Optimizers, learning rates and the decay of averaged parameters."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Linear warm-up and cosine decay. Weight decay spares biases, norms, embeddings and codebooks.

    Attributes:
        name: "adamw", or "muon" (Jordan et al. 2024) for the matrices inside transformer blocks and AdamW at
            `adam_share` of the rate for all other leaves.
        lr: peak learning rate.
        end_lr: at the last step.
        warmup: steps from 0 to lr.
        betas: of Adam.
        weight_decay: decoupled.
        clip: global gradient norm.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-4
    adam_share: float = 0.15
    end_lr: float = 1e-5
    warmup: int = 1000
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    clip: float = 1.0

    def schedule(self, steps: int) -> optax.Schedule:
        """The learning rate at update 0, 1, ... of `steps`."""
        return warmup_cosine(self.lr, self.end_lr, self.warmup, steps)

    def build(self, steps: int) -> optax.GradientTransformation:
        """Clipping, then the optimizer on its schedule over `steps` updates."""
        rate = self.schedule(steps)
        if self.name == "muon":
            tx = optax.contrib.muon(
                rate,
                adam_b1=self.betas[0],
                adam_b2=self.betas[1],
                adam_learning_rate=lambda step: self.adam_share * rate(step),
                weight_decay=self.weight_decay,
                muon_weight_dimension_numbers=_matrices,
            )
        else:
            tx = optax.adamw(rate, *self.betas, weight_decay=self.weight_decay, mask=_decays)
        return optax.chain(optax.clip_by_global_norm(self.clip), tx)


def warmup_cosine(lr: float, end_lr: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear from 0 to `lr` over `warmup` steps, then a cosine to `end_lr` at `steps`, and no further."""
    return optax.warmup_cosine_decay_schedule(0.0, lr, min(warmup, steps - 1), steps, end_lr)


def ema_decay(update: Any, decay: float) -> jax.Array:
    """Decay of the average at its update 0, 1, ...: min(decay, (1 + u) / (10 + u)), but the first one copies."""
    update = jnp.asarray(update)
    return jnp.where(update > 0, jnp.minimum(decay, (1 + update) / (10 + update)), 0.0)


def _name_of(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _decays(params: Any) -> Any:
    def decay(path: Any, _: Any) -> bool:
        return _name_of(path).endswith("kernel") and "embed" not in _name_of(path)

    return jax.tree_util.tree_map_with_path(decay, params)


def _matrices(params: Any) -> Any:
    """Axes of the stacked kernels [layer, in, out]; None is left to AdamW."""

    def axes(path: Any, leaf: Any) -> Any:
        inside = "blocks" in _name_of(path) and _name_of(path).endswith("kernel")
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if inside else None

    return jax.tree_util.tree_map_with_path(axes, params)
