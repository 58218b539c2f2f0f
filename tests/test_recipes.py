"""Recipes with helpers: teachers, frozen halves, discriminators, clustered codes; and every config at full size."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from zoo import commands, sharding
from zoo.data.labels import Labels
from zoo.data.loader import DataConfig, open_sources, train_batches
from zoo.errors import DataError, InputError, WeightsError
from zoo.launch import config_names, read_config
from zoo.launch import main as zoo_train
from zoo.models.maskgit_vqgan import MaskGitVqganConfig
from zoo.models.titok import TiTokConfig, ViTConfig
from zoo.optim import Optimizer
from zoo.pretrained import load, save
from zoo.published import STAGE2
from zoo.quantize import EMAVQ
from zoo.recipes.gan import Critic, DiscriminatorConfig, Gan
from zoo.recipes.proxy_codes import ProxyCodes
from zoo.recipes.reconstruction import Reconstruction
from zoo.step import Program
from zoo.tokenizer import Tokenizer
from zoo.train import MeshConfig, TrainConfig, start, train

SIDE = 16
VIT = ViTConfig(width=16, depth=1, heads=2, patch=4)
TEACHER = MaskGitVqganConfig(width=32, multipliers=(1, 1, 1), blocks=1, code_dim=8, vocab_size=16)
LEGACY = TiTokConfig(
    encoder=VIT,
    decoder=VIT,
    tokens=4,
    code_dim=4,
    vocab_size=16,
    l2_norm=True,
    image_size=SIDE,
    legacy=True,
    teacher_vocab_size=16,
)
STAGE_2 = dataclasses.replace(LEGACY, pixel_decoder=TEACHER)
TEXT_AWARE = dataclasses.replace(LEGACY, legacy=False, l2_norm=False, clustering=True, text=(3, 8))
CRITIC = DiscriminatorConfig(width=32, stages=1)
FULL = [name for name in config_names() if "/" not in name]
QUICK = ("titok_l32_stage1", "titok_l32_stage2", "tatitok_bl32_vq")


def run_config(recipe, **options):
    return TrainConfig(
        recipe=recipe,
        data=DataConfig(batch_size=8, image_size=SIDE, holdout=0.2, threads=0),
        optim=Optimizer(lr=1e-2, warmup=1),
        mesh=MeshConfig(data=1),
        steps=4,
        log_every=1,
        save_every=2,
        picture_every=0,
        **options,
    )


def batches(n, **more):
    rng = np.random.default_rng(0)
    return [{"image": rng.integers(0, 256, (8, SIDE, SIDE, 3), np.uint8), **more} for _ in range(n)]


def run_steps(config, mesh, data, helpers=None):
    program = Program(config, mesh, helpers or {})
    state, states, metrics = program.init(), [], []
    states.append(jax.device_get(state))
    for at, batch in enumerate(data):
        state, values = program.step(state, sharding.put_batch(mesh, batch), at)
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(values))
    return states, metrics


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


# -- one net after the other


@pytest.fixture(scope="module")
def adversarial():
    """Three steps of a clustered, text-aware tokenizer whose discriminator starts at the second."""
    recipe = Gan(model=TEXT_AWARE, family="tatitok", text="empty", discriminator=CRITIC, discriminator_start=1)
    config = run_config(recipe)
    return config, *run_steps(config, sharding.make_mesh(1), batches(3))


def test_the_discriminator_waits_for_its_start(adversarial):
    _, states, metrics = adversarial
    critics = [state.params["discriminator"] for state in states]
    assert same(critics[0], critics[1]) and same(critics[1], critics[2])  # its own first rate is 0
    assert not same(critics[2], critics[3])
    assert not {"gan", "discriminator/loss"} & metrics[0].keys()
    assert metrics[1]["gan"] != 0 and metrics[1]["discriminator/loss"] > 0
    np.testing.assert_allclose(metrics[1]["gan"], -metrics[1]["discriminator/logits_fake"], rtol=1e-5)


def test_lecam_averages_follow_the_logits(adversarial):
    _, states, metrics = adversarial
    averages = [state.rest["discriminator"]["averages"] for state in states]
    np.testing.assert_array_equal(averages[1], [0, 0])
    for i in (1, 2):
        means = np.array([metrics[i][f"discriminator/logits_{which}"] for which in ("real", "fake")])
        np.testing.assert_allclose(averages[i + 1], 0.999 * averages[i] + 0.001 * means, rtol=1e-5)


def test_the_critics_numbers_are_float32_in_a_bfloat16_run():
    critic = Critic(CRITIC, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    image = jax.ShapeDtypeStruct((2, SIDE, SIDE, 3), jnp.float32)
    recipe = Gan(model=TEXT_AWARE, discriminator=CRITIC)
    assert jax.eval_shape(critic, image).dtype == jnp.bfloat16
    loss, aux = jax.eval_shape(lambda x: recipe.discriminator_terms(critic, x, x), image)
    assert {leaf.dtype for leaf in jax.tree.leaves((loss, aux))} == {jnp.dtype(jnp.float32)}


def test_clustered_codes_follow_their_use(adversarial):
    config, states, _ = adversarial
    before, after = (state.rest["tokenizer"]["quantize"]["embed_prob"] for state in states[:2])
    counts = states[1].counts[0]
    assert counts.sum() == 8 * config.recipe.model.tokens
    np.testing.assert_allclose(after, 0.99 * before + 0.01 * counts / counts.sum(), rtol=1e-6)
    moved = (
        states[1].params["tokenizer"]["quantize"]["codebook"] != states[0].params["tokenizer"]["quantize"]["codebook"]
    )
    assert moved.any(1)[counts == 0].all()


@pytest.mark.slow
def test_more_devices_and_micro_batches_equal_one(adversarial, monkeypatch):
    config, _, one = adversarial
    monkeypatch.setattr(sharding, "SMALLEST", 64)
    _, many = run_steps(dataclasses.replace(config, accumulate=2), sharding.make_mesh(2, 2), batches(3))
    for a, b in zip(one, many, strict=True):
        for name in ("loss", "l2", "gan", "grad_norm", "discriminator/loss", "discriminator/grad_norm"):
            if name in a:
                assert abs(a[name] - b[name]) <= 2e-5 * abs(a[name]) + 1e-7, name


def test_stage_2_trains_the_decoders_only():
    recipe = Gan(model=STAGE_2, trained=STAGE2, commitment=0.0, codebook=0.0, discriminator=CRITIC)
    target = Program(run_config(recipe), sharding.make_mesh(1)).target
    assert set(target.params["tokenizer"]) == set(target.ema) == {"decoder", "pixel_decoder"}
    assert set(target.rest["tokenizer"]) == {"encoder", "quantize", "latent_tokens"}
    moments = {
        path[-1].key
        for path, _ in jax.tree_util.tree_flatten_with_path(target.opt["tokenizer"])[0]
        if hasattr(path[-1], "key")
    }
    assert "kernel" in moments and "latent_tokens" not in moments
    assert set(target.rest["discriminator"]) == {"averages"}


# -- a teacher


class WithAverages(Reconstruction):
    """Reconstruction of a tokenizer whose codes are averages, replaced where they are dead."""

    def build(self, *, dtype, rngs):
        nets = super().build(dtype=dtype, rngs=rngs)
        nets["tokenizer"].quantize = EMAVQ(16, 4, decay=0.5, dead_below=self.restart_every, rngs=rngs)
        return nets


@pytest.mark.slow
def test_codes_under_averages_move_with_the_step():
    """Once per step, after accumulation and over all devices; and dead ones become latents."""
    model = dataclasses.replace(LEGACY, legacy=False, l2_norm=False)
    config = run_config(WithAverages(model=model, family="titok", codebook=0.0))
    states, _ = run_steps(config, sharding.make_mesh(1), batches(3))
    before, after = (state.rest["tokenizer"]["quantize"] for state in states[:2])
    np.testing.assert_allclose(after["cluster_size"].sum(), 0.5 * 16 + 0.5 * 8 * 4, rtol=1e-6)
    assert np.any(before["codebook"] != after["codebook"]) and "quantize" not in states[0].params["tokenizer"]
    alive = run_config(WithAverages(model=model, family="titok", codebook=0.0, restart_every=1), accumulate=2)
    states, _ = run_steps(alive, sharding.make_mesh(2, 2), batches(1))
    assert (states[-1].rest["tokenizer"]["quantize"]["cluster_size"] >= 1).all()


@pytest.mark.slow
def test_stored_ids_train_like_the_teacher():
    recipe = ProxyCodes(model=LEGACY, teacher="untrained", teacher_config=TEACHER)
    nets = {"tokenizer": LEGACY.build(rngs=nnx.Rngs(0)), "teacher": TEACHER.build(rngs=nnx.Rngs(3))}
    graphs, states = zip(*(nnx.split(net) for net in nets.values()), strict=True)

    @jax.jit
    def loss(states, batch):
        merged = dict(zip(nets, map(nnx.merge, graphs, states), strict=True))
        total, aux = recipe.losses()["tokenizer"](merged, batch, jax.random.key(0), jnp.int32(0))
        return total, aux.metrics

    (batch,) = batches(1)
    ids = jax.jit(lambda state, x: nnx.merge(graphs[1], state).encode(x).ids)(
        states[1], jnp.float32(batch["image"]) / 255
    )
    online, stored = loss(states, batch), loss(states, batch | {"ids": ids})
    np.testing.assert_allclose(jax.tree.leaves(online), jax.tree.leaves(stored), rtol=1e-6)
    assert abs(online[1]["cross_entropy"] - np.log(16)) < 0.5  # nothing is learnt yet


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A release of a tiny MaskGIT-VQGAN for images of SIDE px."""
    config = dataclasses.replace(TEACHER, image_size=SIDE)
    folder = tmp_path_factory.mktemp("teacher") / "release"
    save(Tokenizer(config.build(rngs=nnx.Rngs(5)), name="teacher", family="maskgit_vqgan"), folder)
    return folder


