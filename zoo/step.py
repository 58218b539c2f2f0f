"""The training step: pure, jitted once, over any mesh.

It differentiates each net's loss by that net, accumulates over micro-batches, clips, updates, follows with an EMA, and
counts codebook use. A step whose loss or gradient is not finite changes nothing, and neither does any after it, so that
the state stays the last good one until the host looks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import nnx

from zoo import sharding
from zoo.metrics import codebook
from zoo.recipes import Aux

if TYPE_CHECKING:
    from zoo.train import TrainConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything a run needs to go on. `params`, `rest` and `opt` are dicts over nets; `ema` is the tokenizer's.

    counts: code use [q, k] since the last log line. bad_step: the first step that was not finite, or -1.
    """

    step: jax.Array
    params: dict[str, Any]
    rest: dict[str, Any]
    opt: dict[str, Any]
    ema: Any
    counts: jax.Array
    bad_step: jax.Array


def schedule(config: TrainConfig) -> optax.Schedule:
    """The learning rate of a run."""
    return warmup_cosine(config.optim.lr, config.optim.end_lr, config.optim.warmup, config.steps)


def warmup_cosine(lr: float, end_lr: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear from 0 to `lr` over `warmup` steps, then a cosine to `end_lr` at `steps`, and no further."""
    return optax.warmup_cosine_decay_schedule(0.0, lr, min(warmup, steps - 1), steps, end_lr)


def ema_decay(update: Any, decay: float) -> jax.Array:
    """Decay of the average at its update 0, 1, ...: min(decay, (1 + u) / (10 + u)), but the first one copies."""
    update = jnp.asarray(update)
    return jnp.where(update > 0, jnp.minimum(decay, (1 + update) / (10 + update)), 0.0)


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clipping, then the optimizer on the schedule."""
    o, rate = config.optim, schedule(config)

    def name_of(path: Any) -> str:
        return jax.tree_util.keystr(path, simple=True, separator=".")

    def decays(params: Any) -> Any:
        def decay(path: Any, _: Any) -> bool:
            return name_of(path).endswith("kernel") and "embed" not in name_of(path)

        return jax.tree_util.tree_map_with_path(decay, params)

    def matrices(params: Any) -> Any:
        """Axes of the stacked kernels [layer, in, out]; None is left to AdamW."""

        def axes(path: Any, leaf: Any) -> Any:
            inside = "blocks" in name_of(path) and name_of(path).endswith("kernel")
            return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if inside else None

        return jax.tree_util.tree_map_with_path(axes, params)

    if o.name == "muon":
        tx = optax.contrib.muon(
            rate,
            adam_b1=o.betas[0],
            adam_b2=o.betas[1],
            adam_learning_rate=lambda step: o.adam_share * rate(step),
            weight_decay=o.weight_decay,
            muon_weight_dimension_numbers=matrices,
        )
    else:
        tx = optax.adamw(rate, *o.betas, weight_decay=o.weight_decay, mask=decays)
    return optax.chain(optax.clip_by_global_norm(o.clip), tx)


def accumulated(grad: Callable[..., Any], params: Any, batch: Any, key: jax.Array, parts: int) -> Any:
    """((loss, aux), gradients) over `parts` micro-batches: means of losses, metrics and gradients, sums of stats.

    Micro-batch i takes every `parts`-th row, so that each device keeps its own rows.
    """
    if parts == 1:
        return grad(params, batch, key)
    micro = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def body(total: Any, item: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, grad(params, *item)), None

    keys = jax.random.split(key, parts)
    first = jax.tree.map(lambda x: x[0], (micro, keys))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(grad, params, *first))
    (loss, aux), grads = jax.lax.scan(body, zeros, (micro, keys))[0]
    loss, metrics, grads = jax.tree.map(lambda x: x / parts, (loss, aux.metrics, grads))
    return (loss, Aux(metrics, aux.stats)), grads


