"""SimVQ: a codebook that is a learned transform of a frozen random one, so that every code moves at every step.

Zhu et al. 2024, arXiv:2411.02038, equation 6.

    codes = transform(frozen)         frozen_k ~ N(0, 1 / d)         only the transform learns
    id = argmin_k |z - codes_k|^2     commitment and codebook losses as in VQ

Facts that bite: the original weighs the commitment 0.25 against the codebook loss; both are taken in evaluation too.
The whole codebook is computed at each call, in `lookup` as well: fold it into a VQ where that is too slow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from zoo.quantize.common import CodebookState, full_precision
from zoo.quantize.vq import VQ


class SimVQ(VQ):
    """VQ whose codes are `transform(frozen)`.

    Args:
        frozen_dim: channels of the frozen codebook; `dim` if None.
        transform: builds the module from an nnx.Rngs; a linear layer without bias if None.
        **options: of VQ.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        frozen_dim: int | None = None,
        transform: Callable[[nnx.Rngs], nnx.Module] | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(vocab_size, dim, rngs=rngs, **options)
        del self.codebook
        frozen_dim = frozen_dim or dim
        self.frozen = CodebookState(jax.random.normal(rngs.params(), (vocab_size, frozen_dim)) * frozen_dim**-0.5)
        build = transform or (lambda rngs: nnx.Linear(frozen_dim, dim, use_bias=False, rngs=rngs))
        self.transform = build(rngs)

    def codes(self) -> Float[Array, "k d"]:
        return self._normalize(self.transform(full_precision(self.frozen[...])))  # pyright: ignore[reportCallIssue]

    def initialize(self, z: Array, **options: Any) -> dict[str, Array]:
        return {}  # the frozen codebook is random by design
