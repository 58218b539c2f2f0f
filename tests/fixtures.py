"""A tiny random TiTok in place of the bundled release, for tests of the command line."""

import re

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from zoo import presets, pretrained
from zoo.cli import main
from zoo.models.titok import TiTokConfig, ViTConfig
from zoo.presets import Preset, titok
from zoo.tokenizer import Tokenizer

NAME = "titok_tiny.photos"
VIT = ViTConfig(width=32, depth=1, heads=2, patch=16)
CONFIG = TiTokConfig(encoder=VIT, decoder=VIT, tokens=8, code_dim=4, vocab_size=64, l2_norm=True, image_size=64)
PRESET = Preset(
    name=NAME,
    family="titok",
    config=CONFIG,
    parameters=47_000,
    licence="Apache-2.0",
    paper="2406.07550",
    bundled=True,
)


def save_release(folder, config=CONFIG, name=NAME):
    """Writes a release with random weights that give different images different ids."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0))))

    def draw(path, leaf):
        return np.float32(path[-1].key == "scale") + rng.normal(0, 0.2, leaf.shape).astype(np.float32)

    arrays = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))
    kernel = arrays["encoder"]["patch_embed"]["proj"]["kernel"]
    kernel -= kernel.mean(0)  # brightness alone would drown the rest
    tokenizer = Tokenizer(nnx.merge(graph, arrays), name=name, family="titok")
    pretrained.save(tokenizer, folder, preset=name, licence="Apache-2.0")
    return folder


@pytest.fixture(scope="session")
def tiny_release(tmp_path_factory):
    """The folder of a release; not to be changed."""
    return save_release(tmp_path_factory.mktemp("releases") / NAME)


@pytest.fixture
def tiny_preset(tiny_release, monkeypatch):
    """The name of a bundled preset whose release is `tiny_release`."""
    return bundle(tiny_release, monkeypatch)


def bundle(release, patch):
    """Makes `release` the bundled one."""
    others = tuple(preset for preset in titok.PRESETS if preset.name != NAME)
    patch.setattr(titok, "PRESETS", (*others, PRESET))
    for module in (presets, pretrained):
        patch.setattr(module, "RELEASES", release.parent)
    return NAME


@pytest.fixture(autouse=True, scope="session")
def compilation_cache(tmp_path_factory):
    """Keeps the programs that the commands compile out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "zoo_cache"))
        yield


@pytest.fixture
def photo(tmp_path):
    """A small JPEG, and its folder to itself."""
    path = tmp_path / "photos" / "photo.jpg"
    path.parent.mkdir()
    Image.fromarray(pixels(80, 100)).save(path)
    return path


def pixels(h, w, seed=0):
    """Smooth random colours, uint8 [h, w, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((w, h), Image.Resampling.BICUBIC))


def run(capsys, *words):
    """Runs a command: its exit status, stdout, and the lines of stderr but for progress bars."""
    capsys.readouterr()
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    lines = [line.strip() for line in re.split("[\r\n]", err)]
    return status, out, [line for line in lines if line and not re.match(r"\w+: +\d+%\|", line)]
