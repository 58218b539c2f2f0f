"""Our numbers against the original implementations', every output by itself, and every output's check for teeth."""

from pathlib import Path

import jax
import numpy as np
import pytest

from zoo import parity, presets

GOLDENS = Path(__file__).parent / "goldens"
NAMES = [folder.relative_to(GOLDENS).as_posix() for folder in parity.find_cases([GOLDENS])]
SLOW = (
    "titok/single_stage_vae",
    "titok/stage1_l2_legacy",
    "titok/train_steps_stage1",
    "losses/recon_loss_single_stage_vae",
    "losses/recon_loss_stage2",
    "quantizers/residual_lfq",
    "quantizers/rvq_dropout_multiple",
    "quantizers/rvq_rotation_sizes",
    "quantizers/vq_projection_shared_heads",
    "wetok/gq_quantizer",
)
QUICKEST = [next(n for n in NAMES if n.startswith(f"{family}/") and n not in SLOW) for family in presets.FAMILIES]
QUICKEST += ["titok/train_steps_stage1", "losses/recon_loss_stage2"]
QUICKEST += [name for name in NAMES if name.startswith(("losses/", "metrics/")) and name not in SLOW]
KINDS = "bsq_official fsq_8x5x5x5 lfq_8bit rvq_euclid simvq_rotation vq_cosine vq_euclid_ste"
QUICKEST += [f"quantizers/{kind}" for kind in KINDS.split()] + ["wavtokenizer/vq_ema_step", "mimi/rvq_train_step"]
MARKS = {name: [pytest.mark.slow] if name in SLOW else [pytest.mark.family] for name in (*SLOW, *QUICKEST)}
CASES = [pytest.param(name, marks=MARKS.get(name, [])) for name in NAMES]


@pytest.fixture(scope="module", params=CASES)
def computed(request):
    """Case, stored arrays, and what we compute, once for all tests of a case."""
    folder = GOLDENS / request.param
    case, io = parity.read_case(folder)
    return case, io, parity.compute(case, io, folder)


def test_every_output_equals_the_original(computed):
    case, io, ours = computed
    results = parity.compare_all(case, ours, io)
    assert len(results) == sum(about["check"] != "info" for about in case["outputs"].values())
    assert [r for r in results if not r.passed] == []


def test_each_output_disturbed_alone_is_caught(computed):
    case, io, ours = computed
    for output, about in case["outputs"].items():
        if about["check"] == "info":
            continue
        stored = io[output]
        step = 16 if about["check"] == "uint8" else 1
        disturbed = stored + step if np.issubdtype(stored.dtype, np.integer) else stored * np.float32(1.1)
        disturbed = disturbed if stored.any() else disturbed + 1
        failed = [r.output for r in parity.compare_all(case, ours, io | {output: disturbed}) if not r.passed]
        assert failed == [output]


@pytest.mark.float64
@pytest.mark.parametrize("name", QUICKEST)
def test_float64_within_twice_the_originals_noise(name):
    assert jax.config.jax_enable_x64, "run with JAX_ENABLE_X64=1"
    results = parity.run_case(GOLDENS / name)
    assert [r for r in results if not r.passed] == []


def test_ids_may_differ_only_where_the_decision_is_close():
    ids = np.arange(1000)
    near = np.where(ids == 7, 1e-6, 1.0)
    about, case = {"check": "ids"}, {}
    swapped = np.where(ids == 7, 8, ids)
    assert parity.compare("c", "ids", about, case, parity.Ids(swapped, near), ids).passed
    assert not parity.compare("c", "ids", about, case, parity.Ids(swapped, np.ones(1000)), ids).passed
    close = np.where(ids < 3, 1e-6, 1.0)  # three undecidable of a thousand are too many
    assert not parity.compare("c", "ids", about, case, parity.Ids(ids, close), ids).passed


def test_nan_equals_nan_and_nothing_else():
    about, case = {"check": "float"}, {}
    a = np.array([1.0, np.nan])
    assert parity.compare("c", "x", about, case, a, a).passed
    assert not parity.compare("c", "x", about, case, np.array([np.nan, 1.0]), a).passed


def test_manifest_folders_are_skipped_and_empty_ones_refused(tmp_path):
    (tmp_path / "manifest").mkdir()
    (tmp_path / "manifest" / "case.json").write_text("{}")
    with pytest.raises(parity.DataError, match="no parity case"):
        parity.find_cases([tmp_path])
    assert set(SLOW) < set(NAMES)


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("vq_cosine", {"constructor": {"stochastic_sample_codes": True}}, "stochastic_sample_codes"),
        ("vq_cosine", {"forward_kwargs": {"topk": 2}}, "topk"),
        ("rvq_dropout", {"train_calls": [{"beam_size": 2}] * 3}, "beam_size"),
        ("simvq_rotation", {"constructor": {"codebook_transform": "Dropout(p=0.5, inplace=False)"}}, "Dropout"),
        ("lfq_8bit", {"cls": "EvoLFQ"}, "EvoLFQ"),
    ],
)
def test_an_argument_without_a_counterpart_is_an_unknown_kind(name, change, named):
    folder = GOLDENS / "quantizers" / name
    case, io = parity.read_case(folder)
    for key, value in change.items():
        about = case["reference_config"]
        about[key] = about[key] | value if isinstance(value, dict) else value
    with pytest.raises(parity.UnknownKind, match=named):
        parity.compute(case, io, folder)
