"""LPIPS: how different two images look, learned from human judgements.

Zhang et al. 2018, arXiv:1801.03924, with VGG16, as in taming-transformers and bytedance/1d-tokenizer.

    sum over 5 stages of mean over positions of  w . (a / |a| - b / |b|)^2      a, b: features; w >= 0: a head
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.nn.vgg import CONVS_PER_STAGE, vgg16_stages

CHANNELS = (64, 128, 256, 512, 512)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]
EPS = 1e-10


class LPIPS(nnx.Module):
    """Images in [0, 1], any size of at least 16 px. Weights come from files; see zoo/presets/networks.py."""

    def __init__(self, channels: Sequence[int] = CHANNELS, *, rngs: nnx.Rngs):
        widths = [c for c, count in zip(channels, CONVS_PER_STAGE, strict=True) for _ in range(count)]
        inputs = [3, *widths[:-1]]
        self.convs = nnx.List(nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in zip(inputs, widths, strict=True))
        self.heads = nnx.List(nnx.Param(jnp.ones(c)) for c in channels)

    def features(self, x: Float[Array, "b h w 3"]) -> list[Array]:
        """The features of the five stages, not yet of unit length."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = (2 * x - 1 - jnp.float32(SHIFT)) / jnp.float32(SCALE)  # float32 as the original stores them
        layers = iter([(conv.kernel[...], conv.bias[...]) for conv in self.convs])  # pyright: ignore
        return list(vgg16_stages(x, [[next(layers) for _ in range(count)] for count in CONVS_PER_STAGE]))

    def per_stage(self, x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]) -> Float[Array, "b 5"]:
        """The five terms."""
        pairs = zip(self.heads, self.features(x), self.features(y), strict=True)
        terms = [jnp.mean((_unit(a) - _unit(b)) ** 2 @ head[...], (1, 2)) for head, a, b in pairs]
        return jnp.stack(terms, -1)

    def __call__(self, x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
        """The distance of each pair, float32."""
        return jnp.sum(self.per_stage(x, y), -1)


def _unit(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """x / (|x| + EPS), with a finite gradient where no channel is active."""
    squared = jnp.sum(x * x, -1, keepdims=True)
    return x / (jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0) + EPS)
