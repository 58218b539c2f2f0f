"""Multi-scale residual quantization: coarse layers run at a fraction of the rate.

Siuzdak et al. 2024 (SNAC), arXiv:2410.14411, section 3.1.

    r_0 = z      q_i = repeat(quantize_i(average_pool(r_i, s_i)), s_i)      r_{i+1} = r_i - q_i      output = sum_i q_i

ids are [b, t, q] at the finest rate, each id of a layer of stride s repeated s times; `compact` and `spread` go between
them and one array per layer. t is a multiple of every stride. Fact that bites: unlike in `Residual`, the gradient of
later layers passes through the residual in SNAC's code; here it is stopped or not by `through`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.errors import InputError
from zoo.quantize.common import Module, assigned_copy, full_precision, gathered, split_keys
from zoo.types import Quantized


class MultiScale(Module):
    """Layers of quantizers of the same channels, each at its stride along the axis before the channels.

    Args:
        quantizers: the layers, coarsest first in SNAC.
        strides: of each.
        through: the residual lets gradients pass, as in SNAC's code.
    """

    def __init__(self, quantizers: Sequence[Any], strides: Sequence[int], *, through: bool = True):
        if len(quantizers) != len(strides):
            raise InputError(f"{len(quantizers)} quantizers and {len(strides)} strides: give one stride for each")
        self.quantizers = nnx.List(list(quantizers))
        self.strides = tuple(strides)
        self.through = through

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return sum((quantizer.vocab_sizes for quantizer in self.quantizers), ())

    def __call__(
        self, z: Float[Array, "*b t d"], *, mask: Bool[Array, "*b t"] | None = None, key: PRNGKeyArray | None = None
    ) -> Quantized:
        """Quantizes z. Losses are means over the layers. A pooled vector counts where any of its positions does, and is
        the mean of those that do."""
        keys = split_keys(key, len(self.strides))
        residual, out = full_precision(z), []
        total = jnp.zeros_like(residual)
        for quantizer, stride, key in zip(self.quantizers, self.strides, keys, strict=True):
            pooled, counted = pool(residual, stride, mask)
            quantized = quantizer(pooled, mask=counted, key=key)
            out.append(quantized)
            q = jnp.repeat(quantized.z, stride, -2)
            total = total + q
            residual = residual - (q if self.through else jax.lax.stop_gradient(q))
        return Quantized(
            z=total,
            ids=self.spread([jnp.asarray(layer.ids) for layer in out]),
            losses={name: jnp.mean(jnp.stack([layer.losses[name] for layer in out])) for name in out[0].losses},
            **gathered("quantizers", out),
        )

    def spread(self, ids: Sequence[Int[Array, "*b n q"]]) -> Int[Array, "*b t q"]:
        """One array per layer to one at the finest rate."""
        return jnp.concatenate([jnp.repeat(x, s, -2) for x, s in zip(ids, self.strides, strict=True)], -1)

    def compact(self, ids: Int[Array, "*b t q"]) -> list[Int[Array, "*b n q"]]:
        """The inverse of `spread`: every id once."""
        out, start = [], 0
        for quantizer, stride in zip(self.quantizers, self.strides, strict=True):
            stop = start + len(quantizer.vocab_sizes)
            out.append(ids[..., ::stride, start:stop])
            start = stop
        return out

    def lookup(self, ids: Int[Array, "*b t q"]) -> Float[Array, "*b t d"]:
        """The sum of the codes, bit-equal to the quantized z."""
        total = None
        for quantizer, stride, mine in zip(self.quantizers, self.strides, self.compact(ids), strict=True):
            code = jnp.repeat(jax.lax.optimization_barrier(quantizer.lookup(mine)), stride, -2)
            total = code if total is None else total + code
        assert total is not None
        return total

    def update(self, stats: dict[str, Any], samples: dict[str, Any]) -> dict[str, Any]:
        """Each layer's `update`."""
        both = stats["quantizers"], samples["quantizers"]
        return {"quantizers": {i: q.update(both[0][i], both[1][i]) for i, q in enumerate(self.quantizers)}}

    def initialize(self, z: Float[Array, "*b t d"], *, mask: Any = None, key: Any = None, **options: Any) -> dict:
        """Each layer's `initialize`, on what the initialised layers before it leave over."""
        keys = split_keys(key, len(self.strides))
        residual, new = full_precision(z), {}
        for i, (quantizer, stride) in enumerate(zip(self.quantizers, self.strides, strict=True)):
            pooled, counted = pool(residual, stride, mask)
            new[i] = quantizer.initialize(pooled, mask=counted, key=keys[i], **options)
            fresh = assigned_copy(quantizer, new[i])
            residual = residual - jnp.repeat(fresh(pooled).z, stride, -2)
        return {"quantizers": new}


def pool(z: Float[Array, "*b t d"], stride: int, mask: Bool[Array, "*b t"] | None) -> tuple[Array, Array | None]:
    """Means over `stride` positions, and which of them hold any that count."""
    if z.shape[-2] % stride:
        raise InputError(f"{z.shape[-2]} positions are no multiple of the stride {stride}: pad them")
    cut = z.reshape(*z.shape[:-2], -1, stride, z.shape[-1])
    if mask is None:
        return jnp.mean(cut, -2), None
    mask = mask.reshape(*mask.shape[:-1], -1, stride)
    weight = mask[..., None].astype(z.dtype)
    mean = jnp.sum(jnp.where(mask[..., None], cut, 0), -2) / jnp.maximum(jnp.sum(weight, -2), 1)
    return mean, jnp.any(mask, -1)
