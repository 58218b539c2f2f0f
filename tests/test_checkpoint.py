"""Checkpoints and releases: nothing is lost, nothing damaged is used, and every refusal is one line."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from zoo.checkpoint import Checkpoints, load_release, read_release_config, save_release, sha256_of
from zoo.errors import CheckpointError, WeightsError

CONFIG = {"family": "titok", "config": {"depth": 2, 3: "int key"}, "spec": {}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    """A training state with everything that ours have: dataclass, int keys, optax tuples, scalars."""

    params: dict
    optimizer: tuple
    step: jax.Array


def sharding(devices: int, *axes: str):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec(*axes))


def make_state(devices: int = 1) -> State:
    rng = np.random.default_rng(0)
    params = {
        "blocks": {0: rng.normal(size=(16, 8)), 1: rng.normal(size=(16, 8))},
        "scale": rng.normal(size=(8,)),
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = State(params, optax.adamw(1e-3).init(params), jnp.int32(7))

    def place(x):
        return sharding(devices, "data") if x.shape[:1] == (16,) else sharding(devices)

    return jax.device_put(state, jax.tree.map(place, state))


def target_of(state, devices: int | None = None):
    def one(x):
        placed = x.sharding if devices is None else sharding(devices, *x.sharding.spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)

    return jax.tree.map(one, state)


def same(a, b) -> bool:
    equal = jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
    return jax.tree.all(equal)


def filled(step: int) -> dict:
    return {"w": jnp.full((64, 64), float(step)), "n": jnp.int32(step)}


def fill(folder, *steps: int, keep: int = 9) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, filled(step), {"lr": 0.1 * step})
    checkpoints.wait()
    return checkpoints


def largest_file(folder):
    return max((path for path in folder.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 700
    return text


def test_a_state_comes_back_bit_equal_on_8_2_and_1_devices(tmp_path):
    state = make_state(8)
    checkpoints = Checkpoints(tmp_path / "new" / "checkpoints")
    checkpoints.save(7, state, {"lr": 0.1, "name": "é"})
    checkpoints.wait()
    for devices in (8, 2, 1):
        step, restored, meta = Checkpoints(checkpoints.folder).restore_latest(target_of(state, devices))
        assert (step, meta) == (7, {"lr": 0.1, "name": "é"})
        assert jax.tree.structure(restored) == jax.tree.structure(state) and same(restored, state)
        assert len(restored.params["blocks"][0].sharding.device_set) == devices


def test_no_step_is_none_and_half_written_ones_do_not_count(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.steps() == [] and checkpoints.restore_latest(target_of(filled(0))) is None
    (tmp_path / "none" / "tmp.3.orbax-checkpoint-tmp").mkdir(parents=True)
    assert checkpoints.restore_latest(target_of(filled(0))) is None


def test_donating_right_after_save_does_not_touch_what_is_saved(tmp_path):
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = {str(i): jnp.zeros((500, 500)) for i in range(8)}
    target = target_of(state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, state, {})
    for _ in range(10):
        state = add(state)
    _, restored, _ = checkpoints.restore_latest(target)
    assert all(not np.any(x) for x in restored.values())


def test_only_the_newest_are_kept_and_the_same_step_is_saved_once(tmp_path):
    checkpoints = fill(tmp_path, 1, 5, 10, 20, keep=2)
    assert checkpoints.steps() == [10, 20]
    checkpoints.save(20, filled(21), {})
    assert checkpoints.restore_latest(target_of(filled(0)))[1]["n"] == 20
    with pytest.raises(CheckpointError) as error:
        Checkpoints(tmp_path).save(20, filled(20), {})
    assert "already in" in one_line(error)


def test_keep_counts_undamaged_steps_only(tmp_path):
    fill(tmp_path, 1, 2, 3, 4, 5)
    for step in (1, 2, 3):
        (tmp_path / str(step) / "sha256.json").unlink()
    assert fill(tmp_path, 6, keep=4).steps() == [1, 2, 3, 4, 5, 6]
    assert fill(tmp_path, 7, keep=2).steps() == [1, 2, 3, 6, 7]


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("two_steps"), 2, 3).folder


def truncate(step):
    os.truncate(largest_file(step), 100)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda step: flip_a_byte(largest_file(step)), "altered"),
        (lambda step: flip_a_byte(step / "config.json"), "altered"),
        (lambda step: flip_a_byte(step / "sha256.json"), "3 ("),
        (truncate, "truncated"),
        (lambda step: largest_file(step).unlink(), "is missing"),
        (lambda step: (step / "sha256.json").unlink(), "sha256.json is missing"),
        (lambda step: (step / "sha256.json").write_text("[]"), "sha256.json"),
        (lambda step: (step / "state" / "stray").touch(), "stray is not listed"),
    ],
)
def test_a_damaged_step_is_named_skipped_and_never_deleted(two_steps, tmp_path, capfd, damage, said):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "3")
    before = sorted(tmp_path.joinpath("3").rglob("*"))
    checkpoints = Checkpoints(tmp_path, keep=1)
    step, state, meta = checkpoints.restore_latest(target_of(filled(0)))
    assert (step, int(state["n"]), meta) == (2, 2, {"lr": 0.2})
    warning = capfd.readouterr().err
    assert warning.count("\n") == 1 and said in warning and "3 (" in warning and "step 2 is used" in warning

    checkpoints.save(4, filled(4), {})
    checkpoints.wait()
    assert checkpoints.steps() == [3, 4]  # 2 is pruned, 3 stays
    assert sorted(tmp_path.joinpath("3").rglob("*")) == before


def test_a_damaged_step_saved_again_moves_to_rejected(tmp_path):
    fill(tmp_path, 2, 3)
    for _ in range(2):
        flip_a_byte(largest_file(tmp_path / "3"))
        checkpoints = Checkpoints(tmp_path)
        assert checkpoints.restore_latest(target_of(filled(0)))[0] == 2
        checkpoints.save(3, filled(3), {})
        checkpoints.wait()
        assert Checkpoints(tmp_path).restore_latest(target_of(filled(0)))[0] == 3
    assert sorted(os.listdir(tmp_path / "rejected")) == ["3.0", "3.1"]
    assert (tmp_path / "rejected" / "3.0" / "sha256.json").exists()


def test_only_damaged_steps_is_an_error(tmp_path):
    fill(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / str(step) / "sha256.json").unlink()
    with pytest.raises(CheckpointError) as error:
        Checkpoints(tmp_path).restore_latest(target_of(filled(0)))
    assert "1 (sha256.json" in one_line(error) and "2 (sha256.json" in str(error.value)


def test_a_state_of_another_model_is_refused_by_name(tmp_path):
    state = make_state()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    target = target_of(state)
    target.params["blocks"][1] = jax.ShapeDtypeStruct((16, 9), jnp.float32, sharding=sharding(1))
    target.params["bias"] = target.params.pop("scale")
    with pytest.raises(CheckpointError) as error:
        checkpoints.restore_latest(target)
    text = one_line(error)
    assert "params/blocks/1 is (16, 8), expected (16, 9)" in text
    assert "missing: params/bias" in text and "unexpected: params/scale" in text


def test_an_unwritable_folder_is_one_line(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError) as error:
        Checkpoints(tmp_path / "file" / "checkpoints").save(1, filled(1), {})
    assert "Not a directory" in one_line(error)
    with pytest.raises(CheckpointError) as error:
        save_release(tmp_path / "file" / "release", {"w": np.ones(3)}, CONFIG)
    assert "Not a directory" in one_line(error)
    assert capfd.readouterr().err == ""


def test_a_failed_background_save_surfaces_once_and_older_steps_stay(tmp_path, monkeypatch):
    checkpoints = fill(tmp_path, 1)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("zoo.checkpoint.write_json", full)
        checkpoints.save(2, filled(2), {})
        with pytest.raises(CheckpointError) as error:
            checkpoints.save(3, filled(3), {})
    assert "checkpoint 2 was not saved" in one_line(error) and "No space left" in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["1"]
    checkpoints.save(2, filled(2), {})
    assert checkpoints.restore_latest(target_of(filled(0)))[0] == 2


SAVER = """
import sys, jax.numpy as jnp
from zoo.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
first = max(checkpoints.steps(), default=0) + 1
print("ready", flush=True)
for step in range(first, 10_000):
    state = {str(i): jnp.full((200, 200), step, jnp.float32) for i in range(6)}
    checkpoints.save(step, state, {"step": step})
