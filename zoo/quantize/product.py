"""Several codebooks side by side: channels in groups, each with its own codebook, or all with one.

Product quantization: Jegou, Douze and Schmid 2011, IEEE TPAMI 33(1). Groups of residual quantizers are HiFi-Codec's
(Yang et al. 2023, arXiv:2305.02765).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.errors import InputError
from zoo.quantize.common import Module, counts_of
from zoo.types import Quantized


class Product(Module):
    """`groups` equal quantizers, each of its share of the channels, run as one: `each` has a leading group axis.

    ids [..., groups * q] hold the first group's ids, then the second's, ...

    Args:
        make: builds the quantizer of one group from an nnx.Rngs.
        groups: how many.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], groups: int, *, rngs: nnx.Rngs):
        graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        keys = jax.random.split(rngs.params(), groups)
        self.each: Any = nnx.merge(graph, jax.vmap(lambda key: nnx.state(make(nnx.Rngs(key))))(keys))
        self.groups = groups

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return self.each.vocab_sizes * self.groups

    def map(self, call: Callable[..., Any], *args: Any) -> Any:
        """call(quantizer of a group, group's args) for all groups."""
        graph, state = nnx.split(self.each)
        return jax.vmap(lambda state, *args: call(nnx.merge(graph, state), *args))(state, *args)

    def __call__(
        self, z: Float[Array, "*b d"], *, mask: Bool[Array, "*b"] | None = None, key: PRNGKeyArray | None = None
    ) -> Quantized:
        """Quantizes each group. Losses and metrics are means over the groups."""
        keys = None if key is None else jax.random.split(key, self.groups)
        return self.side_by_side(self.map(lambda q, z, key: q(z, mask=mask, key=key), self.split(z), keys))

    def side_by_side(self, out: Quantized) -> Quantized:
        """What the groups gave, with a leading group axis, as one."""
        average = lambda values: jax.tree.map(lambda x: jnp.mean(x, 0), values)  # noqa: E731
        stats = {"each": out.stats}
        if "counts" in out.stats:
            stats["counts"] = out.stats["counts"].reshape(-1, out.stats["counts"].shape[-1])
        return Quantized(
            z=join(out.z),
            ids=join(jnp.asarray(out.ids)),
            losses=average(out.losses),
            metrics=average(out.metrics),
            stats=stats,
            samples={"each": out.samples},
        )

    def split(self, x: Array) -> Array:
        """[..., groups * c] to [groups, ..., c]."""
        if x.shape[-1] % self.groups:
            raise InputError(f"{x.shape[-1]} channels cannot be split into {self.groups} groups")
        return jnp.moveaxis(x.reshape(*x.shape[:-1], self.groups, -1), -2, 0)

    def lookup(self, ids: Int[Array, "*b q"]) -> Float[Array, "*b d"]:
        """The groups' code vectors, bit-equal to the quantized z."""
        return join(self.map(lambda q, ids: q.lookup(ids), self.split(ids)))

    def update(self, stats: dict[str, Any], samples: dict[str, Any]) -> dict[str, Any]:
        """Each group's `update`."""
        return {"each": self.map(lambda q, *args: q.update(*args), stats["each"], samples["each"])}

    def initialize(self, z: Float[Array, "*b d"], *, mask: Any = None, key: Any = None, **options: Any) -> dict:
        """Each group's `initialize`."""
        keys = None if key is None else jax.random.split(key, self.groups)
        start = lambda q, z, key: q.initialize(z, mask=mask, key=key, **options)  # noqa: E731
        return {"each": self.map(start, self.split(z), keys)}


def join(x: Array) -> Array:
    """[groups, ..., c] to [..., groups * c]."""
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], -1)


class Heads(Module):
    """One quantizer for `heads` parts of the channels: ids [..., heads * q].

    Args:
        quantizer: of vectors of d / heads channels.
        heads: parts.
    """

    def __init__(self, quantizer: Any, heads: int):
        self.quantizer = quantizer
        self.heads = heads

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return self.quantizer.vocab_sizes * self.heads

    def split(self, x: Array) -> Array:
        if x.shape[-1] % self.heads:
            raise InputError(f"{x.shape[-1]} channels cannot be split into {self.heads} heads")
        return x.reshape(*x.shape[:-1], self.heads, -1)

    def __call__(
        self, z: Float[Array, "*b d"], *, mask: Bool[Array, "*b"] | None = None, key: PRNGKeyArray | None = None
    ) -> Quantized:
        """Quantizes all parts as vectors of their own. In stats, only "counts" [heads * q, k] tells the heads apart."""
        out = self.quantizer(self.split(z), mask=self._mask(mask), key=key)
        ids = out.ids.reshape(*out.ids.shape[:-2], -1)
        stats = {"quantizer": out.stats}
        if "counts" in out.stats:
            stats["counts"] = counts_of(ids, out.stats["counts"].shape[-1], mask)
        return dataclasses.replace(
            out, z=out.z.reshape(z.shape), ids=ids, stats=stats, samples={"quantizer": out.samples}
        )

    def _mask(self, mask: Array | None) -> Array | None:
        return None if mask is None else jnp.broadcast_to(mask[..., None], (*mask.shape, self.heads))

    def lookup(self, ids: Int[Array, "*b q"]) -> Float[Array, "*b d"]:
        """The parts' code vectors, bit-equal to the quantized z."""
        q = self.quantizer.lookup(self.split(ids))
        return q.reshape(*q.shape[:-2], -1)

    def update(self, stats: dict[str, Any], samples: dict[str, Any]) -> dict[str, Any]:
        return {"quantizer": self.quantizer.update(stats["quantizer"], samples["quantizer"])}

    def initialize(self, z: Float[Array, "*b d"], *, mask: Any = None, **options: Any) -> dict[str, Any]:
        return {"quantizer": self.quantizer.initialize(self.split(z), mask=self._mask(mask), **options)}
