"""Discriminators: images to maps of logits, one for each region."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from zoo.nn.attention import TORCH, bias_init

SLOPE = 0.1  # of the leaky ReLUs
POOLED = 16  # side of the map of logits, whatever the image's size


class BlurStage(nnx.Module):
    """3x3 convolution, blurred halving, group norm, leaky ReLU."""

    def __init__(self, channels_in: int, channels: int, *, dtype=None, rngs: nnx.Rngs):
        self.conv = _conv(channels_in, channels, 3, dtype=dtype, rngs=rngs)
        self.norm = nnx.GroupNorm(channels, num_groups=32, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return jax.nn.leaky_relu(self.norm(halve_blurred(self.conv(x))), SLOPE)


class BlurDiscriminator(nnx.Module):
    """The discriminator of TiTok's second stage and of TA-TiTok: blurred halvings, then 16 x 16 logits.

    From NLayerDiscriminator in bytedance/1d-tokenizer; the blur is Zhang 2019, arXiv:1904.11486. Takes images
    in [0, 1].

    Args:
        width: channels of the first stage; each further stage has twice as many.
        stages: halvings.
    """

    def __init__(self, *, width: int = 128, stages: int = 3, dtype=None, rngs: nnx.Rngs):
        widths = [width * 2 ** max(i, 0) for i in range(-1, stages)]
        self.stem = _conv(3, width, 5, dtype=dtype, rngs=rngs)
        self.stages = nnx.List(
            BlurStage(a, b, dtype=dtype, rngs=rngs) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.mix = _conv(widths[-1], widths[-1], 1, dtype=dtype, rngs=rngs)
        self.out = _conv(widths[-1], 1, 5, dtype=dtype, rngs=rngs)

    def stage_outputs(self, x: Float[Array, "b h w 3"]) -> list[Array]:
        """The map after each stage."""
        h, maps = jax.nn.leaky_relu(self.stem(x), SLOPE), []
        for stage in self.stages:
            h = stage(h)
            maps.append(h)
        return maps

    def features(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b 16 16 c"]:
        """The pooled map before the logits."""
        return adaptive_max_pool(self.stage_outputs(x)[-1], POOLED)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b 16 16 1"]:
        return self.out(jax.nn.leaky_relu(self.mix(self.features(x)), SLOPE))


def _conv(channels_in: int, channels: int, side: int, *, dtype=None, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution that starts as torch's."""
    biases = bias_init(TORCH, channels_in * side**2)
    return nnx.Conv(channels_in, channels, (side, side), kernel_init=TORCH, bias_init=biases, dtype=dtype, rngs=rngs)


def halve_blurred(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Every second pixel after a 4x4 binomial blur; the odd row and column of padding go to the end.

    Sums of shifted pixels: the gradient of a depthwise convolution took 60 times as long on a CPU.
    """
    for axis in (1, 2):
        size = -(-x.shape[axis] // 2)
        missing = 2 * (size - 1) + 4 - x.shape[axis]
        padding = [(missing // 2, missing - missing // 2) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(x, padding)
        a, b, c, d = (jax.lax.slice_in_dim(padded, i, i + 2 * size - 1, 2, axis) for i in range(4))
        x = (a + 3 * b + 3 * c + d) / 8
    return x


def adaptive_max_pool(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b side side c"]:
    """Maxima over `side` x `side` windows that cover the map, from floor(i n / side) to ceil((i + 1) n / side).

    Windows overlap where n is no multiple of side; a smaller map is repeated. As torch's AdaptiveMaxPool2d.
    """
    return _pool_axis(_pool_axis(x, side, 1), side, 2)


def _pool_axis(x: Array, side: int, axis: int) -> Array:
    n = x.shape[axis]
    starts, ends = np.arange(side) * n // side, -(-np.arange(1, side + 1) * n // side)
    window = int((ends - starts).max())
    # a window that is shorter than the longest repeats its last index: the maximum stays the same
    index = np.minimum(starts[:, None] + np.arange(window), ends[:, None] - 1)
    taken = jnp.take(x, jnp.asarray(index.ravel()), axis)
    return taken.reshape(*x.shape[:axis], side, window, *x.shape[axis + 1 :]).max(axis + 1)
