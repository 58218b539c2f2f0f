"""Name rules: strict both ways, bit-equal, and complete for the published checkpoints at full size."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from zoo import convert, presets
from zoo.errors import WeightsError
from zoo.models.titok import TiTokConfig, ViTConfig
from zoo.presets.rules import plan, reference_shapes

HERE = Path(__file__).parent
VIT = ViTConfig(width=16, depth=2, heads=2, patch=8)
CONFIG = TiTokConfig(encoder=VIT, decoder=VIT, tokens=4, code_dim=4, vocab_size=8, image_size=16, clustering=True)


@pytest.fixture(scope="module")
def weights():
    """A state dict of a tiny TiTok with clustering VQ, with its own random numbers in every tensor."""
    leaves = convert.shapes_of(nnx.state(nnx.eval_shape(lambda: CONFIG.build(rngs=nnx.Rngs(0)))))
    shapes = reference_shapes(plan(presets.family("titok").rules(CONFIG), leaves), leaves)
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("path", sorted((HERE / "manifests").glob("*.json")), ids=lambda path: path.stem)
def test_rules_cover_the_published_checkpoint_at_full_size(path):
    manifest = json.loads(path.read_text())
    family = presets.family(manifest["family"])
    config = family.config_from_reference(manifest["config"])
    (preset,) = [preset for preset in family.PRESETS if preset.repository and preset.config == config]
    module = nnx.eval_shape(lambda: preset.config.build(rngs=nnx.Rngs(0)))
    leaves = convert.shapes_of(nnx.state(module))
    expected = reference_shapes(plan(family.rules(config), leaves), leaves)
    assert expected == {name: tuple(shape) for name, shape in manifest["params"].items()}
    assert preset.parameters == sum(map(np.prod, leaves.values())) == manifest["num_params"]


def test_round_trip_is_bit_equal(weights):
    tokenizer = convert.from_config("titok", CONFIG, weights)
    back = convert.to_reference(tokenizer)
    assert back.keys() == weights.keys()
    assert "quantize.embed_prob" in back  # a buffer, unused in inference, carried both ways
    assert all(np.array_equal(back[name], weights[name]) for name in weights)


def test_from_file_equals_from_arrays(weights, tmp_path):
    from safetensors.numpy import save_file

    save_file(weights, tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", **weights)
    for file in ("w.safetensors", "w.npz"):
        back = convert.to_reference(convert.from_config("titok", CONFIG, tmp_path / file))
        assert all(np.array_equal(back[name], weights[name]) for name in weights)


def test_misfits_are_listed_both_ways(weights):
    broken = dict(weights)
    del broken["latent_tokens"]
    broken["encoder.extra.weight"] = np.zeros(3, np.float32)
    broken["decoder.mask_token"] = np.zeros((1, 1, 5), np.float32)
    with pytest.raises(WeightsError) as error:
        convert.from_config("titok", CONFIG, broken)
    text = str(error.value)
    assert "1 missing: latent_tokens" in text
    assert "1 not of this model: encoder.extra.weight" in text
    assert "decoder.mask_token (1, 1, 5) instead of (1, 1, 16)" in text
    assert "\n" not in text


@pytest.mark.parametrize("family", presets.FAMILIES)
def test_every_golden_converts_back_bit_equal(family):
    for folder in (HERE / "goldens" / family).iterdir():
        case = json.loads((folder / "case.json").read_text())
        weights = convert.read_weights(folder / "weights.safetensors")
        back = convert.to_reference(convert.from_reference(family, case["reference_config"], weights))
        assert back.keys() == weights.keys()
        assert all(np.array_equal(back[name], weights[name]) for name in weights)
