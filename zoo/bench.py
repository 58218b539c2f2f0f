"""`zoo bench`: how fast the models are here, and beside PyTorch.

    cold    `zoo encode PHOTO` as a command of its own, with an empty and with a filled compilation cache
    models  parameters, FLOPs, encode and decode rate, memory, compile time, share of the device's peak
    train   the step of the Reconstruction recipe
    data    the loader beside what a train step consumes
    pairs   ours and a PyTorch peer in turns, with equally many threads
    quantize  every quantizer beside the same scheme of vector-quantize-pytorch, and the memory of both
    text      training, encoding and decoding of BPE beside tokenizers and tiktoken

Weights are random, since they do not change the speed. bench_rows.py says how it is measured.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from zoo import bench_peers, bench_rows, flops, presets, sharding
from zoo.bench_quantize import quantize
from zoo.bench_rows import Row, in_turns, paired, repeated, row, threads
from zoo.bench_text import text
from zoo.data.loader import DataConfig, open_sources, train_batches
from zoo.errors import PresetError, did_you_mean
from zoo.optim import Optimizer
from zoo.pretrained import parameters_of
from zoo.recipes.reconstruction import Reconstruction
from zoo.step import Program
from zoo.train import TrainConfig, resolve

TINY, TITOK, VQGAN = "titok_tiny.photos", "titok_s128.imagenet", "maskgit_vqgan_f16.imagenet"
PAIRED = {TITOK: 8, VQGAN: 2}  # and their batches
# TFLOP/s of dense matmuls in (bfloat16, float32) as the makers publish them, by the start of jax's name of the device
PEAKS = {
    "NVIDIA H100": (989, 67),
    "NVIDIA H200": (989, 67),
    "NVIDIA A100": (312, 19.5),
    "TPU v4": (275, None),
    "TPU v5 lite": (197, None),
    "TPU v5": (459, None),
    "TPU v6 lite": (918, None),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured on a kind of device.

    Attributes:
        models: presets that are encoded and decoded.
        batches: in each of these sizes.
        trained: presets that are trained, and their batches.
        batch: of the train step of another preset.
        dtype: of training.
    """

    models: tuple[str, ...]
    batches: tuple[int, ...]
    trained: dict[str, int]
    batch: int
    dtype: Any


CPU = Plan(
    models=(TINY, TITOK, "titok_b64.imagenet", VQGAN),
    batches=(1, 8),
    trained={TINY: 16, TITOK: 2},
    batch=2,
    dtype="float32",
)
ACCELERATOR = Plan(
    models=(TITOK, "titok_b64.imagenet", "titok_l32.imagenet", VQGAN),
    batches=(1, 32, 128),
    trained={"titok_bl64_vq8k.imagenet": 32, "titok_ll32_vae_c16.imagenet": 32},
    batch=32,
    dtype="bfloat16",
)


def parts(what: str) -> list[Callable[[], Iterator[Row]]]:
    """The measurements behind a word; each yields rows (bench_rows.row) as it goes.

    Args:
        what: cold, models, train, data, pairs, quantize, text, all, or a preset, whose model and train step are
            measured.

    Raises:
        PresetError: it is none of these.
    """
    # cold is first, before this process takes the accelerator
    words = {part.__name__: part for part in (cold, models, train, data, pairs, quantize, text)}
    if what == "all":
        return [*words.values()]
    if what in words:
        return [words[what]]
    names = [preset.name for preset in presets.all_presets()]
    if what not in names:
        hint = did_you_mean(what, [*words, "all", *names])
        raise PresetError(f"unknown benchmark '{what}'{hint}; give all, {', '.join(words)}, or a preset of `zoo list`")
    return [lambda: models([what]), lambda: train([what])]


def plan() -> Plan:
    return CPU if jax.default_backend() == "cpu" else ACCELERATOR


# -- the parts


def cold() -> Iterator[Row]:
    """Seconds of `zoo encode PHOTO` with the bundled release, Python's start included."""
    photo = min((Path(__file__).parent / "data" / "photos").glob("*.jpg"))
    times: dict[str, list[float]] = {"empty": [], "filled": []}
    for _ in range(bench_rows.RUNS):
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"ZOO_CACHE": folder}
            environment.pop("JAX_COMPILATION_CACHE_DIR", None)
            command = [sys.executable, "-m", "zoo.cli", "encode", str(photo), "--out", f"{folder}/codes.npz"]
            for cache in times:
                start = time.perf_counter()
                subprocess.run(command, env=environment, check=True, capture_output=True)
                times[cache].append(time.perf_counter() - start)
    for cache, seconds in times.items():
        yield row("cold", f"zoo encode PHOTO, {cache} compilation cache", "s", seconds)


