"""What quantizers share: float32, masked means, counts, sums, rows of a batch, and mutable codebook state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.types import Quantized

MAX_COUNTED = 2**20  # codes; the ids of larger codebooks are counted on the host, see usage.py


class CodebookState(nnx.Variable):
    """State that the train step updates from sums (EMA codebooks, usage estimates); never a Param."""


class Module(nnx.Module):
    """Base of the quantizers: those without state that the train step moves have nothing to update or initialise."""

    def update(self, stats: dict[str, Any], samples: dict[str, Any]) -> dict[Any, Any]:
        """New values of the state after a step, for `assign`, from the sums and vectors that `__call__` returned."""
        return {}

    def initialize(self, z: Float[Array, "*b d"], *, mask: Any = None, key: Any = None, **options: Any) -> dict:
        """New values of the state before the first step, for `assign`, from vectors like those to come."""
        return {}


def full_precision(z: Array) -> Array:
    """At least float32, so that ids never depend on a bfloat16 trunk's rounding of the search."""
    return jnp.asarray(z, jnp.promote_types(z.dtype, jnp.float32))


def l2_normalize(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """x / max(|x|, 1e-12), torch's F.normalize; its gradient at x = 0 is finite."""
    squared = jnp.sum(x * x, -1, keepdims=True)
    norm = jnp.sqrt(jnp.where(squared > 0, squared, 1.0))
    return x / jnp.where(squared > 0, jnp.maximum(norm, 1e-12), 1e-12)


def masked_mean(x: Float[Array, "*b d"], mask: Bool[Array, "*b"] | None) -> Float[Array, ""]:
    """Mean over all values of the positions where mask is True (all of them if None)."""
    if mask is None:
        return jnp.mean(x)
    weight = jnp.broadcast_to(mask[..., None], x.shape)
    return jnp.sum(jnp.where(weight, x, 0)) / jnp.maximum(jnp.sum(weight), 1)


def mean_squared(a: Float[Array, "*b d"], b: Float[Array, "*b d"], mask: Bool[Array, "*b"] | None) -> Float[Array, ""]:
    """Mean squared difference over the positions of the mask."""
    return masked_mean((a - b) ** 2, mask)


def count(ids: Int[Array, "*b"], vocab_size: int, mask: Bool[Array, "*b"] | None = None) -> Int[Array, " k"]:
    """How often each code occurs."""
    ones = jnp.ones(ids.shape, jnp.int32) if mask is None else mask.astype(jnp.int32)
    return jnp.zeros(vocab_size, jnp.int32).at[ids.reshape(-1)].add(ones.reshape(-1))


def counts_of(ids: Int[Array, "*b q"], vocab_size: int, mask: Bool[Array, "*b"] | None = None) -> Int[Array, "q k"]:
    """How often each code of each of q equal codebooks occurs."""
    return jax.vmap(lambda column: count(column, vocab_size, mask), -1)(ids)


def id_counts(
    ids: Int[Array, "*b q"], vocab_size: int, mask: Bool[Array, "*b"] | None = None
) -> dict[str, Int[Array, "q k"]]:
    """Stats of a quantizer without state: "counts", but nothing where they would be larger than most batches."""
    return {"counts": counts_of(ids, vocab_size, mask)} if vocab_size <= MAX_COUNTED else {}


def place_values(levels: Sequence[int]) -> np.ndarray:
    """int32: what one level of each channel is worth in an id; the first channel is the fastest."""
    return np.cumprod((1, *levels[:-1])).astype(np.int32)


def levels_of(ids: Int[Array, "*b 1"], levels: Sequence[int]) -> Int[Array, "*b n"]:
    """The level of each channel of an id; ids past the end wrap around."""
    return ids // place_values(levels) % np.asarray(levels, np.int32)


def vq_losses(z: Float[Array, "*b d"], q: Float[Array, "*b d"], mask: Bool[Array, "*b"] | None) -> dict[str, Array]:
    """ "commitment" pulls z to its code, "codebook" the code to z."""
    return {
        "commitment": mean_squared(z, jax.lax.stop_gradient(q), mask),
        "codebook": mean_squared(q, jax.lax.stop_gradient(z), mask),
    }


def vector_weights(mask: Bool[Array, "*b"] | None, shape: tuple[int, ...], dtype: Any) -> Float[Array, " n"]:
    """A weight for each of `shape` vectors that sums to one over those that count."""
    flat = (jnp.ones(shape, bool) if mask is None else mask).reshape(-1).astype(dtype)
    return flat / jnp.maximum(jnp.sum(flat), 1)


def sums_by_code(
    z: Float[Array, "*b d"], ids: Int[Array, "*b"], vocab_size: int, mask: Bool[Array, "*b"] | None = None
) -> Float[Array, "k d"]:
    """The sum of the vectors that chose each code."""
    z = z if mask is None else jnp.where(mask[..., None], z, 0)
    return jnp.zeros((vocab_size, z.shape[-1]), z.dtype).at[ids.reshape(-1)].add(z.reshape(-1, z.shape[-1]))


def rows(
    z: Float[Array, "*b d"], most: int, *, mask: Bool[Array, "*b"] | None = None, key: PRNGKeyArray | None = None
) -> Float[Array, "m d"]:
    """At most `most` vectors of z without repetition: with a key spread over all of z at random, else the first.

    With a mask exactly `most`, only of those where it is True, again from the start where they are fewer; zeros where
    there is none.
    """
    z = z.reshape(-1, z.shape[-1])
    m, number = (min(most, len(z)), jnp.asarray(len(z))) if mask is None else (most, jnp.sum(mask))
    rank = jnp.arange(m)
    if key is not None:  # one of each m-th part of z, in a scattered order: a permutation would sort all of z
        shift, within = jax.random.uniform(key, (2,))
        part = (rank * _coprime(m) + jnp.floor(shift * m).astype(jnp.int32)) % m
        rank = jnp.floor((part + within) * number / m).astype(jnp.int32)
    rank = rank % jnp.maximum(number, 1)
    if mask is None:
        return z[rank]
    return jnp.where(number > 0, z[jnp.nonzero(mask.reshape(-1), size=len(z))[0][rank]], 0)


def _coprime(m: int) -> int:
    """A number without a common divisor with m, near the golden section of it."""
    return next(a for a in range(max(1, round(0.618 * m)), m + 2) if math.gcd(a, m) == 1)


def assign(module: Any, values: dict[Any, Any]) -> None:
    """Puts what `update` or `initialize` returned into a module, in place: nested names to arrays."""
    for name, value in values.items():
        child = module[name] if isinstance(name, int) else getattr(module, name)
        if isinstance(value, dict):
            assign(child, value)
        else:
            child[...] = value


def assigned_copy(module: Any, values: dict[Any, Any]) -> Any:
    """A module with these values; the given one keeps its own."""
    copy = nnx.clone(module)
    assign(copy, values)
    return copy


def gathered(name: str, parts: list[Quantized]) -> dict[str, Any]:
    """Stats and samples of quantizers side by side, as arguments of Quantized: theirs under `name` by number, and all
    "counts" below each other, where a smaller codebook's row ends in zeros."""
    stats: dict[str, Any] = {name: {i: part.stats for i, part in enumerate(parts)}}
    counts = [part.stats["counts"] for part in parts if "counts" in part.stats]
    if len(counts) == len(parts):
        widest = max(c.shape[-1] for c in counts)
        stats["counts"] = jnp.concatenate([jnp.pad(c, ((0, 0), (0, widest - c.shape[-1]))) for c in counts])
    return {"stats": stats, "samples": {name: {i: part.samples for i, part in enumerate(parts)}}}


def joined_ids(parts: list[Quantized]) -> Int[Array, "*b q"]:
    """The ids of quantizers side by side."""
    return jnp.concatenate([jnp.asarray(part.ids) for part in parts], -1)


def split_keys(key: PRNGKeyArray | None, number: int) -> list[PRNGKeyArray | None]:
    """A key for each of several parts, or None for each."""
    return [None] * number if key is None else list(jax.random.split(key, number))
