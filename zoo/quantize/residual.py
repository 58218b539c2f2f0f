"""Residual quantization: each layer quantizes what the ones before left over.

Juang and Gray 1982; Zeghidour et al. 2021 (SoundStream), arXiv:2107.03312, algorithm 1.

    r_0 = z      q_i = quantize_i(r_i)      r_{i+1} = r_i - sg[q_i]      output = sum_i q_i

Quantizer dropout in training (SoundStream, section III-C): only the first n layers of a randomly drawn n run, so that
any prefix of the ids decodes. Facts that bite: the estimator acts within each layer, so that their gradients add up, or
once around the sum (`estimator`, as in Mimi); losses are means over the layers, where some originals add them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.quantize.common import Module, assigned_copy, full_precision, gathered, joined_ids, split_keys
from zoo.quantize.estimators import Estimator
from zoo.quantize.fsq import FSQ
from zoo.quantize.lfq import LFQ
from zoo.types import Quantized


@dataclasses.dataclass(frozen=True)
class QuantizerDropout:
    """How many layers run in training; drawn with the call's key.

    Attributes:
        least: the smallest number.
        multiple_of: drawn numbers are rounded up to a multiple of this, at most all layers (EnCodec's bandwidths).
        per_item: one number for each item of the first axis; else one for the batch.
        share: of the items that are drawn; the others get all layers (DAC: 0.5 per item).
    """

    least: int = 1
    multiple_of: int = 1
    per_item: bool = False
    share: float = 1.0

    def draw(self, key: PRNGKeyArray, items: int, layers: int) -> Int[Array, "*n"]:
        """The number of layers: a scalar, or one per item."""
        draw, choose = jax.random.split(key)
        shape = (items,) if self.per_item else ()
        number = jax.random.randint(draw, shape, self.least, layers + 1)
        number = jnp.minimum(-(-number // self.multiple_of) * self.multiple_of, layers)
        return jnp.where(jax.random.uniform(choose, shape) < self.share, number, layers)


class Residual(Module):
    """Layers of any quantizers of the same channels. ids [..., q]: the layers' ids after each other.

    An id of -1 stands for a dropped layer and is looked up as zeros.

    Args:
        quantizers: the layers; or one of them for `layers` layers, which then share its codebook.
        layers: how often a single quantizer is used.
        dropout: quantizer dropout, in calls with a key.
        estimator: around the sum, instead of within the layers.
        through: the residual lets gradients pass, as in DAC's code.
    """

    def __init__(
        self,
        quantizers: Sequence[Any],
        *,
        layers: int | None = None,
        dropout: QuantizerDropout | None = None,
        estimator: Estimator | None = None,
        through: bool = False,
    ):
        self.quantizers = nnx.List(list(quantizers))
        self.shared = layers is not None
        self.layers = layers or len(quantizers)
        self.dropout = dropout
        self.estimator = estimator
        self.through = through

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return sum((self.layer(i).vocab_sizes for i in range(self.layers)), ())

    def layer(self, index: int) -> Any:
        return self.quantizers[0 if self.shared else index]

    def __call__(
        self, z: Float[Array, "*b d"], *, mask: Bool[Array, "*b"] | None = None, key: PRNGKeyArray | None = None
    ) -> Quantized:
        """Quantizes z. Losses are means over the layers that run."""
        number = None
        if self.dropout and key is not None:
            key, draw = jax.random.split(key)
            number = self.dropout.draw(draw, z.shape[0], self.layers)
        return self.collect(z, self.each(z, mask=mask, number=number, key=key), number)

    def each(
        self,
        z: Float[Array, "*b d"],
        *,
        mask: Bool[Array, "*b"] | None = None,
        number: int | Int[Array, "*n"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> list[Quantized]:
        """What every layer gives, dropped ones as zeros with ids -1.

        Args:
            z: the vectors.
            mask: which of them count.
            number: layers that run: one number, or one per item of the first axis; None: all.
            key: for the layers.
        """
        keys = split_keys(key, self.layers)
        residual, out = full_precision(z), []
        for i in range(self.layers):
            runs = None if number is None else jnp.asarray(i < number).reshape(-1, *(1,) * (z.ndim - 2))
            runs = None if runs is None else jnp.broadcast_to(runs, z.shape[:-1])
            counted = mask if runs is None else runs if mask is None else runs & mask
            quantized = self.layer(i)(residual, mask=counted, key=keys[i])
            if runs is not None:
                quantized = _dropped(quantized, runs)
            residual = residual - (quantized.z if self.through else jax.lax.stop_gradient(quantized.z))
            out.append(quantized)
        return out

    def collect(self, z: Float[Array, "*b d"], layers: list[Quantized], number: Any = None) -> Quantized:
        """The sum of the layers' codes, and what goes with it."""
        ran = jnp.asarray(self.layers) if number is None else jnp.maximum(jnp.max(jnp.asarray(number)), 1)
        total = jnp.zeros_like(layers[0].z)
        for layer in layers:
            total = total + layer.z
        if self.estimator:
            total = self.estimator(full_precision(z), jax.lax.stop_gradient(total))
        return Quantized(
            z=total,
            ids=joined_ids(layers),
            losses={name: sum(layer.losses[name] for layer in layers) / ran for name in layers[0].losses},
            metrics={name: sum(layer.metrics[name] for layer in layers) / ran for name in layers[0].metrics},
            **gathered("layers", layers),
        )

    def lookup(self, ids: Int[Array, "*b q"]) -> Float[Array, "*b d"]:
        """The sum of the codes, bit-equal to the quantized z; fewer ids than layers are a prefix."""
        codes = self.codes(ids)
        total = jnp.zeros_like(codes[0])
        for code in codes:
            total = total + code
        return total

    def codes(self, ids: Int[Array, "*b q"]) -> list[Float[Array, "*b d"]]:
        """Each layer's code vectors, zeros where an id is -1."""
        out, start = [], 0
        for i in range(self.layers):
            mine = ids[..., start : start + len(self.layer(i).vocab_sizes)]
            if mine.shape[-1] == 0:
                break
            start += mine.shape[-1]
            dropped = mine[..., :1] < 0
            # The barrier keeps the compiler from fusing a layer's last product with the sum, which rounds otherwise.
            code = jax.lax.optimization_barrier(self.layer(i).lookup(jnp.where(dropped, 0, mine)))
            out.append(jnp.where(dropped, 0, code))
        return out

    def update(self, stats: dict[str, Any], samples: dict[str, Any]) -> dict[str, Any]:
        """Each layer's `update`; a shared codebook's averages move once per layer, and its codes at the end."""
        uses = [(stats["layers"][i], samples["layers"][i]) for i in range(self.layers)]
        if self.shared:
            uses = [jax.tree.map(lambda *parts: jnp.concatenate(parts), *uses)]
        return {"quantizers": {i: q.update(*uses[i]) for i, q in enumerate(self.quantizers)}}

    def initialize(
        self, z: Float[Array, "*b d"], *, mask: Any = None, key: Any = None, **options: Any
    ) -> dict[str, Any]:
        """Each layer's `initialize`, on what the initialised layers before it leave over."""
        keys = split_keys(key, len(self.quantizers))
        residual, new = full_precision(z), {}
        for i, quantizer in enumerate(self.quantizers):
            new[i] = quantizer.initialize(residual, mask=mask, key=keys[i], **options)
            fresh = assigned_copy(quantizer, new[i])
            residual = residual - jax.lax.stop_gradient(fresh(residual).z)
        return {"quantizers": new}


def _dropped(quantized: Quantized, runs: Bool[Array, "*b"]) -> Quantized:
    """Zeros and ids -1 where a layer does not run."""
    assert quantized.ids is not None
    some = jnp.any(runs)
    return dataclasses.replace(
        quantized,
        z=jnp.where(runs[..., None], quantized.z, 0),
        ids=jnp.where(runs[..., None], quantized.ids, -1),
        losses={name: jnp.where(some, value, 0) for name, value in quantized.losses.items()},
    )


def residual_fsq(levels: Sequence[int], layers: int, **options: Any) -> Residual:
    """FSQ layers, each on a grid finer by the number of levels (after arXiv:2411.19842): symmetric, with a hard clamp.

    Bound z first, with SoftClamp(limit=[1 + 1 / (L - 1) for L in levels]).
    """
    rngs = nnx.Rngs(0)
    quantizers = [
        FSQ(levels, symmetric=True, clamp="hard", scale=(np.asarray(levels, np.float32) ** -i).tolist(), rngs=rngs)
        for i in range(layers)
    ]
    return Residual(quantizers, **options)


def residual_lfq(bits: int, layers: int, *, dropout: QuantizerDropout | None = None, **options: Any) -> Residual:
    """LFQ layers, each with half the scale of the one before. `options` are of LFQ."""
    rngs = nnx.Rngs(0)
    return Residual([LFQ(1, bits, scale=2.0**-i, rngs=rngs, **options) for i in range(layers)], dropout=dropout)