def models(names: Sequence[str] | None = None) -> Iterator[Row]:
    """Encode and decode of presets, float32; encode at highest precision, as Tokenizer does it."""
    for name in plan().models if names is None else names:
        module = _random(presets.get(name).config)
        yield row("models", f"{name} parameters", "parameters", [parameters_of(module)])
        for batch in plan().batches:
            yield from _coding(name, module, batch)


def _coding(name: str, module: Any, batch: int) -> Iterator[Row]:
    graph, state = nnx.split(module)
    x = _images(module, batch)

    def encode(state: Any, x: jax.Array) -> Any:
        with jax.default_matmul_precision("highest"):
            return nnx.merge(graph, state).encode(x)

    def decode(state: Any, codes: Any, conditions: Any) -> jax.Array:
        return nnx.merge(graph, state).decode(codes, **conditions)

    program, encode_rows = _compile("models", f"{name} encode, batch {batch}", jax.jit(encode), (state, x), batch)
    codes = program(state, x)
    seconds = repeated(lambda: program(state, x))
    yield row("models", f"{name} encode, batch {batch}", "images/s", [batch / s for s in seconds])
    yield from encode_rows
    peak = _peak("float32")
    if peak:
        share = encode_rows[0]["ours"] * batch * 1e9 / peak  # the first row is GFLOP/image
        yield row("models", f"{name} encode, batch {batch}", "% of peak", [100 * share / s for s in seconds])
    conditions = {key: np.zeros((batch, *shape), np.float32) for key, shape in module.spec.conditions}
    args = (state, codes, jax.device_put(conditions))
    program, decode_rows = _compile("models", f"{name} decode, batch {batch}", jax.jit(decode), args, batch)
    seconds = repeated(lambda: program(*args))
    yield row("models", f"{name} decode, batch {batch}", "images/s", [batch / s for s in seconds])
    yield from decode_rows


def train(names: Sequence[str] | None = None) -> Iterator[Row]:
    """Steps of the Reconstruction recipe on random pixels, without perceptual networks."""
    for name, batch in plan().trained.items() if names is None else [(name, plan().batch) for name in names]:
        config = _train_config(name, batch)
        case = f"{name} step, batch {batch}, {config.dtype}"
        step, compile_rows, ops = _step("train", case, config)
        seconds = repeated(step)
        yield row("train", case, "steps/s", [1 / s for s in seconds])
        yield row("train", case, "images/s", [batch / s for s in seconds])
        yield from compile_rows
        peak = _peak(config.dtype)
        if peak:
            yield row("train", case, "% of peak", [100 * ops / peak / s for s in seconds])


def data() -> Iterator[Row]:
    """Images/s of the loader on the bundled photos beside what the train steps of `train` consume."""
    for name, batch in plan().trained.items():
        config = _train_config(name, batch)
        need = batch / statistics.median(repeated(_step("data", name, config)[0]))
        for where, cache_mb in (("decoded once", config.data.cache_mb), ("decoded each time", 0)):
            rates = _loader_rates(dataclasses.replace(config.data, cache_mb=cache_mb))
            case = f"{config.data.threads} threads, {config.data.image_size} px, {where}"
            peer = {"peer": need, "peer_name": f"train step of {name}", "ratios": [rate / need for rate in rates]}
            yield row("data", case, "images/s", rates, **peer)


def pairs() -> Iterator[Row]:
    """Ours and a PyTorch peer of the same size, float32, in turns.

    Raises:
        InputError: torch or diffusers is missing.
    """
    versions = bench_peers.start(threads())
    for name, batch in PAIRED.items():
        config = presets.get(name).config
        if name == TITOK:  # as far as the logits over the teacher's codes: the pixel decoder is the other pair
            config = dataclasses.replace(config, pixel_decoder=None)
        peer = bench_peers.titok(config) if name == TITOK else bench_peers.maskgit_vqgan(config)
        for entry in _pair(name, _random(config), peer, batch):
            yield entry | {"versions": entry["versions"] | versions}