def test_labels_find_their_image(photos, teacher, tmp_path):
    assert commands.encode([str(photos)], str(teacher), str(tmp_path / "ids.npz")) == 0
    data = DataConfig(
        path=str(photos), batch_size=4, image_size=SIDE, holdout=0.2, threads=0, labels=str(tmp_path / "ids.npz")
    )
    source, _ = open_sources(data)
    with pytest.raises(InputError, match="--data.crop center --data.no-flip"):
        train_batches(source, data)
    batch = next(train_batches(source, dataclasses.replace(data, crop="center", flip=False)))
    tokenizer = load(teacher)
    np.testing.assert_array_equal(batch["ids"], tokenizer.encode(batch["image"]).ids)
    with pytest.raises(DataError, match="no single row for 1 of 1 images, the first is x.png"):
        Labels(tmp_path / "ids.npz", ["x.png"])
    np.savez(tmp_path / "bad.npz", ids=np.zeros((2, 4, 1)))
    with pytest.raises(DataError, match="labels need `file` and `ids` or `text`"):
        Labels(tmp_path / "bad.npz", ["0.png"])


def test_labels_are_refused_before_the_state_is_made(photos, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.train.start", lambda *_: pytest.fail("the state was made"))
    config = run_config(ProxyCodes(model=LEGACY, teacher=str(teacher)))
    data = dataclasses.replace(config.data, path=str(photos), labels=str(tmp_path / "none.npz"))
    with pytest.raises(DataError, match="cannot read the labels .*none.npz"):
        train(dataclasses.replace(config, data=data), tmp_path / "run")


@pytest.mark.slow
def test_both_stages_from_stored_ids(photos, teacher, tmp_path):
    """zoo encode, stage 1, stage 2: each starts from what the one before it wrote."""
    assert commands.encode([str(photos)], str(teacher), str(tmp_path / "ids.npz")) == 0
    first = run_config(ProxyCodes(model=LEGACY, teacher=str(teacher)))
    labels = {"path": str(photos), "labels": str(tmp_path / "ids.npz"), "crop": "center", "flip": False}
    metrics = train(dataclasses.replace(first, data=dataclasses.replace(first.data, **labels)), tmp_path / "one")
    assert np.isfinite(metrics["psnr"])  # through the teacher's decoder
    recipe = Gan(model=STAGE_2, trained=STAGE2, discriminator=CRITIC, pixel_decoder=str(teacher))
    second = run_config(recipe, init=str(tmp_path / "one" / "release"))
    second = dataclasses.replace(second, data=dataclasses.replace(second.data, path=str(photos)))
    train(second, tmp_path / "two")
    one, two = load(tmp_path / "one" / "release").module, load(tmp_path / "two" / "release").module
    assert one.config.pixel_decoder is None and two.config.pixel_decoder is not None
    assert same(nnx.to_pure_dict(nnx.state(one.encoder)), nnx.to_pure_dict(nnx.state(two.encoder)))


@pytest.mark.slow
def test_stage_2_starts_from_stage_1_and_the_teacher(teacher, tmp_path):
    stage1 = LEGACY.build(rngs=nnx.Rngs(7))
    save(Tokenizer(stage1, name="one", family="titok"), tmp_path / "one")
    recipe = Gan(model=STAGE_2, trained=STAGE2, discriminator=CRITIC, pixel_decoder=str(teacher))
    config = run_config(recipe, init=str(tmp_path / "one"))
    config = dataclasses.replace(config, recipe=recipe.starting_from(stage1.config, "titok"))
    state = start(config, Program(config, sharding.make_mesh(1), {}))
    module = load(teacher).module
    np.testing.assert_array_equal(state.params["tokenizer"]["pixel_decoder"]["codebook"], module.quantize.codebook[...])
    mine = state.params["tokenizer"]["pixel_decoder"]["decoder"]
    assert same(mine, nnx.to_pure_dict(nnx.state(module.decoder)))
    assert same(state.rest["tokenizer"]["encoder"], nnx.to_pure_dict(nnx.state(stage1.encoder)))
    assert same(state.ema, state.params["tokenizer"])


# -- what is missing is said in one line


@pytest.mark.parametrize(
    ("recipe", "options", "error", "says"),
    [
        (Gan(model=STAGE_2, trained=STAGE2), {}, InputError, "--init RELEASE"),
        (Gan(model=TEXT_AWARE, family="tatitok"), {}, InputError, "--recipe.text empty"),
        (ProxyCodes(model=STAGE_2), {}, InputError, "stage-1 TiTok"),
        (ProxyCodes(model=LEGACY), {}, WeightsError, "maskgit_vqgan.imagenet"),
        (
            Reconstruction(model=LEGACY, lpips_weight=1.0),
            {},
            WeightsError,
            "vgg16-397923af.pth.*--recipe.lpips_weight 0",
        ),
        (Reconstruction(model=LEGACY, convnext_weight=1.0), {}, WeightsError, "--recipe.convnext_weight 0"),
        (
            Reconstruction(model=LEGACY, convnext_weight=1.0, convnext="absent.pth"),
            {},
            WeightsError,
            "no weights file at absent.pth; give convnext_small",
        ),
        (Gan(model=STAGE_2, trained=STAGE2), {"init": "titok_tiny.photos"}, InputError, "the release of a stage-1 run"),
        (ProxyCodes(model=LEGACY), {"init": "titok_tiny.photos"}, InputError, "stage-1 TiTok"),
        (ProxyCodes(model=LEGACY, teacher="titok_tiny.photos"), {}, InputError, "no MaskGIT-VQGAN of 16 codes"),
    ],
)
def test_missing_parts_are_named(recipe, options, error, says, tmp_path):
    with pytest.raises(error, match=says) as caught:
        train(run_config(recipe, **options), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "metrics.jsonl").exists()


# -- the configs


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FULL])
def test_full_size_shards_and_lowers(name):
    """On 8 devices no device holds much more than an eighth, and the step lowers for TPU and CUDA."""
    config = read_config(name)
    mesh = sharding.make_mesh(1, 8)
    program = Program(config, mesh)
    leaves = jax.tree.leaves(program.target)
    whole = sum(leaf.size for leaf in leaves)
    mine = sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in leaves)
    assert mine < 0.14 * whole + 1e6
    side, rows = config.recipe.model.image_size, sharding.batch_sharding(mesh)
    batch = {"image": jax.ShapeDtypeStruct((config.data.batch_size, side, side, 3), jnp.uint8, sharding=rows)}
    if text := getattr(config.recipe.model, "text", None):
        batch["text"] = jax.ShapeDtypeStruct((config.data.batch_size, *text), jnp.float32, sharding=rows)
    exported = jax.export.export(program.jit_step, platforms=["tpu", "cuda"])(
        program.target, batch, program.frozen, program.active(None)
    )
    assert exported.nr_devices == 8


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name == "smoke/titok_vq" else pytest.mark.slow)  # as smoke/tatitok
        for name in config_names()
        if name.startswith("smoke/") and name != "smoke/titok"  # tests/test_train.py has that one
    ],
)
def test_smoke_configs_learn_and_resume(name, tmp_path):
    """The loss falls, and a run that goes on from the checkpoint before the last ends as the whole one did."""
    args = [name, "--workdir", str(tmp_path / "run"), "--mesh.data", "1", "--steps", "30", "--save-every", "10"]
    if isinstance(read_config(name).recipe, Gan):
        args += ["--recipe.discriminator-start", "15"]
    assert zoo_train(args) == 0
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    key = "cross_entropy" if "cross_entropy" in lines[0] else "l2"
    values = [line[key] for line in lines]
    assert np.mean(values[-5:]) < 0.92 * np.mean(values[:3])
    steps = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit())
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(steps[-1]))
    shutil.rmtree(tmp_path / "run" / "release")
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines[: steps[-2]]))
    assert zoo_train(args) == 0
    again = [json.loads(line) for line in metrics.read_text().splitlines()]
    for a, b in zip(lines, again, strict=True):
        assert {k: v for k, v in a.items() if k != "images_per_second"} == {
            k: v for k, v in b.items() if k != "images_per_second"
        }


def test_configs_say_how_they_are_run():
    for name in config_names():
        text = next(p for p in (Path(__file__).parents[1] / "configs").rglob(f"{name}.py")).read_text()
        assert f"zoo train {name}" in text and ("Not run" in text or "runs" in text.lower()), name
