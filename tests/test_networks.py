"""Networks beside the tokenizers: names at full size, and what no golden shows."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo import convert
from zoo.losses import adversarial
from zoo.nn.convnext import ConvNeXt, ConvNeXtConfig
from zoo.nn.discriminators import BlurDiscriminator, adaptive_max_pool
from zoo.nn.lpips import LPIPS
from zoo.presets import networks
from zoo.presets.rules import plan, reference_shapes

FOLDER = Path(__file__).parent / "networks"


def names(build, rules):
    leaves = convert.shapes_of(nnx.state(nnx.eval_shape(build)))
    return reference_shapes(plan(rules, leaves), leaves)


BUILDS = {
    "lpips_vgg16_full": ("", lambda: LPIPS(rngs=nnx.Rngs(0)), networks.LPIPS),
    "nlayer_discriminator_default": ("", lambda: BlurDiscriminator(rngs=nnx.Rngs(0)), networks.BLUR_DISCRIMINATOR),
    "perceptual_lpips_convnext_small_full": (
        "convnext.",
        lambda: ConvNeXt(ConvNeXtConfig(), rngs=nnx.Rngs(0)),
        networks.CONVNEXT,
    ),
}


@pytest.mark.parametrize("file", BUILDS)
def test_rules_cover_the_network_at_full_size(file):
    manifest = json.loads((FOLDER / f"{file}.json").read_text())
    prefix, build, rules = BUILDS[file]
    learned = {name: tuple(shape) for name, shape in manifest["params"].items() if name not in manifest["buffers"]}
    assert names(build, rules) == {n.removeprefix(prefix): s for n, s in learned.items() if n.startswith(prefix)}


def test_equal_flat_images_have_no_distance_and_a_finite_gradient():
    net = LPIPS((4, 4, 4, 4, 4), rngs=nnx.Rngs(0))
    x = jnp.zeros((2, 32, 48, 3))
    distance, gradient = jax.jit(jax.value_and_grad(lambda y: jnp.sum(net(x, y))))(x)
    assert distance < 1e-9 and np.isfinite(gradient).all()


@pytest.mark.parametrize("size", [(16, 16), (8, 32), (12, 20), (33, 47)])
def test_adaptive_max_pool_takes_the_maximum_of_every_window(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    pooled = adaptive_max_pool(jnp.asarray(x), 16)
    for i in range(16):
        for j in range(16):
            rows = slice(i * size[0] // 16, -(-(i + 1) * size[0] // 16))
            columns = slice(j * size[1] // 16, -(-(j + 1) * size[1] // 16))
            assert (pooled[:, i, j] == x[:, rows, columns].max((1, 2))).all()


def test_adversarial_losses_pull_apart():
    """A discriminator wants real above fake; the generator's loss falls where fake rises."""
    low, high = jnp.full((2, 4), -2.0), jnp.full((2, 4), 2.0)
    for loss in (adversarial.hinge, adversarial.non_saturating):
        assert loss(high, low) < loss(low, low) < loss(low, high)
    for loss in (adversarial.generator_hinge, adversarial.generator_non_saturating):
        assert loss(high) < loss(low)
    np.testing.assert_allclose(adversarial.non_saturating(high, low), np.log1p(np.exp(-2)), rtol=1e-6)
    assert adversarial.hinge(high, low) == 0
    loss = adversarial.lecam(high, low, jnp.zeros(2))
    averages = adversarial.lecam_averages(jnp.zeros(2), jnp.mean(high), jnp.mean(low))
    np.testing.assert_allclose([loss, *averages], [8, 2e-3, -2e-3], rtol=1e-5)
