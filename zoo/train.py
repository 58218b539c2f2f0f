"""Training: the config of a run and the loop around the step.

    state = init(); for every step: state, metrics = step(state, batch)

The step is in zoo/step.py. The host looks at its metrics every `log_every` steps only.

Where a run starts, in this order: its own newest whole checkpoint, `init` (a release to fine-tune), a fresh model.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from zoo import sharding
from zoo.checkpoint import Checkpoints, to_host
from zoo.config import to_json
from zoo.data.loader import DataConfig, eval_batches, open_sources, train_batches
from zoo.errors import InputError, TrainingError
from zoo.finish import finish
from zoo.optim import Optimizer
from zoo.pretrained import config_of, load
from zoo.recipes import UNTRAINED
from zoo.recipes.gan import Gan
from zoo.recipes.proxy_codes import ProxyCodes
from zoo.recipes.reconstruction import Reconstruction
from zoo.runlog import RunLog
from zoo.step import Program, TrainState
from zoo.tokenizer import Tokenizer

AHEAD = 2  # steps that the host may queue beyond the one that runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; -1: all that are left.

    Attributes:
        data: the batch is split, the state is whole.
        fsdp: the batch and the large arrays of the state are split.
    """

    data: int = -1
    fsdp: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run.

    Attributes:
        recipe: the model and its losses.
        data: images; its image_size is set to the model's.
        steps: of the optimizer.
        optim: optimizer and schedule.
        mesh: devices.
        init: preset or release folder to start from; its model replaces recipe.model. "untrained": none, in a recipe
            that asks for one.
        dtype: of matmuls and convolutions; parameters, losses, norms and quantizers are float32.
        accumulate: micro-batches per step.
        ema: decay of the averaged parameters that become the release; see zoo.optim.ema_decay.
        log_every, save_every, picture_every: steps; picture_every 0: none.
        keep: checkpoints.
        seed: of parameters and training noise.
    """

    recipe: Reconstruction | ProxyCodes | Gan
    data: DataConfig = DataConfig()
    steps: int
    optim: Optimizer = Optimizer()
    mesh: MeshConfig = MeshConfig()
    init: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = 1
    ema: float = 0.999
    log_every: int = 50
    save_every: int = 1000
    picture_every: int = 1000
    keep: int = 2
    seed: int = 0


def train(config: TrainConfig, workdir: str | Path) -> dict[str, Any]:
    """Trains, or goes on with what `workdir` holds, and ends with workdir/release.

    Args:
        config: the run.
        workdir: config.json, metrics.jsonl, checkpoints/, tensorboard/, pictures/, eval/ and release/ go here.

    Returns:
        The held-out metrics of zoo.evaluate; of several processes, which call this together, in process 0 only.

    Raises:
        TrainingError: a loss became NaN or infinite. DataError: nothing to train on, or too much is corrupt.
        CheckpointError: no place to write, or checkpoints that do not fit. SystemExit(0): after SIGTERM, saved.
    """
    workdir = Path(workdir)
    config = resolve(config)
    source, heldout = open_sources(config.data)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    if config.data.batch_size % (mesh.size * config.accumulate):
        raise InputError(
            f"data.batch_size {config.data.batch_size} over {mesh.size} devices and {config.accumulate} micro-batches; "
            f"give a multiple of {mesh.size * config.accumulate}"
        )
    frozen = {net: helper.load() for net, helper in config.recipe.frozen().items()}
    program = Program(config, mesh, frozen)
    log = RunLog(workdir, config)
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep)
    restored = checkpoints.restore_latest(program.target)
    step, state = restored[:2] if restored else (0, None)
    where = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    batches = train_batches(source, config.data, start_step=step, **where)  # refuses labels before the state is made
    state = state or start(config, program)
    log.truncate(step)
    sample = next(eval_batches(heldout, config.data.image_size, 8, {}), (None, None))[1]
    with _Sigterm() as sigterm, log:
        try:
            state = _loop(config, program, mesh, state, step, batches, source, log, checkpoints, sample, sigterm)
        finally:
            batches.close()
            checkpoints.wait()
            log.corrupt(source.corrupt)
    return finish(tokenizer_of(config, program, state), view_of(config, program, state), config, heldout, workdir)


def _loop(config, program, mesh, state, step, batches, source, log, checkpoints, sample, sigterm) -> TrainState:
    """Steps until the end, logging, drawing and saving on the way."""
    meta, rate = to_json(config), config.optim.schedule(config.steps)
    pending: list[dict[str, jax.Array]] = []
    while step < config.steps:
        batch = sharding.put_batch(mesh, next(batches))
        if config.recipe.prepare_at(step):
            state = program.prepare(state, batch)
        state, metrics = program.step(state, batch, step)
        step += 1
        pending.append(metrics)
        jax.block_until_ready(pending[-AHEAD - 1 : -AHEAD])  # or a signal would wait for all that was queued
        stopping = sigterm.stops_after(step)  # asked once: a signal later in this round waits for the next
        last = step == config.steps or stopping
        save = step % config.save_every == 0 or last
        if step % config.log_every == 0 or save:
            log.write(step, check_finite(step, pending), rate, len(source.corrupt))
            pending = []
        if sample is not None and config.picture_every and (step % config.picture_every == 0 or last):
            log.picture(step, view_of(config, program, state), sample)
        if save:
            checkpoints.save(step, state, meta)
        if stopping:
            checkpoints.wait()
            if jax.process_index() == 0:
                print(f"SIGTERM: saved step {step}; the same command goes on from there", file=sys.stderr)
            raise SystemExit(0)
    return state


def check_finite(step: int, pending: list[dict[str, jax.Array]]) -> list[dict[str, float]]:
    """The metrics of the last steps on the host.

    Raises:
        TrainingError: names the first step and terms that are not finite.
    """
    values = [{k: float(v) for k, v in metrics.items()} for metrics in jax.device_get(pending)]
    for i, metrics in enumerate(values):
        at = step - len(values) + i + 1
        if bad := [f"{name} = {value}" for name, value in metrics.items() if not np.isfinite(value)]:
            raise TrainingError(
                f"step {at}: {', '.join(bad)}; the last good checkpoint is kept, lower optim.lr or look at the data"
            )
    return values


def resolve(config: TrainConfig) -> TrainConfig:
    """Takes the model from `init` and the image size from the model.

    Raises:
        InputError: the recipe lacks something.
    """
    config.recipe.check(config)
    recipe, init = config.recipe, None if config.init == UNTRAINED else config.init
    if init is not None:
        family, model = config_of(init)
        recipe: Any = recipe.starting_from(model, family)
        recipe.check(config)
    data = dataclasses.replace(config.data, image_size=recipe.model.image_size)
    return dataclasses.replace(config, recipe=recipe, data=data, init=init)


def start(config: TrainConfig, program: Program) -> TrainState:
    """A fresh state, with the parameters of `init` and those that the recipe has from elsewhere."""
    state = program.init()
    given = dict(config.recipe.initial())
    if config.init is not None:
        given |= {path: v[...] for path, v in nnx.to_flat_state(nnx.state(load(config.init).module))}
    if not given:
        return state
    where = jax.tree.map(lambda a: a.sharding, program.target)

    def filled(path: Any, fresh: jax.Array, at: Any) -> jax.Array:
        return jax.device_put(np.asarray(given[key]), at) if (key := tuple(k.key for k in path)) in given else fresh

    for part, target in ((state.params, where.params), (state.rest, where.rest)):
        part["tokenizer"] = jax.tree_util.tree_map_with_path(filled, part["tokenizer"], target["tokenizer"])
    state.ema = jax.tree.map(jnp.copy, state.params["tokenizer"])
    return state


def tokenizer_of(config: TrainConfig, program: Program, state: TrainState) -> Tokenizer:
    """The averaged tokenizer of a state; of several processes, whole in each, so that one may use it alone."""
    module = nnx.merge(program.graphs["tokenizer"], *here((state.ema, state.rest["tokenizer"])))
    return Tokenizer(module, name=config.recipe.family, family=config.recipe.family)


def view_of(config: TrainConfig, program: Program, state: TrainState) -> Tokenizer:
    """What turns images into images with the averaged tokenizer."""
    tokenizer = tokenizer_of(config, program, state)
    frozen = {net: nnx.merge(program.graphs[net], here(arrays)) for net, arrays in program.frozen.items()}
    return Tokenizer(config.recipe.view(tokenizer.module, frozen), name=tokenizer.name, family=tokenizer.family)


def here(arrays: Any) -> Any:
    """Arrays as one process may use them alone: whole on its first device, where several share them."""
    if jax.process_count() == 1:
        return arrays
    return jax.device_put(jax.tree.map(to_host, arrays), jax.local_devices()[0])


class _Sigterm:
    """Notes SIGTERM instead of dying of it, while it is entered. With several processes jax does, from their start."""

    received = False

    def __enter__(self) -> _Sigterm:
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "received", True))
        return self

    def stops_after(self, step: int) -> bool:
        """Whether this step is the last: the first one after a SIGTERM to any process that all of them can reach."""
        if jax.process_count() == 1:
            return self.received
        return multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *_: Any) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)