class Program:
    """The compiled parts of a run on a mesh. Nothing is compiled before its first call.

    Attributes:
        init: () -> state.
        step: (state, batch) -> (state, metrics); the state is donated.
        prepare: (state, batch) -> state, see zoo.recipes; the state is donated.
        target: the state's shapes, dtypes and shardings.
        graphs: net -> graph definition, to merge parameters into modules.
    """

    def __init__(self, config: TrainConfig, mesh: jax.sharding.Mesh, *, perceptual: Any = None):
        self.config, self.recipe = config, config.recipe
        self.tx = optimizer(config)
        self.losses = config.recipe.losses(perceptual)
        self.key = jax.random.key(config.seed)
        nets = nnx.eval_shape(lambda: self._build(jax.random.key(0)))
        self.graphs = {net: nnx.split(module, nnx.Param, ...)[0] for net, module in nets.items()}
        self.vocab_sizes = nets["tokenizer"].spec.vocab_sizes
        shapes = jax.eval_shape(self._create)
        where, batch_at = sharding.fsdp(mesh, shapes), sharding.batch_sharding(mesh)
        self.target = sharding.with_shardings(shapes, where)
        self.init = jax.jit(self._create, out_shardings=where)
        options: dict[str, Any] = {"donate_argnums": 0, "in_shardings": (where, batch_at)}
        self.step = jax.jit(self._step, out_shardings=(where, None), **options)
        self.prepare = jax.jit(self._prepare, out_shardings=where, **options)

    def _build(self, key: jax.Array) -> dict[str, Any]:
        dtype = None if self.config.dtype == "float32" else jnp.dtype(self.config.dtype)
        return self.recipe.build(dtype=dtype, rngs=nnx.Rngs(key))

    def _create(self) -> TrainState:
        parts = {net: nnx.split(module, nnx.Param, ...)[1:] for net, module in self._build(self.key).items()}
        params = {net: nnx.to_pure_dict(p) for net, (p, _) in parts.items()}
        return TrainState(
            step=jnp.int32(0),
            params=params,
            rest={net: nnx.to_pure_dict(r) for net, (_, r) in parts.items()},
            opt={net: self.tx.init(p) for net, p in params.items()},
            ema=jax.tree.map(jnp.copy, params["tokenizer"]),
            counts=jnp.zeros((len(self.vocab_sizes), max(self.vocab_sizes, default=0)), jnp.int32),
            bad_step=jnp.int32(-1),
        )

    def _merge(self, params: Any, rest: Any) -> dict[str, Any]:
        return {net: nnx.merge(self.graphs[net], params[net], rest[net]) for net in params}

    def _gradients(self, net: str, state: TrainState, params: Any, batch: Any, key: jax.Array) -> Any:
        def loss(mine: Any, micro: Any, key: jax.Array) -> Any:
            return self.losses[net](self._merge(params | {net: mine}, state.rest), micro, key, state.step)

        grad = jax.value_and_grad(loss, has_aux=True)
        return accumulated(grad, params[net], batch, key, self.config.accumulate)

    def _step(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        params, opt, metrics, counts = dict(state.params), dict(state.opt), {}, state.counts
        key, finite = jax.random.fold_in(self.key, state.step), jnp.bool(True)
        for i, net in enumerate(self.losses):
            (loss, aux), grads = self._gradients(net, state, params, batch, jax.random.fold_in(key, i))
            updates, opt[net] = self.tx.update(grads, opt[net], params[net])
            params[net] = optax.apply_updates(params[net], updates)
            norm = optax.tree.norm(grads)
            finite &= jnp.isfinite(loss) & jnp.isfinite(norm)
            prefix = "" if net == "tokenizer" else f"{net}/"
            metrics |= {f"{prefix}{k}": v for k, v in {"loss": loss, "grad_norm": norm, **aux.metrics}.items()}
            if "counts" in aux.stats:
                counts = jnp.where(state.step % self.config.log_every == 0, 0, counts) + aux.stats["counts"]
        if self.vocab_sizes:
            metrics["usage"] = jnp.mean(codebook.usage(counts, self.vocab_sizes))
            metrics["perplexity"] = jnp.mean(codebook.perplexity(counts))
        decay = ema_decay(state.step, self.config.ema)
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params["tokenizer"])
        new = TrainState(state.step, params, state.rest, opt, ema, counts, state.bad_step)
        good = finite & (state.bad_step < 0)
        new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        bad_step = jnp.where(good | (state.bad_step >= 0), state.bad_step, state.step)
        return dataclasses.replace(new, step=state.step + 1, bad_step=bad_step), metrics

    def _prepare(self, state: TrainState, batch: Any) -> TrainState:
        nets = self._merge(state.params, state.rest)
        self.recipe.prepare(nets, batch, jax.random.fold_in(self.key, state.step), state.step, state.counts)
        params = {net: nnx.to_pure_dict(nnx.state(module, nnx.Param)) for net, module in nets.items()}
        # The average of a replaced value follows at once: what it averaged before meant something else.
        changed = jax.tree.map(jnp.not_equal, params["tokenizer"], state.params["tokenizer"])
        ema = jax.tree.map(jnp.where, changed, params["tokenizer"], state.ema)
        return dataclasses.replace(state, params=params, ema=ema)
