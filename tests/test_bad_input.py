"""Bad input through the command line: the exit status, one line that names the cause, and nothing lost."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fixtures import (
    CONFIG,
    NAME,
    VIT,
    compilation_cache,
    photo,
    pixels,
    run,
    save_release,
    tiny_preset,
    tiny_release,
)
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

import zoo
from zoo import checkpoint
from zoo.cli import main
from zoo.config import to_json
from zoo.convert import to_reference
from zoo.data.transforms import eval_transform
from zoo.errors import InputError
from zoo.models.maskgit_vqgan import MaskGitVqganConfig

GOLDENS = Path(__file__).parent / "goldens"
__all__ = ["compilation_cache", "photo", "tiny_preset", "tiny_release"]  # fixtures


def refuse(capsys, *words, names, status=1):
    """Asserts that a command ends with `status` and one line on stderr that holds every word of `names`."""
    found, _, err = run(capsys, *words)
    assert (found, len(err)) == (status, 1), err
    assert err[0].startswith("zoo: ") and all(str(name) in err[0] for name in names), err[0]
    return err[0]


@pytest.fixture(scope="module")
def encoded(tiny_release, tmp_path_factory):
    """What `zoo encode` writes for one image; not to be changed."""
    folder = tmp_path_factory.mktemp("encoded")
    Image.fromarray(pixels(64, 64)).save(folder / "a.png")
    assert main(["encode", str(folder / "a.png"), "--model", str(tiny_release), "--out", str(folder / "c.npz")]) == 0
    return folder / "c.npz"


@pytest.fixture
def codes(encoded, tmp_path):
    return Path(shutil.copy(encoded, tmp_path / "codes.npz"))


def edit(path, **arrays):
    """A codes file with some arrays replaced, None: removed."""
    with np.load(path) as stored:
        arrays = dict(stored) | arrays
    with path.open("wb") as file:
        np.savez(file, **{key: a for key, a in arrays.items() if a is not None and key != "file"})
    with zipfile.ZipFile(path, "a") as archive, archive.open("file.npy", "w") as entry:
        np.lib.format.write_array(entry, arrays["file"])


def test_bad_files_among_good_ones(photo, tiny_release, tmp_path, capsys):
    """Text named .jpg, a truncated JPEG, a missing file: named, and the others are written."""
    (photo.parent / "text.jpg").write_text("not an image")
    whole = photo.read_bytes()
    (photo.parent / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "codes.npz"
    words = ["encode", photo.parent, tmp_path / "none.jpg", "--model", tiny_release, "--out", out]
    status, text, err = run(capsys, *words)
    assert status == 1 and "1 of 4 images" in text
    assert len(err) == 3 and all(line.startswith("zoo: ") for line in err)
    assert [name in " ".join(err) for name in ("text.jpg", "torn.jpg", "none.jpg")] == [True] * 3
    assert np.load(out)["file"].tolist() == [str(photo)]
    for name in ("text.jpg", "torn.jpg"):  # alone: nothing is written, and what was there stays
        before = out.read_bytes()
        refuse(capsys, "encode", photo.parent / name, "--model", tiny_release, "--out", out, names=[name])
        assert out.read_bytes() == before
    status, text, err = run(capsys, "eval", tiny_release, photo.parent, "--out", tmp_path / "eval")
    assert status == 0 and json.loads((tmp_path / "eval" / "metrics.json").read_text())["corrupt"] == 2
    assert len(err) == 2 and "text.jpg" in err[0] and "torn.jpg" in err[1]
    refuse(
        capsys,
        "compare",
        tiny_release,
        "--data",
        photo,
        photo.parent / "text.jpg",
        "--out",
        tmp_path / "c",
        names=["text.jpg"],
    )
    assert (tmp_path / "c" / "compare.png").is_file()


def test_unusual_images_are_read_as_what_they_show(tiny_release, tmp_path, capsys):
    """1x1, grayscale, RGBA, 16-bit and palette PNG, and a JPEG that EXIF turns."""
    rgb = pixels(64, 64)
    grey = rgb[..., 0]
    palette = Image.fromarray(rgb).quantize(16)
    rotated = Image.fromarray(pixels(64, 48).swapaxes(0, 1)[::-1])  # turned left; EXIF says turn right
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.new("RGB", (1, 1), (200, 30, 90)).save(folder / "a.png")
    Image.fromarray(grey).save(folder / "b.png")
    Image.fromarray(np.dstack([rgb, np.full((64, 64), 255, np.uint8)])).save(folder / "c.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "d.png")
    palette.save(folder / "e.png")
    rotated.save(folder / "f.jpg", exif=exif, quality=100)
    upright = np.rot90(np.asarray(Image.open(folder / "f.jpg")), -1)
    shown = [np.full((1, 1, 3), (200, 30, 90), np.uint8), np.dstack([grey] * 3), rgb, np.dstack([grey] * 3)]
    shown += [np.asarray(palette.convert("RGB")), upright]
    status, _, err = run(capsys, "encode", folder, "--model", tiny_release, "--out", tmp_path / "codes.npz")
    assert (status, err) == (0, [])
    expected = zoo.load(tiny_release).encode(np.stack([eval_transform(image, 64) for image in shown]))
    ids = np.load(tmp_path / "codes.npz")["ids"]
    np.testing.assert_array_equal(ids, np.asarray(expected.ids))
    assert len(np.unique(ids, axis=0)) >= 4, "the images must differ, or nothing is tested"


def test_nan_pixels(tiny_release):
    """Files cannot hold them; arrays can."""
    images = np.zeros((2, 64, 64, 3), np.float32)
    images[1, 2, 3, 0] = np.nan
    with pytest.raises(InputError, match="1 NaN"):
        zoo.load(tiny_release).encode(images)


@pytest.mark.parametrize("bad", [64, -1, 2**31 - 1])
def test_ids_out_of_range(codes, bad, tmp_path, capsys):
    ids = np.load(codes)["ids"]
    ids[0, 5, 0] = bad
    edit(codes, ids=ids)
    refuse(capsys, "decode", codes, "--out", tmp_path / "out", names=[codes, f"id {bad}", "token 5", "0 to 63"])
    assert not list((tmp_path / "out").glob("*"))


def test_codes_of_another_model(codes, tmp_path, capsys):
    import dataclasses

    config = dataclasses.replace(CONFIG, vocab_size=32)
    other = save_release(tmp_path / "other", config, "smaller")
    names = [codes, "vocab_size 64 instead of 32", "smaller"]
    refuse(capsys, "decode", codes, "--model", other, "--out", tmp_path / "out", names=names)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (None, ["No such file", "zoo encode"]),
        (b"PK\x03\x04 torn", ["damaged"]),
        (b"hello", ["damaged"]),
        ({"spec": None}, ["lacks spec"]),
        ({"ids": np.zeros((1, 7, 1), np.int32)}, ["[1, 7, 1]"]),
        ({"ids": np.zeros((2, 8, 1), np.int32)}, ["ids [2, 8, 1]", "length [1]"]),
        ({"ids": np.zeros((1, 8, 1), np.float32)}, ["float32"]),
        ({"model": np.array("titok_tinny.photos")}, ["did you mean", NAME]),
    ],
    ids=["missing", "truncated", "text", "no-spec", "tokens", "items", "floats", "model"],
)
def test_damaged_codes(content, names, codes, tiny_preset, tmp_path, capsys):
    if isinstance(content, dict):
        edit(codes, **content)
    elif content is None:
        codes.unlink()
    else:
        codes.write_bytes(content)
    status = 2 if "did you mean" in names else 1
    refuse(capsys, "decode", codes, "--out", tmp_path / "out", names=names, status=status)


@pytest.mark.parametrize(
    "words", [["info"], ["eval", "bundled"], ["encode", "PHOTO"], ["compare", "PHOTO"], ["convert"]]
)
def test_misspelt_preset(words, photo, tiny_preset, tmp_path, capsys):
    wrong = "titok_tinny.photos"
    full = {
        "info": ["info", wrong],
        "eval": ["eval", wrong, "bundled"],
        "encode": ["encode", photo, "--model", wrong, "--out", tmp_path / "codes.npz"],
        "compare": ["compare", wrong, "--data", photo, "--out", tmp_path / "out"],
        "convert": ["convert", wrong, photo, tmp_path / "out"],
    }[words[0]]
    refuse(capsys, *full, names=[wrong, f"did you mean '{NAME}'"], status=2)


def test_misspelt_preset_in_a_process_of_its_own():
    code = "import sys; from zoo.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "info", "titok_l33.imagenet"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "did you mean 'titok_l32.imagenet'" in done.stderr


def test_weights_that_do_not_fit(tmp_path, capsys):
    """A missing, an extra and a wrongly shaped tensor are all listed; 641 M parameters are not allocated."""
    save_file(
        {"latent_tokens": np.zeros((3, 4), np.float32), "surplus": np.zeros(1, np.float32)},
        tmp_path / "w.safetensors",
    )
    names = ["missing: ", "decoder.transformer.0.attn.out_proj.bias", "1 not of this model: surplus"]
    names += ["1 wrongly shaped: latent_tokens (3, 4) instead of (32, 1024)"]
    refuse(capsys, "convert", "titok_l32.imagenet", tmp_path / "w.safetensors", tmp_path / "out", names=names)
    assert not (tmp_path / "out").exists()


def test_truncated_weights(tiny_preset, tiny_release, tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    save_file(to_reference(zoo.load(tiny_release)), path)
    path.write_bytes(path.read_bytes()[:-100])
    refuse(capsys, "convert", tiny_preset, path, tmp_path / "out", names=[path, "truncated"])
    refuse(capsys, "convert", tiny_preset, tmp_path / "none.npz", tmp_path / "out", names=["none.npz"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "config"),
    [("maskgit_vqgan", MaskGitVqganConfig(width=32, multipliers=(1, 1), blocks=1)), ("flextok", VIT)],
)
def test_release_of_another_family(family, config, tiny_release, photo, tmp_path, capsys):
    arrays = nnx.to_pure_dict(nnx.state(zoo.load(tiny_release).module))
    about = {"name": "x", "family": family, "config": to_json(config), "spec": {}}
    checkpoint.save_release(tmp_path / "release", arrays, about)
    names = [tmp_path / "release", "fit" if family == "maskgit_vqgan" else "unknown family 'flextok'"]
    refuse(capsys, "eval", tmp_path / "release", photo, names=names)


@pytest.mark.parametrize("which", ["arrays", "config.json"])
def test_one_altered_byte_in_a_release(which, tiny_release, photo, tmp_path, capsys):
    release = shutil.copytree(tiny_release, tmp_path / "release")
    files = [release / which] if which == "config.json" else [p for p in (release / which).rglob("*") if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    place = data.index(b"Apache") if which == "config.json" else len(data) // 2
    data[place] ^= 1
    path.write_bytes(data)
    named = path.relative_to(release).as_posix()
    refuse(
        capsys,
        "encode",
        photo,
        "--model",
        release,
        "--out",
        tmp_path / "c.npz",
        names=[release, named, "altered"],
    )
    assert not (tmp_path / "c.npz").exists()


@pytest.mark.parametrize(
    ("file", "content", "names"),
    [
        ("io.npz", None, ["io.npz", "No such file"]),
        ("io.npz", b"PK\x03\x04 torn", ["io.npz", "damaged"]),
        ("case.json", b'{"family": "prepro', ["case.json", "damaged"]),
        (
            "case.json",
            b'{"family": "preprocess", "case": "a", "kind": "preprocess"}',
            ["lacks reference_config, input"],
        ),
        ("case.json", "another output", ["io.npz lacks surplus"]),
    ],
    ids=["no-arrays", "truncated-arrays", "truncated-json", "keys", "array"],
)
def test_damaged_parity_case(file, content, names, tmp_path, capsys):
    case = shutil.copytree(GOLDENS / "preprocess" / "1dtok_eval_transform", tmp_path / "case")
    if content == "another output":
        about = json.loads((case / file).read_text())
        content = json.dumps(about | {"outputs": {"surplus": {"check": "float"}}}).encode()
    (case / file).unlink() if content is None else (case / file).write_bytes(content)
    refuse(capsys, "parity", case, names=[case, *names])


def test_parity_case_with_truncated_weights(tmp_path, capsys):
    case = shutil.copytree(GOLDENS / "titok" / "single_stage_vq", tmp_path / "case")
    weights = case / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refuse(capsys, "parity", case, names=[weights, "truncated"])


def test_folder_that_is_no_release(photo, tmp_path, capsys):
    refuse(capsys, "info", photo.parent, names=[photo.parent, "config.json"])
    refuse(capsys, "eval", tmp_path / "none", photo, names=[tmp_path / "none", "does not exist"])


def test_output_that_cannot_be_written(codes, photo, tiny_preset, tiny_release, tmp_path, capsys):
    """A path below a file: for root, too, whom no mode stops."""
    out = tmp_path / "file" / "out"
    (tmp_path / "file").write_text("kept")
    save_file(to_reference(zoo.load(tiny_release)), tmp_path / "w.safetensors")
    for words in (
        ["encode", photo, "--model", tiny_release, "--out", out / "codes.npz"],
        ["decode", codes, "--out", out],
        ["eval", tiny_release, photo, "--out", out],
        ["compare", tiny_release, "--data", photo, "--out", out],
        ["convert", tiny_preset, tmp_path / "w.safetensors", out],
        ["parity", tmp_path, "--json", out / "report.json"],
        ["quickstart", "--out", out],
    ):
        refuse(capsys, *words, names=[out])
    refuse(capsys, "encode", photo, "--model", tiny_release, "--out", photo.parent, names=[photo.parent])
    assert (tmp_path / "file").read_text() == "kept" and [p.name for p in photo.parent.iterdir()] == ["photo.jpg"]


def test_empty_data(tiny_release, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for data in (tmp_path / "empty", tmp_path / "none"):
        refuse(capsys, "eval", tiny_release, data, names=[data])
        refuse(capsys, "encode", data, "--model", tiny_release, "--out", tmp_path / "c.npz", names=[data])
        refuse(capsys, "compare", tiny_release, "--data", data, "--out", tmp_path / "out", names=[data])
    assert not (tmp_path / "c.npz").exists()