"""


def test_sigkill_at_random_moments_leaves_whole_steps(tmp_path, capfd):
    target = target_of({str(i): jnp.zeros((200, 200)) for i in range(6)})
    newest = 0
    for seed in range(3):
        command = [sys.executable, "-c", SAVER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(random.Random(seed).uniform(0.4, 1.0))
            process.send_signal(signal.SIGKILL)
        found = Checkpoints(tmp_path).restore_latest(target)
        if found:
            step, state, meta = found
            assert meta == {"step": step} and all(np.all(np.asarray(x) == step) for x in state.values())
            assert step >= newest
            newest = step
    assert newest > 0 and capfd.readouterr().err == ""


def release_arrays() -> dict:
    rng = np.random.default_rng(1)
    layers = {i: {"kernel": rng.normal(size=(8, 8)).astype(np.float32)} for i in range(58)}
    half = rng.normal(size=(4, 4)).astype(np.float16)
    return {"layers": layers, "half": half, "brain": jnp.asarray(half, jnp.bfloat16), "n": jnp.int32(3)}


def as_float32(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=sharding(2)), tree)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release") / "titok_tiny"
    save_release(folder, release_arrays(), CONFIG)
    return folder


@pytest.fixture
def release(written, tmp_path):
    return shutil.copytree(written, tmp_path / "titok_tiny")


def test_a_release_comes_back_in_float32_and_with_orbax_alone(release):
    arrays = release_arrays()
    restored = load_release(release, as_float32(arrays))
    assert same(restored, jax.tree.map(lambda x: np.asarray(x, np.float32), arrays))
    alone = ocp.load(str(release / "arrays"))
    assert alone["half"].dtype == np.float16 and same(alone["half"], arrays["half"])
    assert alone["brain"].dtype == jnp.bfloat16 and alone["layers"]["57"]["kernel"].shape == (8, 8)


def test_a_release_lists_every_array_file_and_has_few(release):
    config = read_release_config(release)
    assert config["format"] == 1 and config["family"] == "titok" and config["config"]["depth"] == 2
    files = [path for path in release.rglob("*") if path.is_file()]
    assert sum(path.parent.name != "d" for path in files) == 7
    # 5 to 10 others hold the data: how orbax gathers its writes into files depends on their timing
    assert len(files) <= 32 and sum(path.stat().st_size for path in files) < 80_000
    assert config["sha256"] == {
        path.relative_to(release).as_posix(): sha256_of(path) for path in files if path.name != "config.json"
    }


def test_any_altered_byte_in_a_release_is_found(release):
    for path in sorted(path for path in release.rglob("*") if path.is_file() and path.stat().st_size):
        original = path.read_bytes()
        flip_a_byte(path)
        with pytest.raises(CheckpointError) as error:
            load_release(release, as_float32(release_arrays()))
        assert path.relative_to(release).as_posix() in one_line(error)
        path.write_bytes(original)
    edited = (release / "config.json").read_text().replace('"depth": 2', '"depth": 3')
    (release / "config.json").write_text(edited)
    with pytest.raises(CheckpointError, match="config.json is altered"):
        load_release(release, as_float32(release_arrays()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path, config: shutil.rmtree(path.parent), "does not exist"),
        (lambda path, config: path.unlink(), "has no config.json"),
        (lambda path, config: path.write_text("{"), "JSON"),
        (lambda path, config: path.write_text("[]"), "JSON"),
        (lambda path, config: path.write_text(json.dumps({**config, "format": 2})), "has format 2"),
        (lambda path, config: path.write_text(json.dumps({"format": 1})), "lacks family, config, sha256"),
        (lambda path, config: path.write_text(json.dumps({**config, "format": "x"})), "invalid format"),
    ],
)
def test_a_bad_release_config_is_one_line(release, change, said):
    change(release / "config.json", read_release_config(release))
    with pytest.raises(CheckpointError) as error:
        read_release_config(release)
    assert said in one_line(error) and "titok_tiny" in str(error.value)


def test_a_release_of_another_shape_names_both_ways(release):
    target = as_float32(release_arrays())
    target["half"] = jax.ShapeDtypeStruct((4, 5), jnp.float32, sharding=sharding(1))
    target["other"] = target.pop("brain")
    with pytest.raises(WeightsError) as error:
        load_release(release, target)
    text = one_line(error)
    assert "half is (4, 4), expected (4, 5)" in text and "missing: other" in text and "unexpected: brain" in text


def test_a_release_is_replaced_whole_and_only_a_release_is(release, tmp_path, monkeypatch):
    (release / "picture.png").write_bytes(b"png")
    new = {"w": np.ones((2, 2), np.float32)}

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("zoo.checkpoint.write_json", full)
        with pytest.raises(CheckpointError, match="No space left"):
            save_release(release, new, CONFIG)
    load_release(release, as_float32(release_arrays()))  # the old one is whole

    save_release(release, new, CONFIG)
    assert same(load_release(release, as_float32(new)), new)
    assert (release / "picture.png").read_bytes() == b"png"
    assert os.listdir(tmp_path) == ["titok_tiny"]

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(b"png")
    with pytest.raises(CheckpointError, match="is no release"):
        save_release(photos, new, CONFIG)
    assert os.listdir(photos) == ["a.png"]