def _pair(name: str, module: Any, peer: bench_peers.Peer, batch: int) -> Iterator[Row]:
    graph, state = nnx.split(module)
    x = _images(module, batch)
    encode = jax.jit(lambda state, x: nnx.merge(graph, state).encode(x))

    @jax.jit
    def decode(state: Any, codes: Any) -> jax.Array:
        module = nnx.merge(graph, state)
        return module.decode_latents(module.quantize.lookup(codes.ids)) if name == TITOK else module.decode(codes)

    codes, pixels = encode(state, x), np.array(x)
    ids = np.array(codes.ids, np.int64)[..., 0]
    count = parameters_of(module)
    extra = {"peer": peer.parameters, "peer_name": peer.name, "ratios": [count / peer.parameters]}
    yield row("pairs", f"{name} parameters", "parameters", [count], **extra)
    measured = {
        "encode": in_turns(lambda: encode(state, x), lambda: peer.encode(pixels), bench_rows.TURNS),
        "decode": in_turns(lambda: decode(state, codes), lambda: peer.decode(ids), bench_rows.TURNS),
    }
    measured["encode and decode"] = np.sum(list(measured.values()), 0)
    for case, times in measured.items():
        yield paired("pairs", f"{name} {case}, batch {batch}", "images/s", batch, times, peer.name)


# -- measuring


def _compile(
    what: str, case: str, function: Any, args: tuple[Any, ...], batch: int, static: tuple[Any, ...] = ()
) -> tuple[Any, list[Row]]:
    """A compiled function of `args`, and rows for its FLOPs, compile time and memory."""
    start = time.perf_counter()
    program = function.lower(*args, *static).compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return program, [
        row(what, case, "GFLOP/image", [flops.count(lambda *a: function(*a, *static), *args) / batch / 1e9]),
        row(what, case, "MiB", [(used - memory.alias_size_in_bytes) / 2**20]),
        row(what, case, "s to compile", [seconds]),
    ]


def _step(what: str, case: str, config: TrainConfig) -> tuple[Callable[[], Any], list[Row], float]:
    """A call that trains one step, the rows of its compilation, and its FLOPs."""
    mesh, batch = sharding.make_mesh(1), config.data.batch_size
    program, side = Program(config, mesh), config.data.image_size
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    state, x = program.init(), sharding.put_batch(mesh, {"image": images})
    args = (state, x, program.frozen)
    compiled, rows = _compile(what, case, program.jit_step, args, batch, (program.active(None),))

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, x, program.frozen)
        return state, metrics

    return step, rows, rows[0]["ours"] * batch * 1e9


def _train_config(name: str, batch: int) -> TrainConfig:
    preset = presets.get(name)
    recipe = Reconstruction(model=preset.config, family=preset.family, text="empty")
    data = DataConfig(batch_size=batch)
    return resolve(TrainConfig(recipe=recipe, data=data, optim=Optimizer(), steps=1000, dtype=plan().dtype))


def _loader_rates(config: DataConfig) -> list[float]:
    """Images/s in RUNS stretches of SECONDS, after the batches that wait already."""
    batches = train_batches(open_sources(config)[0], config)
    for _ in range(4 * config.threads):
        next(batches)
    rates = []
    for _ in range(bench_rows.RUNS):
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < bench_rows.SECONDS:
            count += next(batches)["image"].shape[0]
        rates.append(count / (time.perf_counter() - start))
    batches.close()
    return rates


def _random(config: Any) -> Any:
    """A model with weights drawn in numpy, which takes seconds where its own start takes minutes at full size."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0))))
    arrays = jax.tree.map(lambda a: jax.device_put(0.02 * rng.standard_normal(a.shape, np.float32)), state)
    return nnx.merge(graph, arrays)


def _images(module: Any, batch: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (batch, *module.spec.input_shape))


def _peak(dtype: str) -> float | None:
    """FLOP/s of this device at best; None: not known."""
    kind = jax.devices()[0].device_kind
    known = [peaks for start, peaks in PEAKS.items() if kind.startswith(start)]
    peak = known[0][0 if dtype == "bfloat16" else 1] if known else None
    return None if peak is None else peak * 1e12
