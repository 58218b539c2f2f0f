"""Images from files to batches: modes and damage, the published crops, splits, order, position."""

import contextlib
import csv
import io
import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data.loader import DataConfig, eval_batches, open_sources, train_batches
from zoo.data.sources import Resilient, holdout, open_source, subset
from zoo.data.transforms import (
    adm_crop,
    diversify_photo,
    eval_transform,
    read_image,
    resize_shorter,
    train_transform,
)
from zoo.errors import DataError, InputError

GOLDEN = Path(__file__).parent / "goldens/preprocess/1dtok_eval_transform"
PHOTOS = Path(__file__).parents[1] / "zoo/data/photos"


def smooth(height, width, seed=0):
    """A smooth random picture, uint8 [height, width, 3]: JPEG keeps it nearly unchanged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Twenty-five images of different sizes, a.k.a. 00.png .. 24.png."""
    for i in range(25):
        Image.fromarray(smooth(20 + i, 40 - i, i)).save(tmp_path / f"{i:02d}.png")
    return tmp_path


# --- transforms ---


def test_published_crops_equal_the_golden_exactly():
    io_arrays = np.load(GOLDEN / "io.npz")
    size = json.loads((GOLDEN / "case.json").read_text())["reference_config"]["crop_size"]
    for i in range(4):
        (key,) = [k for k in io_arrays if k.endswith(f"uint8_{i}")]
        image = io_arrays[key].astype(np.uint8)
        (wanted,) = [io_arrays[k] for k in io_arrays if k.endswith(f"eval_{i}")]
        assert (eval_transform(image, size) / np.float32(255) == wanted).all()
        (wanted,) = [io_arrays[k] for k in io_arrays if k.endswith(f"resized_{i}")]
        assert (resize_shorter(image, size) == wanted).all()
        (wanted,) = [io_arrays[k] for k in io_arrays if k.endswith(f"adm_{i}")]
        assert (adm_crop(image, size) == wanted).all()


@pytest.mark.parametrize("shape", [(90, 61), (61, 90), (17, 40), (32, 32)])
@pytest.mark.parametrize("scale", [1.0, 1.37])
def test_train_crop_equals_resize_then_crop(shape, scale):
    image = smooth(*shape) // 2 + np.random.default_rng(1).integers(0, 128, (*shape, 3), np.uint8)
    for seed in range(8):
        crop = train_transform(image, 32, np.random.default_rng(seed), scale=(scale, scale), flip=False)
        whole = resize_shorter(image, round(32 * scale)).astype(int)
        windows = np.lib.stride_tricks.sliding_window_view(whole, (32, 32, 3)).reshape(-1, 32, 32, 3)
        difference = np.abs(windows - crop)
        difference = difference[difference.sum((1, 2, 3)).argmin()]
        assert difference.max() <= 2 and (difference > 1).mean() < 0.002


def test_train_transform_is_a_function_of_its_generator_and_flips_half():
    image = smooth(32, 32)
    crops = [train_transform(image, 32, np.random.default_rng(seed)) for seed in range(200)]
    assert (crops[3] == train_transform(image, 32, np.random.default_rng(3))).all()
    plain = sum((crop == image).all() for crop in crops)
    mirrored = sum((crop == image[:, ::-1]).all() for crop in crops)
    assert plain + mirrored == 200 and 70 < plain < 130


def test_diversified_photos():
    """Half of them keep their grid, half their hue; contrast and saturation reach both ends of their ranges."""
    image = (0.5 * smooth(32, 32) + 64).astype(np.uint8)
    kept = image.copy()
    photos = [diversify_photo(image, np.random.default_rng(seed)) for seed in range(200)]
    assert (image == kept).all()
    assert all(photo.shape == image.shape and photo.dtype == np.uint8 for photo in photos)
    assert (photos[3] == diversify_photo(image, np.random.default_rng(3))).all()
    greys = np.stack([photo.mean(-1) for photo in photos]).reshape(200, -1)
    turned = [image.mean(-1), np.rot90(image.mean(-1)), np.rot90(image.mean(-1), 3)]
    alike = np.stack([np.corrcoef(grey, np.stack(turned).reshape(3, -1))[0, 1:].argmax() for grey in greys])
    assert 70 < (alike == 0).sum() < 130 and {1, 2} <= set(alike)
    stretch = greys.std(1) / image.mean(-1).std()
    assert 0.7 < stretch.min() < 0.8 and 1.5 < stretch.max() <= 2.01
    grey = np.full((8, 8, 3), 90, np.uint8)
    assert (diversify_photo(grey, np.random.default_rng(0)) == 90).all()


