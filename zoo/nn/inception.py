"""Inception-v3 (Szegedy et al. 2015, arXiv:1512.00567) of 2015-12-05, whose features define FID and Inception Score.

The network is the one of pytorch-fid and torch-fidelity, which is TensorFlow's: against torchvision's, average pools
leave the padding out, and the last block pools by maximum. Images enter as in torch-fidelity 0.4.0, which
bytedance/1d-tokenizer evaluates with. pytorch-fid resizes with half-pixel centres and scales by 127.5 instead, so that
its FID differs a little.

    image -> 299 px -> 3 convs, pool, 2 convs, pool -> 35 px: A A A -> 17 px: B C C C C -> 8 px: D E E -> mean -> logits
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from zoo.nn.conv import ConvNorm

SIDE = 299  # px
CLASSES = 1008  # ImageNet's 1000 and the spare ones of TensorFlow's network
FEATURES = 2048
Layer = tuple[int, tuple[int, int]]  # channels, kernel
ONE, ROW, COLUMN, WIDE_ROW, WIDE_COLUMN = (1, 1), (1, 3), (3, 1), (1, 7), (7, 1)


class Inception(nnx.Module):
    """Images uint8 of any size to features and logits. Weights come from a file; see zoo/networks.py."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv_1a_3x3 = ConvNorm(3, 32, (3, 3), 2, padding="VALID")
        self.conv_2a_3x3 = ConvNorm(32, 32, (3, 3), padding="VALID")
        self.conv_2b_3x3 = ConvNorm(32, 64, (3, 3))
        self.conv_3b_1x1 = ConvNorm(64, 80, ONE)
        self.conv_4a_3x3 = ConvNorm(80, 192, (3, 3), padding="VALID")
        self.mixed_5b = BlockA(192, 32)
        self.mixed_5c = BlockA(256, 64)
        self.mixed_5d = BlockA(288, 64)
        self.mixed_6a = BlockB(288)
        self.mixed_6b = BlockC(768, 128)
        self.mixed_6c = BlockC(768, 160)
        self.mixed_6d = BlockC(768, 160)
        self.mixed_6e = BlockC(768, 192)
        self.mixed_7a = BlockD(768)
        self.mixed_7b = BlockE(1280, _average_pool)
        self.mixed_7c = BlockE(2048, _max_pool)
        self.fc = nnx.Linear(FEATURES, CLASSES, rngs=rngs)

    def __call__(self, images: UInt8[Array, "b h w 3"]) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1008"]]:
        """The features of FID and the logits of the Inception Score, which leave the bias out."""
        features = self.features((resize(images) - 128) / 128)
        return features, features @ self.fc.kernel[...]

    def features(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b 2048"]:
        """The mean of the last block, of images in about [-1, 1] that are at least 75 px high and wide."""
        x = self.conv_2b_3x3(self.conv_2a_3x3(self.conv_1a_3x3(x)))
        x = self.conv_4a_3x3(self.conv_3b_1x1(_shrink(x)))
        x = self.mixed_5d(self.mixed_5c(self.mixed_5b(_shrink(x))))
        x = self.mixed_6e(self.mixed_6d(self.mixed_6c(self.mixed_6b(self.mixed_6a(x)))))
        x = self.mixed_7c(self.mixed_7b(self.mixed_7a(x)))
        return jnp.mean(x, (1, 2))


class BlockA(nnx.Module):
    """1x1, 5x5 and two 3x3 beside each other."""

    def __init__(self, inputs: int, pooled: int):
        self.branch1x1 = ConvNorm(inputs, 64, ONE)
        self.branch5x5 = _chain(inputs, (48, ONE), (64, (5, 5)))
        self.branch3x3dbl = _chain(inputs, (64, ONE), (96, (3, 3)), (96, (3, 3)))
        self.branch_pool = ConvNorm(inputs, pooled, ONE)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        pooled = self.branch_pool(_average_pool(x))
        return _join(self.branch1x1(x), _run(self.branch5x5, x), _run(self.branch3x3dbl, x), pooled)


class BlockB(nnx.Module):
    """Halves 35 px."""

    def __init__(self, inputs: int):
        self.branch3x3 = ConvNorm(inputs, 384, (3, 3), 2, padding="VALID")
        self.branch3x3dbl = _chain(inputs, (64, ONE), (96, (3, 3)), (96, (3, 3)), last_stride=2)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        return _join(self.branch3x3(x), _run(self.branch3x3dbl, x), _shrink(x))


class BlockC(nnx.Module):
    """7x7 in rows and columns."""

    def __init__(self, inputs: int, width: int):
        row, column = (width, WIDE_ROW), (width, WIDE_COLUMN)
        self.branch1x1 = ConvNorm(inputs, 192, ONE)
        self.branch7x7 = _chain(inputs, (width, ONE), row, (192, WIDE_COLUMN))
        self.branch7x7dbl = _chain(inputs, (width, ONE), column, row, column, (192, WIDE_ROW))
        self.branch_pool = ConvNorm(inputs, 192, ONE)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        pooled = self.branch_pool(_average_pool(x))
        return _join(self.branch1x1(x), _run(self.branch7x7, x), _run(self.branch7x7dbl, x), pooled)


class BlockD(nnx.Module):
    """Halves 17 px."""

    def __init__(self, inputs: int):
        wide = (192, ONE), (192, WIDE_ROW), (192, WIDE_COLUMN), (192, (3, 3))
        self.branch3x3 = _chain(inputs, (192, ONE), (320, (3, 3)), last_stride=2)
        self.branch7x7x3 = _chain(inputs, *wide, last_stride=2)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        return _join(_run(self.branch3x3, x), _run(self.branch7x7x3, x), _shrink(x))


class BlockE(nnx.Module):
    """3x3 as a row and a column beside each other."""

    def __init__(self, inputs: int, pool: Callable[[Array], Array]):
        self.pool = pool
        self.branch1x1 = ConvNorm(inputs, 320, ONE)
        self.branch3x3 = _chain(inputs, (384, ONE))
        self.branch3x3_split = nnx.List(ConvNorm(384, 384, kernel) for kernel in (ROW, COLUMN))
        self.branch3x3dbl = _chain(inputs, (448, ONE), (384, (3, 3)))
        self.branch3x3dbl_split = nnx.List(ConvNorm(384, 384, kernel) for kernel in (ROW, COLUMN))
        self.branch_pool = ConvNorm(inputs, 192, ONE)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        single, double = _run(self.branch3x3, x), _run(self.branch3x3dbl, x)
        splits = [split(single) for split in self.branch3x3_split] + [
            split(double) for split in self.branch3x3dbl_split
        ]
        return _join(self.branch1x1(x), *splits, self.branch_pool(self.pool(x)))


def resize(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b 299 299 3"]:
    """Bilinear to 299 px as TensorFlow 1 did it: pixel i lies at i * size / 299, without half-pixel centres."""
    rows, columns = (jnp.asarray(_interpolation(size)) for size in images.shape[1:3])
    return jnp.einsum("yh,bhwc,xw->byxc", rows, images.astype(jnp.float32), columns, precision="highest")


def _interpolation(size: int) -> np.ndarray:
    """float32 [299, size]: how much of each pixel goes into each new one."""
    at = np.arange(SIDE) * float(np.float32(size / SIDE))  # the original rounds the ratio only
    low = at.astype(np.int64)
    weights = np.zeros((SIDE, size), np.float32)
    np.add.at(weights, (np.arange(SIDE), low), 1 - (at - low))
    np.add.at(weights, (np.arange(SIDE), np.minimum(low + 1, size - 1)), at - low)
    return weights


def _chain(inputs: int, *layers: Layer, last_stride: int = 1) -> nnx.List:
    widths = [inputs, *(width for width, _ in layers)]
    chain = [ConvNorm(i, o, kernel) for i, (o, kernel) in zip(widths, layers[:-1], strict=False)]
    width, kernel = layers[-1]
    padding = "SAME" if last_stride == 1 else "VALID"
    return nnx.List([*chain, ConvNorm(widths[-2], width, kernel, last_stride, padding=padding)])


def _run(chain: Sequence[ConvNorm], x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
    for layer in chain:
        x = layer(x)
    return x


def _join(*branches: Array) -> Array:
    return jnp.concatenate(branches, -1)


def _window(x: Array, start: float, combine: Callable[..., Array], stride: int, padding: str) -> Array:
    return jax.lax.reduce_window(x, start, combine, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _shrink(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    return _window(x, -jnp.inf, jax.lax.max, 2, "VALID")


def _max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return _window(x, -jnp.inf, jax.lax.max, 1, "SAME")


def _average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The mean of those pixels of each 3x3 window that are in the image."""
    count = _window(jnp.ones((1, *x.shape[1:3], 1), x.dtype), 0.0, jax.lax.add, 1, "SAME")
    return _window(x, 0.0, jax.lax.add, 1, "SAME") / count
