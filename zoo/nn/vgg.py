"""The convolutions of VGG16 (Simonyan and Zisserman 2014, arXiv:1409.1556, configuration D)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CONVS_PER_STAGE = (2, 2, 3, 3, 3)  # conv1_1 .. conv5_3
Layer = tuple[Array, Array]  # kernel [3, 3, in, out], bias [out]


def vgg16_stages(x: Float[Array, "b h w 3"], stages: Sequence[Sequence[Layer]]) -> Iterator[Float[Array, "b h2 w2 c"]]:
    """What each stage gives before its pooling: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.

    Args:
        x: images as the weights want them; stage s (from 0) has 1 / 2**s of their resolution, rounded down.
        stages: kernels and biases, `CONVS_PER_STAGE` of them.
    """
    for stage, layers in enumerate(stages):
        if stage > 0:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for kernel, bias in layers:
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + bias)
        yield x
