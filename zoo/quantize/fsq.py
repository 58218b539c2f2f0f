"""Finite scalar quantization: each channel is bounded and rounded to a few levels.

Mentzer et al. 2023, arXiv:2309.15505, listing 1; symmetric form: Parker et al. 2024, arXiv:2411.19842, section 3.2.

    h = (L - 1)(1 + 1e-3) / 2     o = 1/2 for even L, else 0     s = atanh(o / h)
    code = round(tanh(z + s) h - o) / floor(L / 2)                                     half to even
    symmetric: code = 2 / (L - 1) floor((L - 1)(tanh(z) + 1) / 2 + 1/2) - 1
    id = sum_i level_i prod_{j < i} L_j                                                the first channel is the fastest

There is no loss and no codebook to learn. Facts that bite: with an even L the plain form has codes from -1 to
1 - 2 / L; the gradient is that of tanh and vanishes for large |z|; L = 2 works in the symmetric form only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.errors import InputError
from zoo.quantize.common import CodebookState, Module, full_precision, id_counts, levels_of, place_values
from zoo.quantize.estimators import Estimator, StraightThrough
from zoo.types import Quantized


class FSQ(Module):
    """`groups` codebooks of prod(levels) codes; z has groups * len(levels) channels, group after group.

    Args:
        levels: L of each channel of a group; 2 or more, 3 or more in the plain form.
        groups: codebooks q.
        symmetric: codes from -1 to 1 for even L too.
        clamp: the bound: "tanh", or "hard", a clamp to [-1, 1] (for inputs that are bounded before).
        rotate: a fixed random rotation of each group before, and back after (arXiv:2307.13304).
        scale: z is divided by it before all else and multiplied after: one number, or one per channel of a group.
        estimator: what the gradient is, from the bounded z on.
    """

    def __init__(
        self,
        levels: Sequence[int],
        *,
        groups: int = 1,
        symmetric: bool = False,
        clamp: Literal["tanh", "hard"] = "tanh",
        rotate: bool = False,
        scale: float | Sequence[float] = 1.0,
        estimator: Estimator = StraightThrough(),
        rngs: nnx.Rngs,
    ):
        self.levels = tuple(int(level) for level in levels)
        least = 2 if symmetric else 3
        if not self.levels or min(self.levels) < least or math.prod(self.levels) >= 2**31:
            raise InputError(
                f"levels {self.levels}: give at least one, each {least} or more (2 only if symmetric), with a product "
                "below 2^31"
            )
        if rotate:
            self.rotation = CodebookState(jax.random.orthogonal(rngs.params(), len(self.levels)))
        self.groups = groups
        self.symmetric = symmetric
        self.clamp = clamp
        self.rotate = rotate
        self.scale = scale if isinstance(scale, float | int) else tuple(scale)
        self.estimator = estimator

    @property
    def vocab_size(self) -> int:
        return math.prod(self.levels)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.vocab_size,) * self.groups

    def __call__(
        self, z: Float[Array, "*b d"], *, mask: Bool[Array, "*b"] | None = None, key: PRNGKeyArray | None = None
    ) -> Quantized:
        """Quantizes z. No losses; stats "counts" [groups, vocab] up to 2^20 codes."""
        bounded, level = self._levels(z)
        q = self._codes(level)
        ids = jnp.sum(level.astype(jnp.int32) * place_values(self.levels), -1, dtype=jnp.int32)
        out = self._outside(self.estimator(bounded, q, key=key))
        return Quantized(z=out, ids=ids, stats=id_counts(ids, self.vocab_size, mask))

    def _levels(self, z: Float[Array, "*b d"]) -> tuple[Float[Array, "*b g n"], Float[Array, "*b g n"]]:
        """The bounded z in the unit of codes, and the level of each channel, 0 to L - 1."""
        z = full_precision(z)
        z = z.reshape(*z.shape[:-1], self.groups, len(self.levels))
        z = z / self._scale(z.dtype)
        z = z @ self.rotation[...] if self.rotate else z
        bound = jnp.tanh if self.clamp == "tanh" else lambda x: jnp.clip(x, -1, 1)
        levels = np.asarray(self.levels)
        if self.symmetric:
            bounded = bound(z)
            return bounded, self._valid(jnp.floor((levels - 1) * (bounded + 1) / 2 + 0.5))
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0)
        shift = np.arctanh(offset / half) if self.clamp == "tanh" else offset / half
        bounded = bound(z + shift.astype(z.dtype)) * half.astype(z.dtype) - offset.astype(z.dtype)
        return bounded / (levels // 2), self._valid(jnp.round(bounded) + levels // 2)

    def _valid(self, level: Array) -> Array:
        """NaN becomes level 0, so that ids stay in their range."""
        return jnp.clip(jnp.where(jnp.isnan(level), 0, level), 0, np.asarray(self.levels) - 1)

    def _scale(self, dtype: jnp.dtype) -> Array:
        return jnp.asarray(self.scale, dtype)

    def _codes(self, level: Float[Array, "*b g n"]) -> Float[Array, "*b g n"]:
        """In the unit of codes, before scale and rotation."""
        levels = np.asarray(self.levels)
        level = jnp.asarray(level, jnp.result_type(float))
        if self.symmetric:
            return (2 * level - (levels - 1)) / (levels - 1)
        return (level - levels // 2) / (levels // 2)

    def _outside(self, q: Float[Array, "*b g n"]) -> Float[Array, "*b d"]:
        q = q @ self.rotation[...].T if self.rotate else q
        q = q * self._scale(q.dtype)
        return q.reshape(*q.shape[:-2], -1)

    def levels_of(self, ids: Int[Array, "*b g"]) -> Int[Array, "*b g n"]:
        """The level of each channel, for heads that predict channels one by one."""
        return levels_of(ids[..., None], self.levels)

    def lookup(self, ids: Int[Array, "*b g"]) -> Float[Array, "*b d"]:
        """The codes of ids, bit-equal to the quantized z. Ids past the end wrap around."""
        return self._outside(self._codes(self.levels_of(ids)))
