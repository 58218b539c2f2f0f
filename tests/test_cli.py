"""The command contract: flags, files, exit statuses. What the commands refuse is in test_bad_input.py."""

import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures import (
    CONFIG,
    NAME,
    compilation_cache,
    photo,
    pixels,
    run,
    save_release,
    tiny_preset,
    tiny_release,
)
from PIL import Image

import zoo
from zoo import cli, commands, parity
from zoo.convert import to_reference
from zoo.data.transforms import eval_transform, read_image
from zoo.errors import InputError
from zoo.parity import Result, UnknownKind
from zoo.presets import titok
from zoo.tables import rows

__all__ = ["compilation_cache", "photo", "tiny_preset", "tiny_release"]  # fixtures


@pytest.fixture
def folder(photo):
    """A folder of 18 images (more than a batch), one of them in a subfolder and one not square."""
    root = photo.parent
    (root / "sub").mkdir()
    for i in range(16):
        Image.fromarray(pixels(64, 64 + i, seed=i)).save(root / f"{i:02}.png")
    shutil.copy(photo, root / "sub" / "photo.jpg")
    return root


def test_help_is_fast_and_imports_no_jax():
    code = "import sys; from zoo.cli import main; print(main(['--help']), *{'jax', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0", done.stderr
    assert all(f" {name} " in done.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["lst"],
        ["encode", "a.png", "--modle", "x"],
        ["info"],
        ["encode"],
        ["compare", "a"],
        ["train"],
        ["train", "smoke/ttok"],
    ],
)
def test_wrong_usage_exits_2(words, capsys):
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "") and err


def test_list(tiny_preset, capsys):
    status, out, err = run(capsys, "list")
    assert (status, err) == (0, [])
    assert [line.split()[0] for line in out.splitlines()[1:]] == zoo.list_presets()
    status, out, _ = run(capsys, "list", "--json")
    assert status == 0 and json.loads(out) == json.loads(json.dumps(rows()))


def test_info(tiny_preset, tiny_release, capsys):
    for model in (tiny_preset, tiny_release):
        status, out, err = run(capsys, "info", model)
        assert (status, err) == (0, [])
        facts = dict(line.split(maxsplit=1) for line in out.splitlines())
        assert facts["spec.tokens"] == "8" and facts["spec.bits_per_item"] == "48"
        assert facts["spec.input_shape"] == "64 x 64 x 3"
        assert facts["licence"] == "Apache-2.0" and str(model) in facts["code"]
    tensors = to_reference(zoo.load(tiny_release)).values()
    assert facts["parameters"] == f"{sum(tensor.size for tensor in tensors):,}"


def test_encode_equals_the_api(folder, tiny_preset, tiny_release, tmp_path, capsys):
    out = tmp_path / "new" / "codes.npz"
    single = folder / "sub" / "photo.jpg"
    status, text, err = run(capsys, "encode", folder, single, "--model", tiny_release, "--out", out)
    assert (status, err) == (0, [])
    names = [
        *(f"{folder}/{i:02}.png" for i in range(16)),
        f"{folder}/photo.jpg",
        f"{folder}/sub/photo.jpg",
        str(single),
    ]
    tokenizer = zoo.load(NAME)
    images = np.stack([eval_transform(read_image(name), 64) for name in names])
    expected = np.asarray(tokenizer.encode(images[:16]).ids), np.asarray(tokenizer.encode(images[3:]).ids)
    with np.load(out) as codes:
        assert set(codes) == {"ids", "length", "size", "file", "model", "spec"}
        assert codes["file"].tolist() == names
        assert codes["ids"].dtype == codes["length"].dtype == np.int32
        np.testing.assert_array_equal(codes["ids"], np.concatenate([expected[0], expected[1][13:]]))
        assert len(np.unique(codes["ids"], axis=0)) > 5, "the images must differ, or their order is not tested"
        assert codes["length"].tolist() == [8] * len(names) and codes["size"].tolist() == [[64, 64]] * len(names)
        assert json.loads(str(codes["spec"]))["vocab_size"] == 64 and Path(str(codes["model"])) == tiny_release
        assert " ".join(map(str, codes["ids"][0, :, 0])) in text and "48 bits" in text


