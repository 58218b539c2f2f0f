"""What vector-quantize-pytorch does otherwise than our quantizers, reproduced around them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo import quantize as zq
from zoo.parity_quantizers.reference import sg
from zoo.quantize.common import CodebookState, assigned_copy, masked_mean, rows
from zoo.quantize.ema import replaced
from zoo.quantize.projected import Wrapper
from zoo.quantize.regularizers import distances
from zoo.types import Quantized

# -- estimators


@dataclasses.dataclass(frozen=True)
class GivenNoise(zq.DiVeQ):
    """DiVeQ with the noise of a case."""

    noise: Any = None

    def __call__(self, z: Any, q: Any, codes: Any = None, *, dot: bool = False, key: Any = None) -> Any:
        return self.moved(z, q, self.noise.reshape(z.shape))


@dataclasses.dataclass(frozen=True)
class Activated(zq.StraightThrough):
    """LFQ's straight_through_activation: the gradient of `activation`."""

    activation: Any = None

    def __call__(self, z: Any, q: Any, codes: Any = None, *, dot: bool = False, key: Any = None) -> Any:
        return super().__call__(self.activation(z), q)


@dataclasses.dataclass(frozen=True)
class ToCodes(zq.StraightThrough):
    """route_gradients_to_input=False: the output is the code itself."""

    def __call__(self, z: Any, q: Any, codes: Any = None, *, dot: bool = False, key: Any = None) -> Any:
        return q


@dataclasses.dataclass(frozen=True)
class Synchronous(zq.StraightThrough):
    """sync_update_v: the gradient of another estimator, times 1 + v."""

    other: Any = None
    v: float = 0.0

    def __call__(self, z: Any, q: Any, codes: Any = None, *, dot: bool = False, key: Any = None) -> Any:
        out = self.other(z, q, codes, dot=dot, key=key)
        return out + self.v * (out - sg(out))


# -- regularizers


def compared(z: Any, codes: Any, moved: Any, cosine: bool) -> Any:
    """Euclidean distances, or minus the cosines. PyTorch's backward pass finds the codes already moved by the step."""
    if cosine:
        like = z @ moved.T
        return -(sg(z @ codes.T) + like - sg(like))
    like = distances(z, moved) ** 2
    return jnp.sqrt(sg(distances(z, codes) ** 2) + like - sg(like))


@dataclasses.dataclass(frozen=True)
class Original:
    """A regularizer as the original computes it: with the codes that the step moved, as they are when it looks at their
    orthogonality and when it differentiates. Only the cross entropy heeds the mask.

    Attributes:
        regularizer: ours.
        cosine: the codebook compares cosines.
        moved: the codes after the step; None: they stay.
        stored: the codebook, where the codes are computed from it; its orthogonality counts.
    """

    regularizer: Any
    cosine: bool
    moved: Any = None
    stored: Any = None

    def __call__(self, z: Any, ids: Any, codes: Any, mask: Any) -> dict[str, Any]:
        seen = codes if self.stored is None else self.stored
        moved = seen if self.moved is None else seen + sg(self.moved - seen)
        if isinstance(self.regularizer, zq.Orthogonality):
            return self.regularizer(z, ids, moved, None)
        moved = moved if self.stored is None else codes
        heeded = mask if isinstance(self.regularizer, zq.CrossEntropyCommitment) else None
        return self.regularizer.of(compared(z, codes, moved, self.cosine), ids, heeded)


def pooled_diversity(module: Any, z: Any) -> Any:
    """The diversity of several heads, which is that of their mean probabilities."""
    while isinstance(module, Wrapper):
        module, z = module.quantizer, module.inside(z)

    def probabilities(leaf: Any, z: Any) -> Any:
        (temperature,) = [r.regularizer.temperature for r in leaf.regularizers if hasattr(r.regularizer, "temperature")]
        codes = leaf.codes()
        moved = codes + sg(leaf.moved[...] - codes) if hasattr(leaf, "moved") else codes
        logits = -temperature * compared(leaf._normalize(z), codes, moved, leaf.l2_norm)
        return jax.nn.softmax(logits, -1)

    if isinstance(module, zq.Product):
        p = jnp.mean(module.map(lambda leaf, z: probabilities(as_original(leaf), z), module.split(z)), 0)
    else:
        p = jnp.mean(probabilities(module.quantizer, module.split(z)), -2)
    mean = jnp.mean(p, 0)
    return jnp.mean(jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-5)), -1))