def test_wrong_arrays_are_named():
    for bad in (np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(InputError, match="uint8"):
            eval_transform(bad, 4)


# --- reading ---


def test_modes_become_rgb():
    rgb = smooth(12, 9)
    grey = rgb[..., 0]
    repeated = np.repeat(grey[..., None], 3, axis=-1)
    assert (read_image(encoded(rgb)) == rgb).all()
    assert (read_image(encoded(rgb, "WEBP", lossless=True)) == rgb).all()
    assert (read_image(encoded(grey)) == repeated).all()
    bits = Image.fromarray((grey > 128).astype(np.uint8) * 255).convert("1")
    assert (read_image(encoded(bits)) == np.where(repeated > 128, 255, 0)).all()
    palette = Image.fromarray(rgb).quantize(16)
    assert (read_image(encoded(palette)) == np.array(palette.convert("RGB"))).all()
    cmyk = read_image(encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - rgb).mean() < 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette"])
def test_transparency_is_laid_over_white(mode):
    if mode == "palette":
        image = Image.new("P", (4, 4), 0)
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 1), 1)
        read = read_image(encoded(image, transparency=0))
        assert (read[0, 0] == 255).all() and (read[1, 1] == [40, 50, 60]).all()
        return
    image = Image.new("RGBA", (4, 4), (100, 100, 100, 0)).convert(mode)
    image.putpixel((1, 1), (100, 100, 100, 255) if mode == "RGBA" else (100, 255))
    image.putpixel((2, 2), (100, 100, 100, 51) if mode == "RGBA" else (100, 51))
    read = read_image(encoded(image))
    assert (read[0, 0] == 255).all() and (read[1, 1] == 100).all() and (read[2, 2] == 224).all()


def test_16_bit_png_is_scaled_and_rounded():
    values = np.array([[0, 1, 128, 129, 257, 32768, 65407, 65535]], np.uint16).repeat(2, 0)
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    read = read_image(encoded(image))
    assert read.shape == (2, 8, 3) and (read == np.round(values / 257)[..., None]).all()


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_rotated_jpeg_is_turned_upright(orientation):
    upright = Image.fromarray(smooth(24, 40))
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(turn[orientation])
    read = read_image(encoded(stored, "JPEG", exif=exif, quality=95))
    assert read.shape == (24, 40, 3)
    assert np.abs(read.astype(int) - np.array(upright)).mean() < 4


def test_one_pixel_image_enlarges():
    image = read_image(encoded(np.full((1, 1, 3), 77, np.uint8)))
    assert (eval_transform(image, 32) == 77).all() and (adm_crop(image, 32) == 77).all()
    assert (train_transform(image, 32, np.random.default_rng(0), scale=(1.0, 1.5)) == 77).all()