def test_encode_without_model_says_which(photo, tiny_preset, tmp_path, capsys):
    status, _, err = run(capsys, "encode", photo, "--out", tmp_path / "codes.npz")
    assert status == 0 and len(err) == 1 and NAME in err[0]
    assert str(np.load(tmp_path / "codes.npz")["model"]) == NAME


def test_decode_names_each_image_after_its_source(folder, tiny_preset, tmp_path, capsys):
    codes = tmp_path / "codes.npz"
    run(capsys, "encode", folder, "--model", NAME, "--out", codes)
    for where in (tmp_path / "decoded", folder):  # the second holds the sources, PNG files among them
        before = (folder / "03.png").read_bytes()
        status, out, err = run(capsys, "decode", codes, "--out", where)
        assert (status, err) == (0, []) and "18 images" in out
        assert (folder / "03.png").read_bytes() == before
    decoded = tmp_path / "decoded"
    assert {p.name for p in decoded.iterdir()} == {f"{i:02}.png" for i in range(16)} | {
        "photo.png",
        "photo_2.png",
    }
    image = np.asarray(zoo.load(NAME).decode(np.load(codes)["ids"][:16]))[3]
    shown = np.asarray(Image.open(decoded / "03.png")).astype(float)
    assert np.abs(shown - np.clip((image + 1) * 127.5, 0, 255)).max() <= 1
    np.testing.assert_array_equal(shown, np.asarray(Image.open(folder / "03_2.png")))


def test_continuous_codes_there_and_back(photo, tmp_path, capsys):
    import dataclasses

    model = save_release(tmp_path / "vae", dataclasses.replace(CONFIG, vocab_size=None, l2_norm=False), "vae")
    status, out, _ = run(capsys, "encode", photo, "--model", model, "--out", tmp_path / "codes.npz")
    assert status == 0 and "8 tokens of 4 channels" in out
    codes = np.load(tmp_path / "codes.npz")
    assert codes["latents"].shape == (1, 8, 4) and codes["latents"].dtype == np.float32 and "ids" not in codes
    assert run(capsys, "decode", tmp_path / "codes.npz", "--out", tmp_path / "out")[0] == 0
    assert re.search(r"bits_per_item +continuous", run(capsys, "info", model)[1])


def test_eval_writes_what_it_prints(folder, tiny_preset, tmp_path, capsys, monkeypatch):
    *others, preset = titok.PRESETS
    known = dataclasses.replace(preset, published={"rFID": 1.25}, citation="a paper")
    monkeypatch.setattr(titok, "PRESETS", (*others, known))
    status, out, err = run(capsys, "eval", tiny_preset, folder, "--out", tmp_path / "out")
    assert (status, err) == (0, [])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    rows = [line.split() for line in out.split("\n\n")[0].splitlines()[1:]]
    printed = {name: float(value.replace(",", "")) for name, value, *_ in rows if value != "not"}
    assert {name: metrics[name] for name in printed} == pytest.approx(printed, rel=1e-4) and metrics["n"] == 18
    assert len(printed) == sum(not isinstance(value, str) for value in metrics.values()) - 1
    assert ["rFID", "not", "run", "1.25"] in rows and ["lpips", "not", "run"] in rows
    assert (metrics["published_rFID"], metrics["published_on"]) == (1.25, "a paper") and "rFID" not in metrics
    assert out.splitlines()[-2].startswith("rFID not run: give --metrics.inception pt_inception-2015-12-05")
    assert "kid_effnet_lite0" in printed and metrics["not_run"] == "lpips, rFID, IS"
    assert {"psnr", "ssim", "usage", "perplexity", "bits_per_pixel", "thumbnail_psnr"} <= set(metrics)
    assert metrics["data"] == str(folder) and metrics["crop"] == "centre, 64 x 64 px"
    assert len(list(csv.DictReader((tmp_path / "out" / "items.csv").open()))) == 18
    assert (tmp_path / "out" / "worst.png").is_file()


def test_compare(photo, tiny_preset, tiny_release, tmp_path, capsys):
    words = ["compare", tiny_preset, tiny_release, "--data", photo, photo.parent, "--out", tmp_path / "out"]
    status, out, err = run(capsys, *words)
    assert (status, err) == (0, []) and "2 images" in out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "compare.png",
        "rate_distortion.png",
        "compare.json",
    }


