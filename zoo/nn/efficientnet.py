"""EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946; "lite": no squeeze-and-excitation, ReLU6), a classifier.

image -> 224 px -> stem -> 16 inverted bottlenecks -> head, 1280 channels -> mean: features -> logits
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from zoo.nn.conv import ConvNorm, FrozenBatchNorm, depthwise

SIDE = 224  # px
FEATURES, CLASSES = 1280, 1000
# blocks, kernel, stride of the first, expansion, channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM = 32
ConvReLU6 = partial(ConvNorm, activation=jax.nn.relu6)


def _linear(x: Array) -> Array:
    return x


class Depthwise(nnx.Module):
    """A depthwise convolution, batch norm, ReLU6."""

    def __init__(self, width: int, kernel: int, stride: int):
        self.kernel = nnx.Param(jnp.zeros((kernel, kernel, 1, width)))
        self.norm = FrozenBatchNorm(width)
        self.stride = stride

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return jax.nn.relu6(self.norm(depthwise(x, self.kernel[...], self.stride)))


class Block(nnx.Module):
    """Wider by 1x1, a depthwise convolution, narrower by 1x1; added to its input where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        width = inputs * expansion
        self.expand = ConvReLU6(inputs, width, (1, 1)) if expansion > 1 else None
        self.depthwise = Depthwise(width, kernel, stride)
        self.project = ConvNorm(width, outputs, (1, 1), activation=_linear)
        self.residual = stride == 1 and inputs == outputs

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        h = x if self.expand is None else self.expand(x)
        h = self.project(self.depthwise(h))
        return x + h if self.residual else h


class EfficientNetLite0(nnx.Module):
    """Images uint8 of any size to features. Weights come from a file; see zoo/networks.py."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.stem = ConvReLU6(3, STEM, (3, 3), 2)
        blocks, inputs = [], STEM
        for count, kernel, stride, expansion, outputs in STAGES:
            for i in range(count):
                blocks.append(Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.head = ConvReLU6(inputs, FEATURES, (1, 1))
        self.classify = nnx.Linear(FEATURES, CLASSES, rngs=rngs)

    def __call__(self, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b 1280"]:
        """The features of KID(EffNet-Lite0): images squashed to 224 px, bilinear with antialiasing."""
        x = images.astype(jnp.float32)
        x = jax.image.resize(x, (x.shape[0], SIDE, SIDE, 3), "bilinear", antialias=True)
        return self.features((x - 127) / 128)

    def features(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b 1280"]:
        """The mean of the head, of images in about [-1, 1]."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return jnp.mean(self.head(x), (1, 2))

    def logits(self, features: Float[Array, "b 1280"]) -> Float[Array, "b 1000"]:
        """Of ImageNet's classes."""
        return self.classify(features)
