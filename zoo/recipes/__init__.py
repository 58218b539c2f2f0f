"""Training methods. A recipe says which nets there are and gives one loss per net; the weights of its terms live here.

build(rngs, dtype) -> {net: module}                     what is trained; "tokenizer" becomes the release
losses = {net: f(nets, batch, key, step) -> (loss, Aux)}  the step differentiates each by its own net
prepare(nets, batch, key, step) -> nets                 rare host-decided changes, e.g. a codebook from data
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
