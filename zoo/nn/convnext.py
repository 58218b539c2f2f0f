"""ConvNeXt, a classifier (Liu et al. 2022, arXiv:2201.03545), as torchvision publishes it; and the distance of logits.

image --4x4 patches--> stage 1 --2x2--> stage 2 --2x2--> stage 3 --2x2--> stage 4 --mean, norm--> logits
block: x + scale * (7x7 depthwise -> norm -> 4x wider -> GELU -> back)
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.nn.stack import Stack
from zoo.nn.vit import gelu

EPS = 1e-6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in [0, 1]
SIDE = 224  # px of the images that the distance compares


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig:
    """The default is ConvNeXt-S."""

    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 27, 3)
    classes: int = 1000


class Block(nnx.Module):
    """A residual block of `width` channels."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.depthwise = nnx.Conv(width, width, (7, 7), feature_group_count=width, rngs=rngs)
        self.norm = _norm(width, rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)
        self.scale = nnx.Param(jnp.full(width, 1e-6))

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        h = gelu(self.up(self.norm(self.depthwise(x))))
        return x + self.scale[...] * self.down(h)


class ConvNeXt(nnx.Module):
    """Images normalised by ImageNet's mean and deviation, to logits. Weights come from a file."""

    def __init__(self, config: ConvNeXtConfig, *, rngs: nnx.Rngs):
        widths = config.widths
        self.stem = nnx.Conv(3, widths[0], (4, 4), 4, padding="VALID", rngs=rngs)
        self.norms = nnx.List(_norm(width, rngs) for width in (widths[0], *widths[:-1]))
        self.shrink = nnx.List(
            nnx.Conv(a, b, (2, 2), 2, padding="VALID", rngs=rngs) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.stages = nnx.List(
            Stack(lambda rngs, width=width: Block(width, rngs=rngs), depth, rngs=rngs)
            for width, depth in zip(widths, config.depths, strict=True)
        )
        self.norm_out = _norm(widths[-1], rngs)
        self.classify = nnx.Linear(widths[-1], config.classes, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        x = self.stages[0](self.norms[0](self.stem(x)))
        for norm, shrink, stage in zip(self.norms[1:], self.shrink, self.stages[1:], strict=True):
            x = stage(shrink(norm(x)))
        return self.classify(self.norm_out(jnp.mean(x, (1, 2))))


def squash(x: Float[Array, "b h w 3"]) -> Float[Array, "b 224 224 3"]:
    """Images in [0, 1] to what the network takes: 224 x 224 whatever their shape, then ImageNet's normalisation."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = jax.image.resize(x, (x.shape[0], SIDE, SIDE, 3), "bilinear", antialias=True)
    return (x - jnp.float32(MEAN)) / jnp.float32(STD)  # float32 as the original stores them


def logits_distance(net: ConvNeXt, x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]) -> Float[Array, ""]:
    """Mean squared difference of the logits of images in [0, 1]: the perceptual loss of TiTok's second stage."""
    return jnp.mean((net(squash(x)) - net(squash(y))) ** 2)


def _norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=EPS, use_fast_variance=False, rngs=rngs)
