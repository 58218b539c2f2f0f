"""A convolution with its batch norm, as frozen classifiers have it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

EPS = 1e-3  # of TensorFlow's batch norm, with which both classifiers were trained


class ConvNorm(nnx.Module):
    """Convolution without bias, batch norm with stored statistics, activation. All weights come from a file."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        stride: int = 1,
        *,
        padding: str = "SAME",
        activation: Callable[[Array], Array] = jax.nn.relu,
    ):
        self.kernel = nnx.Param(jnp.zeros((*kernel, inputs, outputs)))
        self.norm = FrozenBatchNorm(outputs)
        self.stride, self.padding, self.activation = stride, padding, activation

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        strides = (self.stride, self.stride)
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, self.kernel[...], strides, self.padding, dimension_numbers=layout)
        return self.activation(self.norm(x))


class FrozenBatchNorm(nnx.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias."""

    def __init__(self, channels: int):
        self.scale, self.var = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.ones(channels))
        self.bias, self.mean = nnx.Param(jnp.zeros(channels)), nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        return (x - self.mean[...]) * (self.scale[...] * jax.lax.rsqrt(self.var[...] + EPS)) + self.bias[...]


def depthwise(x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw 1 c"], stride: int) -> Float[Array, "b h2 w2 c"]:
    """A convolution of each channel by itself, padded as "SAME": the sum of shifted images.

    On a CPU it is 4 to 20 times as fast as XLA's grouped convolution, measured at the sizes of EfficientNet-Lite0.
    """
    (height, width), size = kernel.shape[:2], x.shape[1:3]
    x = jnp.pad(x, ((0, 0), *jax.lax.padtype_to_pads(size, (height, width), (stride, stride), "SAME"), (0, 0)))
    rows, columns = (stride * ((n - 1) // stride) + 1 for n in size)  # from the first to the last that is taken
    shifted = (
        x[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j, 0]
        for i in range(height)
        for j in range(width)
    )
    return sum(shifted, start=jnp.zeros((), x.dtype))