def damaged():
    jpeg = encoded(smooth(64, 64), "JPEG")
    png = bytearray(encoded(smooth(64, 64)))
    png[len(png) // 2] ^= 255
    return {
        "text.jpg": b"not a picture\n",
        "empty.jpg": b"",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "altered.png": bytes(png),
        "gif_named.png": encoded(smooth(8, 8), "GIF"),
        "long.png": encoded(np.zeros((1, 1000, 3), np.uint8)),
    }


@pytest.mark.parametrize("name", damaged())
def test_damaged_files_are_named_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(damaged()[name])
    with pytest.raises(InputError, match=name) as caught:
        read_image(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_file_folder_and_bomb(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no\.png: cannot be read \(No such file"):
        read_image(tmp_path / "no.png", "no.png")
    with pytest.raises(InputError, match="directory"):
        read_image(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(InputError, match=r"big: .*too large"):
        read_image(encoded(smooth(10, 10)), "big")


# --- sources ---


def test_folder_is_recursive_sorted_and_skips_hidden(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/c.jpeg", "sub/d.WebP", ".hidden.png", ".cache/e.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(smooth(6, 5)).save(tmp_path / name, "PNG")  # the content decides how to read, not the name
    source = open_source(str(tmp_path))
    assert source.names == ["a.jpg", "b.PNG", "sub/c.jpeg", "sub/d.WebP"] and len(source) == 4
    assert source[2]["name"] == "sub/c.jpeg" and (source[2]["image"] == smooth(6, 5)).all()
    single = open_source(str(tmp_path / "a.jpg"))
    assert single.names == ["a.jpg"] and (single[0]["image"] == smooth(6, 5)).all()


def test_nothing_to_read_is_one_line(tmp_path):
    with pytest.raises(DataError, match="is an empty folder"):
        open_source(str(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="holds no PNG, JPEG or WebP images"):
        open_source(str(tmp_path))
    with pytest.raises(DataError, match="neither an image nor"):
        open_source(str(tmp_path / "notes.txt"))
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(str(tmp_path / "misspelt"))


def test_bundled_photos_are_few_small_and_carry_their_licence():
    source = open_source("bundled")
    rows = list(csv.DictReader((PHOTOS / "SOURCES.csv").open()))
    assert [row["file"] for row in rows] == source.names and 8 <= len(rows) <= 24
    assert sum(p.stat().st_size for p in PHOTOS.iterdir()) <= 1_000_000
    for item, row in zip((source[i] for i in range(len(source))), rows, strict=True):
        h, w, _ = item["image"].shape
        assert f"{w}x{h}" == row["kept_size"] and row["author"] and min(h, w) >= 192
        licence = row["licence"].lower().replace("-", " ")
        assert licence.startswith(("cc0", "cc by", "public domain")) and "sa" not in licence.split()


def test_array_record_file_and_folder(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    for stem, count in (("a", 3), ("b", 2)):
        writer = ArrayRecordWriter(str(tmp_path / f"{stem}.array_record"), "group_size:1")
        for i in range(count):
            writer.write(encoded(smooth(8 + i, 9, i)))
        writer.close()
    source = open_source(str(tmp_path))
    assert len(source) == 5 and source.names[3] == "b.array_record/00000000"
    assert (source[4]["image"] == smooth(9, 9, 1)).all()
    assert len(open_source(str(tmp_path / "a.array_record"))) == 3
    altered = bytearray((tmp_path / "a.array_record").read_bytes())
    altered[altered.index(b"IHDR")] ^= 255
    (tmp_path / "a.array_record").write_bytes(altered)
    source = Resilient(open_source(str(tmp_path)), max_corrupt=0.2)
    assert [source[i]["name"][-1] for i in range(5)] == list("11201") and len(source.corrupt) == 1
    (tmp_path / "c.array_record").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="damaged"):
        open_source(str(tmp_path / "c.array_record"))


PREPARE = """
import io, sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

features = {"image": tfds.features.Image(shape=(None, None, 1), encoding_format="png"), "n": np.int64}

def png(i):
    file = io.BytesIO()
    Image.fromarray(np.full((8 + i, 9), 10 * i, np.uint8)).save(file, "PNG")
    return file.getvalue()

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": png(i), "n": i}

builder = Tiny(data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()
print(builder.data_path)

from zoo.data.sources import open_source
from zoo.errors import DataError

source = open_source(str(builder.data_path))
sizes = sorted(source[i]["image"].shape for i in range(len(source)))
assert sizes == [(8 + i, 9, 3) for i in range(5)], sizes
for i in range(5):
    image = source[i]["image"]
    assert (image == 10 * (len(image) - 8)).all()
assert len(open_source(f"{builder.data_path}:test")) == 2
assert len(open_source(f"{builder.data_path}:train[:60%]")) == 3
try:
    open_source(f"{builder.data_path}:tset")
except DataError as error:
    assert "'tset'" in str(error) and "test" in str(error) and "\\n" not in str(error), error
else:
    raise AssertionError
assert "tensorflow" not in sys.modules
"""


def test_tfds_folder_is_read_without_tensorflow(tmp_path):
    code = [sys.executable, "-c", PREPARE, str(tmp_path)]
    done = subprocess.run(code, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr


def test_holdout_splits_by_name_and_is_stable(folder):
    source = open_source(str(folder))
    train, held = holdout(source, 0.3)
    assert sorted(train.names + held.names) == source.names and 2 <= len(held) <= 14
    assert held[0]["name"] == held.names[0]
    for i in range(25, 60):
        Image.fromarray(smooth(8, 8)).save(folder / f"{i}.png")
    train_more, held_more = holdout(open_source(str(folder)), 0.3)
    assert set(held.names) <= set(held_more.names) and set(train.names) <= set(train_more.names)


def test_holdout_of_few(folder):
    source = open_source(str(folder))
    train, held = holdout(subset(source, [3, 4]), 0.0)
    assert len(train) == len(held) == 1
    train, held = holdout(subset(source, [7]), 0.5)
    assert train.names == held.names == ["07.png"]


def test_corrupt_items_are_replaced_counted_once_and_remembered(folder):
    (folder / "03.png").write_bytes(b"text")
    (folder / "24.png").write_bytes(encoded(smooth(64, 64))[:300])
    source = Resilient(open_source(str(folder)), max_corrupt=0.1)
    names = [[source[i]["name"] for i in range(25)] for _ in range(2)]
    assert names[0] == names[1] and names[0][3] == "04.png" and names[0][24] == "00.png"
    assert set(source.corrupt) == {"03.png", "24.png"} and "03.png" in source.corrupt["03.png"]


def test_too_many_corrupt_items_fail_and_are_named(folder):
    for i in (3, 4):
        (folder / f"{i:02d}.png").write_bytes(b"text")
    source = Resilient(open_source(str(folder)), max_corrupt=0.05)
    for _ in range(2):
        with pytest.raises(DataError, match=r"2 of 25 items .*03\.png.*04\.png"):
            source[3]
    for path in folder.iterdir():
        path.write_bytes(b"text")
    with pytest.raises(DataError, match="none of the 25"):
        Resilient(open_source(str(folder)), max_corrupt=1.0)[0]


# --- loader ---


def take(batches, count):
    with contextlib.closing(batches):
        return [batch["image"] for batch in itertools.islice(batches, count)]


def test_batches_are_a_function_of_the_step(folder):
    config = DataConfig(path=str(folder), image_size=16, batch_size=6, scale=(1.0, 1.4), diversify=True, seed=3)
    source, _ = open_sources(config)
    first = take(train_batches(source, config), 12)
    assert all(batch.shape == (6, 16, 16, 3) and batch.dtype == np.uint8 for batch in first)
    resumed = take(train_batches(source, config, start_step=5), 7)
    assert all((a == b).all() for a, b in zip(first[5:], resumed, strict=True))
    for other in ({"cache_mb": 0}, {"threads": 0}, {"threads": 7}):
        changed = DataConfig(**{**config.__dict__, **other})
        assert all((a == b).all() for a, b in zip(first, take(train_batches(source, changed), 12), strict=True))
    reseeded = DataConfig(**{**config.__dict__, "seed": 4})
    assert any((a != b).any() for a, b in zip(first, take(train_batches(source, reseeded), 12), strict=True))


def test_batches_do_not_depend_on_the_process_count(folder):
    config = DataConfig(path=str(folder), image_size=16, batch_size=6)
    source, _ = open_sources(config)
    whole = take(train_batches(source, config, start_step=4), 5)
    for count in (2, 3):
        parts = [
            take(train_batches(source, config, start_step=4, process_index=p, process_count=count), 5)
            for p in range(count)
        ]
        for step in range(5):
            joined = np.concatenate([part[step] for part in parts])
            assert (joined == whole[step]).all()
    with pytest.raises(DataError, match="6 over 4"):
        train_batches(source, config, process_count=4)


def test_an_epoch_holds_every_item_and_epochs_differ(tmp_path):
    for i in range(8):
        Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    config = DataConfig(image_size=16, batch_size=8)
    epochs = [b[:, 0, 0, 0].tolist() for b in take(train_batches(open_source(str(tmp_path)), config), 3)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs) and len(set(map(tuple, epochs))) == 3


def test_corrupt_files_do_not_change_the_shape_of_training(folder):
    (folder / "07.png").write_bytes(b"text")
    config = DataConfig(path=str(folder), image_size=16, batch_size=24)
    train = Resilient(open_source(str(folder)))
    first, again = (take(train_batches(train, config), 3) for _ in range(2))
    assert list(train.corrupt) == ["07.png"] and all((a == b).all() for a, b in zip(first, again, strict=True))
    for i in range(10):
        (folder / f"{i:02d}.png").write_bytes(b"text")
    batches = train_batches(Resilient(open_source(str(folder))), config)
    with pytest.raises(DataError, match="max_corrupt=0.05"):
        take(batches, 3)


def test_eval_batches_are_in_order_and_skip_what_is_unreadable(folder):
    source = open_source(str(folder))
    batches = list(eval_batches(source, 16, 10))
    assert [len(names) for names, _ in batches] == [10, 10, 5]
    assert sum((names for names, _ in batches), []) == source.names
    assert (batches[1][1][2] == eval_transform(source[12]["image"], 16)).all()
    (folder / "03.png").write_bytes(b"text")
    with pytest.raises(InputError, match=r"03\.png"):
        list(eval_batches(source, 16, 10))
    corrupt = {}
    assert sum(len(names) for names, _ in eval_batches(source, 16, 10, corrupt)) == 24
    assert list(corrupt) == ["03.png"]


def test_closing_ends_the_threads_and_an_unclosed_loader_does_not_hold_the_program(folder):
    config = DataConfig(path=str(folder), image_size=16, batch_size=6)
    source, _ = open_sources(config)
    before = set(threading.enumerate())
    batches = train_batches(source, config)
    next(batches)
    started = set(threading.enumerate()) - before
    batches.close()
    for thread in started:
        thread.join(5)
    assert started and not any(thread.is_alive() for thread in started)
    code = "from zoo.data.loader import *; c = DataConfig(image_size=16, batch_size=4);"
    code += "it = train_batches(open_sources(c)[0], c); print(next(it)['image'].shape)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=30)
    assert done.returncode == 0 and done.stdout == "(4, 16, 16, 3)\n", done.stderr
    assert not done.stderr


def test_bad_config_is_named():
    with pytest.raises(InputError, match=r"scale is \(0.5, 1.0\)"):
        DataConfig(scale=(0.5, 1.0))
    with pytest.raises(InputError, match="batch_size 0"):
        DataConfig(batch_size=0)