# -- codebooks


class Observing(zq.AffineVQ):
    """AffineVQ whose statistics move before each call, also those of a frozen codebook.

    Dead codes become vectors as they came, not mapped to the codebook's frame.
    """

    frozen = False

    def __call__(self, z: Any, *, mask: Any = None, key: Any = None) -> Quantized:
        stats = super().__call__(sg(z), mask=mask).stats
        observed = self.observe(stats, sg(self.codebook[...]))
        out = zq.AffineVQ.__call__(assigned_copy(self, observed), z, mask=mask)
        return dataclasses.replace(out, samples=out.samples | {"observed": observed})

    def _statistics(self, z: Any, ids: Any, mask: Any, key: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        stats, samples = super()._statistics(z, ids, mask, key)
        return stats, {"vectors": rows(z, self.vocab_size, mask=mask)} if samples else {}

    def update(self, stats: dict[str, Any], samples: dict[str, Any]) -> dict[str, Any]:
        observed = samples["observed"]
        return observed if self.frozen else zq.EMAVQ.update(self, stats, samples) | observed


class HeadsFirst(zq.Heads):
    """Heads whose vectors are ordered by item, head and position, which decides what k-means and dead codes get."""

    def __call__(self, z: Any, *, mask: Any = None, key: Any = None) -> Quantized:
        out = self.quantizer(self._inside(z), mask=self._mask(mask))
        stats, samples = {"quantizer": out.stats}, {"quantizer": out.samples}
        z, ids = self._outside(out.z), self._outside(jnp.asarray(out.ids))
        return dataclasses.replace(out, z=z, ids=ids, stats=stats, samples=samples)

    def initialize(self, z: Any, *, mask: Any = None, **options: Any) -> dict[str, Any]:
        return {"quantizer": self.quantizer.initialize(self._inside(z), mask=self._mask(mask), **options)}

    def _inside(self, x: Any) -> Any:
        return jnp.moveaxis(self.split(x), -2, 1)

    def _outside(self, x: Any) -> Any:
        x = jnp.moveaxis(x, 1, -2)
        return x.reshape(*x.shape[:-2], -1)

    def _mask(self, mask: Any) -> Any:
        return None if mask is None else jnp.repeat(mask[:, None], self.heads, 1)


class TableFSQ(zq.FSQ):
    """FSQ that looks ids up in a float32 table, whatever the precision of all else, once `table` is set."""

    table = False

    def _codes(self, level: Any) -> Any:
        if not self.table:
            return super()._codes(level)
        all_levels = np.arange(max(self.levels), dtype=np.float32)[:, None]
        table = all_levels * (2 / (np.asarray(self.levels, np.float32) - 1)) - 1  # here, as a compiler fuses it
        return jnp.asarray(table, jnp.result_type(float))[level.astype(jnp.int32), np.arange(len(self.levels))]


class Unnormalized(zq.RandomProjection):
    """norm=False."""

    def inside(self, z: Any) -> Any:
        return sg(z @ self.projection[...])


class SharedResidual(zq.Residual):
    """A shared codebook as the original trains it: dead codes are replaced after each layer, the codes become the means
    at the end, and dead codes are replaced again, by what went into all layers in the order of vectors and layers."""

    trains = True

    def each(self, z: Any, *, mask: Any = None, number: Any = None, key: Any = None) -> list[Quantized]:
        if not self.trains:
            return super().each(z, mask=mask)
        book, residual, out, inputs = nnx.clone(self.quantizers[0]), z, [], []
        learned, book.learned = book.learned, "gradient"  # the means wait for the end
        for i in range(self.layers):
            left = None if number is None else number - i
            (layer,) = zq.Residual([book], layers=1).each(residual, mask=mask, number=left)
            new = jax.tree.map(sg, book.update(layer.stats, layer.samples))
            book = assigned_copy(book, new)
            inputs.append(book._normalize(residual))
            residual = residual - sg(layer.z)
            out.append(layer)
        ran = jnp.minimum(self.layers if number is None else number, self.layers)
        index = jnp.arange(self.quantizers[0].vocab_size) % (inputs[0].size // z.shape[-1] * ran)
        vectors = jnp.stack(inputs, -2).reshape(-1, self.layers, z.shape[-1])[index // ran, index % ran]
        mean = book._mean(new["cluster_size"], new["embed_sum"]) if learned == "ema" else new["codebook"]
        end = replaced(new | {"codebook": mean}, new["cluster_size"] < book.dead_below, vectors, book.dead_below)
        return [dataclasses.replace(layer, samples={"end": end}) for layer in out]

    def update(self, stats: dict[str, Any], samples: dict[str, Any]) -> dict[str, Any]:
        return {"quantizers": {0: samples["layers"][0]["end"]}}


class DiVeQResidual(zq.Residual):
    """ResidualVQ's diveq: layers give codes, and the length of the whole error carries the gradients."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, through=True, **options)
        self.noise: Any = None

    def collect(self, z: Any, layers: list[Quantized], number: Any = None) -> Quantized:
        out = super().collect(z, layers, number)
        return dataclasses.replace(out, z=GivenNoise(noise=self.noise)(z, out.z))


# -- inside of a quantizer


def leaves(module: Any) -> list[Any]:
    """The quantizers inside of wrappers, heads, groups and residual layers; those of groups with a leading axis."""
    while isinstance(module, Wrapper | zq.Heads | zq.Product):
        module = module.each if isinstance(module, zq.Product) else module.quantizer
    if isinstance(module, zq.Residual):
        return [leaf for quantizer in module.quantizers for leaf in leaves(quantizer)]
    return [module]


def as_original(module: Any) -> Any:
    """The same quantizer with the original's regularizers; one group, where there are several."""
    if isinstance(module, zq.Product) or (isinstance(module, Wrapper) and isinstance(module.quantizer, zq.Product)):
        return module  # each group when it runs
    for leaf in leaves(module):
        moved = leaf.moved[...] if hasattr(leaf, "moved") else None
        stored = leaf.codebook[...] if isinstance(leaf, Observing) else None
        regularizers = [getattr(r, "regularizer", r) for r in getattr(leaf, "regularizers", ())]
        leaf.regularizers = tuple(Original(r, leaf.l2_norm, moved, stored) for r in regularizers)
    return module


def remember_moved(module: Any, moved: Any) -> None:
    """Puts the codes of another state of the same quantizer into each codebook."""
    for leaf, new in zip(leaves(module), leaves(moved), strict=True):
        if getattr(leaf, "regularizers", ()):
            leaf.moved = CodebookState(new.codebook[...])


def with_masked_losses(module: Any, z: Any, out: Quantized, mask: Any) -> Quantized:
    """With a mask, the original's commitment compares with z before its normalisation, and LFQ takes each vector for a
    codebook, so that both entropies are the same."""
    (leaf,) = leaves(module)
    if mask is None:
        return out
    losses = dict(out.losses)
    if getattr(leaf, "l2_norm", False):
        losses["commitment"] = masked_mean((z - sg(out.z)) ** 2, mask)
    if isinstance(leaf, zq.LFQ):
        losses["codebook_entropy"] = losses["sample_entropy"]
    return dataclasses.replace(out, losses=losses)


def against_unprojected(z: Any, out: Quantized, mask: Any) -> Quantized:
    """With a mask, codes of one channel are compared with all channels before the projection."""
    if mask is None:
        return out
    return dataclasses.replace(out, losses=out.losses | {"commitment": masked_mean((z - sg(out.z)) ** 2, mask)})