def test_convert(tiny_preset, tiny_release, tmp_path, capsys):
    from safetensors.numpy import save_file

    weights = to_reference(zoo.load(tiny_release))
    save_file(weights, tmp_path / "w.safetensors")
    status, out, err = run(capsys, "convert", tiny_preset, tmp_path / "w.safetensors", tmp_path / "out")
    assert (status, err) == (0, [])
    parameters = sum(w.size for w in weights.values())
    assert f"{parameters:,}" in out and re.search(r"\b[0-9a-f]{64}\b", out)
    folder = re.search(r"zoo\.load\('(.*)'\)", out).group(1)
    again = to_reference(zoo.load(folder))
    assert all(np.array_equal(again[name], weights[name]) for name in weights)


def test_train_passes_its_words_on(monkeypatch):
    import zoo.launch

    monkeypatch.setattr(zoo.launch, "main", lambda words: 7 if words == ["smoke/titok", "--steps", "3"] else 0)
    assert cli.main(["train", "smoke/titok", "--steps", "3"]) == 7


GOOD, BAD = Result("f/a", "z", "float", 5e-6, 1e-5), Result("f/b", "ids", "ids", 3.0, 0.0, "1 undecidable")
LOST = Result("f/b", "image", "deep", np.inf, 0.0, "not computed")
UNKNOWN = UnknownKind("unknown kind 'hologram' of family 'f'")


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ([[GOOD]], 0),
        ([[GOOD], [BAD, LOST]], 1),
        ([[GOOD], UNKNOWN], 2),
        ([UNKNOWN, [BAD]], 1),
        ([InputError("no weights")], 1),
    ],
)
def test_parity_report(outcomes, status, tmp_path, monkeypatch, capsys):
    def run_case(folder):
        outcome = outcomes[int(folder.name)]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    for i in range(len(outcomes)):
        (tmp_path / "cases" / str(i)).mkdir(parents=True)
        (tmp_path / "cases" / str(i) / "case.json").write_text("{}")
    monkeypatch.setattr(parity, "run_case", run_case)
    found, out, err = run(capsys, "parity", tmp_path / "cases", "--json", tmp_path / "new" / "report.json")
    assert found == status
    assert len(err) == sum(isinstance(outcome, Exception) for outcome in outcomes)
    assert ("hologram" in "".join(err)) == (UNKNOWN in outcomes)
    lost = [line for line in out.splitlines() if line.startswith("DIFFERS")]
    expected = [result for outcome in outcomes if isinstance(outcome, list) for result in outcome]
    assert len(lost) == sum(not result.passed for result in expected)
    assert all(r.output in line and r.note in line for r, line in zip(expected[1:], lost, strict=False) if not r.passed)
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert [(r["case"], r["output"], r["passed"]) for r in report] == [(r.case, r.output, r.passed) for r in expected]


def test_parity_without_cases(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "none"):
        status, _, err = run(capsys, "parity", folder)
        assert status == 1 and len(err) == 1 and str(folder) in err[0]


def test_parity_in_float64():
    code = (
        "import sys, jax; from pathlib import Path; from zoo import cli, parity; "
        "parity.find_cases = lambda folders: folders; "
        "x64 = lambda: float(jax.config.jax_enable_x64); "
        "parity.run_case = lambda folder: [parity.Result('f/a', 'x', 'float', 0.0, x64())]; "
        "sys.exit(cli.main(['parity', '.', '--float64', '--json', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, "/dev/stdout"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and '"limit": 1.0' in done.stdout, done.stderr


def test_interruption_and_closed_pipes(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "list", interrupted)
    assert run(capsys, "list") == (130, "", ["zoo: interrupted"])
    code = "import sys; from zoo.cli import main; sys.exit(main(['--help']) or main(['parity', '--help']))"
    command = f'set -o pipefail; {sys.executable} -c "{code}" | true'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and done.returncode in (0, 141)


def test_bugs_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(commands, "encode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["encode", "a.png"])


def test_the_compilation_cache_of_the_user_stays(monkeypatch, tmp_path):
    import jax

    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", "elsewhere")
        commands.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == "elsewhere"
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file" / "below"))
        (tmp_path / "file").write_text("")
        commands.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir is None
        monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
        commands.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache" / "xla")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_default_model_is_for_images():
    assert commands.DEFAULT_MODEL == NAME and titok.CONFIG is type(CONFIG)
