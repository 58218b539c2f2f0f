"""Training: one program on any mesh, and a run that nothing throws off its path."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import lines, ten_pictures, write_config

from zoo import sharding
from zoo.checkpoint import Checkpoints
from zoo.data.loader import DataConfig
from zoo.errors import DataError, InputError, TrainingError
from zoo.launch import main as zoo_train
from zoo.models.titok import TiTokConfig, ViTConfig
from zoo.optim import Optimizer
from zoo.pretrained import load
from zoo.recipes.reconstruction import Reconstruction
from zoo.step import Program
from zoo.train import MeshConfig, TrainConfig, train

VIT = ViTConfig(width=16, depth=2, heads=2, patch=16)
MODEL = TiTokConfig(encoder=VIT, decoder=VIT, tokens=4, code_dim=4, vocab_size=16, image_size=32, narrow=True)
CONFIG = TrainConfig(
    recipe=Reconstruction(model=MODEL, autoencode_steps=3),
    data=DataConfig(batch_size=8, image_size=32, holdout=0.2, threads=0),
    optim=Optimizer(lr=1e-2, warmup=1),
    mesh=MeshConfig(data=1),
    steps=8,
    log_every=1,
    save_every=2,
    picture_every=0,
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of ten pictures."""
    return ten_pictures(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def config(photos):
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, path=str(photos)))


def batches(n, rng=None):
    rng = np.random.default_rng(0)
    return [{"image": rng.integers(0, 256, (8, 32, 32, 3), np.uint8)} for _ in range(n)]


def losses(workdir):
    """step -> loss"""
    return {step: line["loss"] for step, line in lines(workdir).items()}


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    metrics = train(config, workdir)
    return workdir, metrics


# -- the step


def run_steps(config, mesh, n=3):
    program = Program(config, mesh)
    state, out = program.init(), []
    for step, batch in enumerate(batches(n)):
        batch = sharding.put_batch(mesh, batch)
        if config.recipe.prepare_at(step):
            state = program.prepare(state, batch)
        state, metrics = program.step(state, batch)
        out.append(jax.device_get(metrics))
    return state, out, program


@pytest.mark.parametrize(("data", "fsdp"), [pytest.param(8, 1, marks=pytest.mark.slow), (2, 4)])
def test_eight_devices_equal_one(monkeypatch, data, fsdp):
    monkeypatch.setattr(sharding, "SMALLEST", 64)  # so that the tiny arrays are split as well
    recipe = dataclasses.replace(CONFIG.recipe, autoencode_steps=1)
    config = dataclasses.replace(CONFIG, recipe=recipe)
    one, metrics_one, _ = run_steps(config, sharding.make_mesh(1))
    many, metrics_many, program = run_steps(config, sharding.make_mesh(data, fsdp))
    if fsdp > 1:
        split = [leaf for leaf in jax.tree.leaves(many.params) if not leaf.sharding.is_fully_replicated]
        assert len(split) > 5
    for a, b in zip(metrics_one, metrics_many, strict=True):
        for name in ("loss", "l2", "commitment", "codebook", "grad_norm"):
            assert abs(a[name] - b[name]) <= 2e-5 * abs(a[name]) + 1e-9, name
    np.testing.assert_array_equal(one.counts, many.counts)


def test_accumulation_equals_one_large_batch():
    config = dataclasses.replace(CONFIG, recipe=dataclasses.replace(CONFIG.recipe, autoencode_steps=0))
    _, whole, _ = run_steps(config, sharding.make_mesh(1))
    _, parts, _ = run_steps(dataclasses.replace(config, accumulate=4), sharding.make_mesh(2))
    for a, b in zip(whole, parts, strict=True):
        for name in ("loss", "l2", "commitment", "grad_norm", "perplexity"):
            np.testing.assert_allclose(a[name], b[name], rtol=2e-5, err_msg=name)


def test_compiles_once_and_never_syncs():
    mesh = sharding.make_mesh(8)
    program = Program(CONFIG, mesh)
    state = program.init()
    data = [sharding.put_batch(mesh, batch) for batch in batches(6)]
    state, _ = program.step(state, data[0])
    with jax.transfer_guard("disallow"), jax.log_compiles(False):
        for batch in data[1:]:
            state, _ = program.step(state, batch)
    assert program.jit_step._cache_size() == 1


