"""Training methods: which nets there are, and one loss per net. The weights of the terms live here.

    build(rngs, dtype) -> {net: module}                      what is trained; "tokenizer" becomes the release
    losses() = {net: f(nets, batch, key, step) -> (loss, Aux)}   the step differentiates each by its own net
    prepare_at(step) -> bool                                 whether `prepare` runs before this step
    prepare(nets, batch, key, step, counts)                  rare changes in place, e.g. a codebook from data

See zoo/recipes/reconstruction.py for the plainest one.
"""

from __future__ import annotations

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Aux:
    """Beside a loss: `metrics` are scalars to log (averaged over accumulation), `stats` are sums over the batch."""

    metrics: dict[str, jax.Array]
    stats: dict[str, jax.Array]
