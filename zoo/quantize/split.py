"""Split quantization: several quantizers of the same vectors, whose codes add up.

Mimi's split RVQ (Defossez et al. 2024, arXiv:2410.00037, section 3.3.3): a plain VQ that is distilled into a semantic
token, and in parallel a residual quantizer for the sound, each with projections of its own; the decoder gets the sum.

    output = sum_j quantize_j(z)        ids [..., q_1 + q_2 + ...]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.quantize.common import Module, gathered, joined_ids, split_keys
from zoo.types import Quantized


class Split(Module):
    """The sum of `branches`, each a quantizer of z. Losses are named "0/commitment", "1/commitment", ... by branch."""

    def __init__(self, branches: Sequence[Any]):
        self.branches = nnx.List(list(branches))

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return sum((branch.vocab_sizes for branch in self.branches), ())

    def __call__(
        self, z: Float[Array, "*b d"], *, mask: Bool[Array, "*b"] | None = None, key: PRNGKeyArray | None = None
    ) -> Quantized:
        keys = split_keys(key, len(self.branches))
        out = [branch(z, mask=mask, key=key) for branch, key in zip(self.branches, keys, strict=True)]
        total = out[0].z
        for branch in out[1:]:
            total = total + branch.z
        return Quantized(
            z=total,
            ids=joined_ids(out),
            losses={f"{i}/{name}": value for i, branch in enumerate(out) for name, value in branch.losses.items()},
            metrics={f"{i}/{name}": value for i, branch in enumerate(out) for name, value in branch.metrics.items()},
            **gathered("branches", out),
        )

    def lookup(self, ids: Int[Array, "*b q"]) -> Float[Array, "*b d"]:
        """The sum of the branches' codes; ids that end after any branch, or within a residual one, are a prefix."""
        total, start = jnp.zeros(()), 0
        for branch in self.branches:
            mine = ids[..., start : start + len(branch.vocab_sizes)]
            if mine.shape[-1] == 0:
                break
            start += mine.shape[-1]
            code = jax.lax.optimization_barrier(branch.lookup(mine))
            total = total + code if start > mine.shape[-1] else code
        return total

    def update(self, stats: dict[str, Any], samples: dict[str, Any]) -> dict[str, Any]:
        """Each branch's `update`."""
        both = stats["branches"], samples["branches"]
        return {"branches": {i: branch.update(both[0][i], both[1][i]) for i, branch in enumerate(self.branches)}}

    def initialize(self, z: Float[Array, "*b d"], *, key: Any = None, **options: Any) -> dict[str, Any]:
        """Each branch's `initialize`."""
        keys = split_keys(key, len(self.branches))
        new = {i: branch.initialize(z, key=keys[i], **options) for i, branch in enumerate(self.branches)}
        return {"branches": new}