def test_step_lowers_for_tpu_and_cuda():
    mesh = sharding.make_mesh(4, 2)
    program = Program(CONFIG, mesh)
    batch = {"image": jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.uint8, sharding=sharding.batch_sharding(mesh))}
    for platform in ("tpu", "cuda"):
        exported = jax.export.export(program.jit_step, platforms=[platform])(
            program.target, batch, program.frozen, program.active(None)
        )
        assert exported.nr_devices == 8


@pytest.mark.slow
def test_bfloat16_keeps_float32_state():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    state, metrics, program = run_steps(config, sharding.make_mesh(1), n=1)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
    reference = run_steps(CONFIG, sharding.make_mesh(1), n=1)[1]
    np.testing.assert_allclose(metrics[0]["l2"], reference[0]["l2"], rtol=2e-2)
    text = str(jax.make_jaxpr(program._step, static_argnums=3)(state, batches(1)[0], {}, ("tokenizer",)))
    assert "bf16" in text


def test_a_bad_step_changes_nothing():
    mesh = sharding.make_mesh(1)

    class Fragile(Reconstruction):
        def terms(self, nets, x, *rest):
            return super().terms(nets, x, *rest) | {"bad": (1.0, jnp.where(jnp.mean(x) > 0.6, jnp.nan, 0.0))}

    program = Program(dataclasses.replace(CONFIG, recipe=Fragile(model=MODEL)), mesh)
    state = program.init()
    good, bad = batches(1)[0], {"image": np.full((8, 32, 32, 3), 250, np.uint8)}
    state, _ = program.step(state, sharding.put_batch(mesh, good))
    before = jax.device_get(state)
    for batch in (bad, good):  # nor does a good one after it
        state, _ = program.step(state, sharding.put_batch(mesh, batch))
    assert int(state.bad_step) == 1 and int(state.step) == 3
    for name in ("params", "opt", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(jax.device_get(state), name))


# -- the run


def test_a_run_leaves_what_the_contract_says(whole, config):
    workdir, metrics = whole
    made = ("config.json", "metrics.jsonl", "checkpoints/8", "tensorboard", "release/config.json", "eval/worst.png")
    for name in made:
        assert (workdir / name).exists(), name
    assert list(losses(workdir)) == list(range(1, 9))
    line = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"step", "loss", "l2", "psnr", "usage", "perplexity", "lr", "grad_norm", "images_per_second"} <= line.keys()
    assert {"psnr", "ssim", "thumbnail_psnr", "usage", "perplexity"} <= metrics.keys()
    assert load(workdir / "release").module.config == MODEL
    assert json.loads((workdir / "config.json").read_text())["recipe"]["model"]["tokens"] == 4


def test_the_same_command_on_a_finished_run_does_nothing(whole, config, capsys, tmp_path):
    workdir, _ = whole
    before = (workdir / "metrics.jsonl").read_bytes()
    assert zoo_train([str(write_config(tmp_path, config)), "--workdir", str(workdir)]) == 0
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert "is finished" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [3, 6])
def test_resumed_equals_uninterrupted(whole, config, tmp_path, stop):
    class Stop(Exception):
        pass

    from zoo import runlog

    def interrupt(self, step, *rest, write=runlog.RunLog.write):
        write(self, step, *rest)
        if step == stop + 1:  # one step beyond a checkpoint: it is done again
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runlog.RunLog, "write", interrupt)
        with pytest.raises(Stop):
            train(config, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a killed run leaves half a line
    train(config, tmp_path)
    assert losses(tmp_path) == losses(whole[0])


def test_resume_on_other_devices(whole, config, tmp_path, capsys):
    train(dataclasses.replace(config, steps=4), tmp_path)
    more = dataclasses.replace(config, mesh=MeshConfig(data=4, fsdp=2))
    train(more, tmp_path)
    assert "note: steps was 4, now 8" in capsys.readouterr().err
    assert list(losses(tmp_path)) == list(range(1, 9))


def test_an_altered_checkpoint_is_skipped(whole, config, tmp_path, capsys):
    train(dataclasses.replace(config, steps=4), tmp_path)
    file = max((tmp_path / "checkpoints" / "4" / "state").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    train(config, tmp_path)
    assert "skipped checkpoint 4" in capsys.readouterr().err
    assert list(losses(tmp_path)) == list(range(1, 9))
    assert (tmp_path / "checkpoints" / "rejected" / "4.0").is_dir()


def test_nan_names_the_step_and_keeps_the_checkpoint(config, tmp_path):
    calls = dataclasses.replace(config, optim=Optimizer(lr=1e30, warmup=1, clip=1e30))
    with pytest.raises(TrainingError, match=r"step \d+: .*(loss|l2) = (nan|inf).*lower optim.lr"):
        train(calls, tmp_path)
    assert all(np.isfinite(loss) for loss in losses(tmp_path).values())
    program = Program(config, sharding.make_mesh(1))
    restored = Checkpoints(tmp_path / "checkpoints").restore_latest(program.target)
    if restored is not None:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(restored[1].params)))


