"""What vector-quantize-pytorch does otherwise than our quantizers, reproduced around them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from zoo import quantize as zq
from zoo.parity_quantizers.reference import sg
from zoo.quantize.common import CodebookState, assigned_copy, masked_mean, rows
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
    """

    regularizer: Any
    cosine: bool
    moved: Any = None

    def __call__(self, z: Any, ids: Any, codes: Any, mask: Any) -> dict[str, Any]:
        moved = codes if self.moved is None else codes + sg(self.moved - codes)
        if isinstance(self.regularizer, zq.Orthogonality):
            return self.regularizer(z, ids, moved, None)
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
        observed = self.observe(stats, self.codebook[...])
        out = zq.AffineVQ.__call__(assigned_copy(self, observed), z, mask=mask)
        return dataclasses.replace(out, samples=out.samples | {"observed": observed})

    def _statistics(self, z: Any, ids: Any, mask: Any, key: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        stats, samples = super()._statistics(z, ids, mask, key)
        return stats, {"vectors": rows(z, self.vocab_size, mask=mask)} if samples else {}

    def update(self, stats: dict[str, Any], samples: dict[str, Any]) -> dict[str, Any]:
        observed = samples["observed"]
        return observed if self.frozen else zq.EMAVQ.update(self, stats, samples) | observed


class Unnormalized(zq.RandomProjection):
    """norm=False."""

    def inside(self, z: Any) -> Any:
        return sg(z @ self.projection[...])


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
        regularizers = [r for r in getattr(leaf, "regularizers", ())]
        leaf.regularizers = tuple(Original(getattr(r, "regularizer", r), leaf.l2_norm, moved) for r in regularizers)
    return module


def remember_moved(module: Any, moved: Any) -> None:
    """Puts the codes of another state of the same quantizer into each codebook."""
    for leaf, new in zip(leaves(module), leaves(moved), strict=True):
        if getattr(leaf, "regularizers", ()):
            leaf.moved = CodebookState(new.codes())


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