def test_corrupt_photos_are_replaced_counted_and_listed(config, photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.png").write_bytes((photos / f"{i}.png").read_bytes())
    (folder / "x.jpg").write_text("not an image")
    data = dataclasses.replace(config.data, path=str(folder), max_corrupt=0.2)
    train(dataclasses.replace(config, data=data), tmp_path / "run")
    assert list(json.loads((tmp_path / "run" / "corrupt.json").read_text())) == ["x.jpg"]
    strict = dataclasses.replace(data, max_corrupt=0.05)
    with pytest.raises(DataError, match=r"1 of \d+ items are unreadable"):
        train(dataclasses.replace(config, data=strict), tmp_path / "strict")


def test_fine_tuning_starts_from_the_release(whole, config, tmp_path):
    other = dataclasses.replace(MODEL, tokens=6)
    tune = dataclasses.replace(
        config,
        recipe=Reconstruction(model=other),
        init=str(whole[0] / "release"),
        optim=Optimizer(lr=0.0, end_lr=0.0, warmup=1),
        steps=2,
    )
    train(tune, tmp_path)
    a, b = load(whole[0] / "release"), load(tmp_path / "release")
    assert b.module.config == a.module.config
    x = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(a.encode(x).ids, b.encode(x).ids)


def test_bad_settings_end_in_one_line(config, tmp_path, capsys):
    with pytest.raises(InputError, match="multiple of 3"):
        train(dataclasses.replace(config, mesh=MeshConfig(data=3)), tmp_path)
    with pytest.raises(InputError, match="there are 8"):
        train(dataclasses.replace(config, mesh=MeshConfig(data=16)), tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="empty folder"):
        train(dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(empty))), tmp_path / "w")


# -- the command


def test_typos_are_usage_errors(config, tmp_path, capsys):
    from zoo.cli import main

    assert main(["train", "smoke/titokk"]) == 2
    assert "did you mean 'smoke/titok'" in capsys.readouterr().err
    path = write_config(tmp_path, config)
    status = main(["train", str(path), "--optim.lrr", "1"])
    assert status == 2
    assert "optim.lr" in capsys.readouterr().err


def start(path, workdir, cache):
    command = [sys.executable, "-m", "zoo.cli", "train", str(path), "--workdir", str(workdir)]
    env = os.environ | {"ZOO_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def wait_for_step(process, workdir, step):
    while process.poll() is None:
        try:
            if len((workdir / "metrics.jsonl").read_text().splitlines()) >= step:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.02)


def test_sigterm_saves_and_exits_zero(whole, config, tmp_path):
    longer = dataclasses.replace(config, steps=5000, save_every=5000)
    path, workdir = write_config(tmp_path, longer), tmp_path / "run"
    process = start(path, workdir, tmp_path / "cache")
    wait_for_step(process, workdir, 5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "SIGTERM: saved step" in err
    saved = Checkpoints(workdir / "checkpoints").steps()
    assert saved == [max(losses(workdir))]


@pytest.mark.slow
def test_killed_at_random_moments_equals_uninterrupted(config, tmp_path):
    steps = 60
    config = dataclasses.replace(config, steps=steps, save_every=2)
    path, cache = write_config(tmp_path, config), tmp_path / "cache"
    process = start(path, tmp_path / "whole", cache)
    assert process.wait() == 0, process.stderr.read()
    rng, kills = random.Random(0), 0
    workdir = tmp_path / "killed"
    while True:
        process = start(path, workdir, cache)
        if kills < 5:
            done = len(losses(workdir)) if (workdir / "metrics.jsonl").exists() else 0
            wait_for_step(process, workdir, done + rng.randint(3, 8))
            time.sleep(rng.random() * 0.05)
            process.kill()
            kills += 1
        if process.wait() == 0:
            break
    assert kills == 5
    assert losses(workdir) == losses(tmp_path / "whole")


@pytest.mark.slow
def test_smoke_config_trains_and_the_loss_falls(tmp_path):
    assert zoo_train(["smoke/titok", "--workdir", str(tmp_path), "--mesh.data", "1"]) == 0
    values = list(losses(tmp_path).values())
    assert np.mean(values[-10:]) < 0.6 * np.mean(values[:5])
