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
import numpy as np
import optax
from flax import nnx

from zoo import sharding
from zoo.optim import ema_decay
from zoo.quantize import usage
from zoo.recipes import Aux

if TYPE_CHECKING:
    from zoo.train import TrainConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything a run needs to go on. `params`, `rest` and `opt` are dicts over nets; `ema` is the tokenizer's.

    counts: code use [q, k] since the last log line; [1, 1] without codes. bad_step: the first step that was not finite,
    or -1.
    """

    step: jax.Array
    params: dict[str, Any]
    rest: dict[str, Any]
    opt: dict[str, Any]
    ema: Any
    counts: jax.Array
    bad_step: jax.Array


def accumulated(grad: Callable[..., Any], params: Any, batch: Any, key: jax.Array, parts: int) -> Any:
    """((loss, aux), gradients) over `parts` micro-batches: means of losses, metrics and gradients, sums of stats.

    Micro-batch i takes every `parts`-th row, so that each device keeps its own rows.
    """
    if parts == 1:
        return grad(params, batch, key)
    micro = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def one(item: Any) -> Any:
        (loss, aux), grads = grad(params, *item)
        return (loss, aux.metrics, grads, aux.stats), aux.outputs

    def body(total: Any, item: Any) -> tuple[Any, Any]:
        sums, outputs = one(item)
        return jax.tree.map(jnp.add, total, sums), outputs

    keys = jax.random.split(key, parts)
    first = jax.tree.map(lambda x: x[0], (micro, keys))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(one, first)[0])
    (*sums, stats), outputs = jax.lax.scan(body, zeros, (micro, keys))
    loss, metrics, grads = jax.tree.map(lambda x: x / parts, tuple(sums))
    outputs = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), outputs)
    return (loss, Aux(metrics, stats, outputs)), grads


class Program:
    """The compiled parts of a run on a mesh. Nothing is compiled before its first call.

    Attributes:
        init: () -> state.
        step: (state, batch, at) -> (state, metrics); the state is donated. Compiled once for each set of active nets.
        prepare: (state, batch) -> state, see zoo.recipes; the state is donated.
        jit_step: what `step` calls, of (state, batch, frozen, active nets).
        target: the state's shapes, dtypes and shardings.
        frozen: the arrays of the nets that are not trained; only their shapes if they were not given.
    """

    def __init__(self, config: TrainConfig, mesh: jax.sharding.Mesh, frozen: dict[str, nnx.Module] | None = None):
        self.config, self.recipe = config, config.recipe
        optimizers = self.recipe.optimizers(config.optim, config.steps)
        self.tx = {net: optim.build(steps) for net, (optim, steps) in optimizers.items()}
        self.losses = self.recipe.losses()
        self.key = jax.random.key(config.seed)
        nets = nnx.eval_shape(lambda: self._build(jax.random.key(0)))
        self.graphs = {net: nnx.split(module)[0] for net, module in nets.items()}
        self.vocab_sizes = nets["tokenizer"].spec.vocab_sizes
        helpers = {} if frozen is None else dict(frozen)
        if frozen is None:
            for net, helper in self.recipe.frozen().items():
                helpers[net] = nnx.eval_shape(lambda build=helper.build: build(rngs=nnx.Rngs(0)))
        self._place(mesh, {net: nnx.split(module) for net, module in helpers.items()}, abstract=frozen is None)

    def _place(self, mesh: jax.sharding.Mesh, frozen: dict[str, tuple[Any, Any]], *, abstract: bool) -> None:
        """Decides where every array lives, and wraps what is compiled."""
        self.graphs |= {net: graph for net, (graph, _) in frozen.items()}
        arrays = {net: nnx.to_pure_dict(state) for net, (_, state) in frozen.items()}
        frozen_at = sharding.fsdp(mesh, arrays)
        if abstract:
            self.frozen = sharding.with_shardings(arrays, frozen_at)
        else:  # any process may place numpy
            self.frozen = jax.device_put(jax.tree.map(np.asarray, arrays), frozen_at)
        shapes = jax.eval_shape(self._create)
        where, batch_at = sharding.fsdp(mesh, shapes), sharding.batch_sharding(mesh)
        self.target = sharding.with_shardings(shapes, where)
        self.init = jax.jit(self._create, out_shardings=where)
        options: dict[str, Any] = {"donate_argnums": 0, "in_shardings": (where, batch_at, frozen_at)}
        self.jit_step = jax.jit(self._step, static_argnums=3, out_shardings=(where, None), **options)
        self.jit_prepare = jax.jit(self._prepare, out_shardings=where, **options)

    def step(self, state: TrainState, batch: Any, at: int | None = None) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step. `at` is the state's step, for recipes in which a net joins later; None: all nets are there."""
        return self.jit_step(state, batch, self.frozen, self.active(at))

    def active(self, at: int | None) -> tuple[str, ...]:
        """The nets that are there at a step, in the order of their updates; all of them without one."""
        return tuple(net for net in self.losses if at is None or self.recipe.active(net, at))

    def prepare(self, state: TrainState, batch: Any) -> TrainState:
        return self.jit_prepare(state, batch, self.frozen)

    def _build(self, key: jax.Array) -> dict[str, Any]:
        dtype = None if self.config.dtype == "float32" else jnp.dtype(self.config.dtype)
        return self.recipe.build(dtype=dtype, rngs=nnx.Rngs(key))

    def _create(self) -> TrainState:
        return self.state_of(self._build(self.key))

    def state_of(self, nets: dict[str, Any]) -> TrainState:
        """The state before the first step, of modules."""
        parts = {net: self.split(net, module) for net, module in nets.items()}
        params = {net: p for net, (p, _) in parts.items()}
        return TrainState(
            step=jnp.int32(0),
            params=params,
            rest={net: r for net, (_, r) in parts.items()},
            opt={net: self.tx[net].init(p) for net, p in params.items()},
            ema=jax.tree.map(jnp.copy, params["tokenizer"]),
            counts=jnp.zeros((max(1, len(self.vocab_sizes)), max(self.vocab_sizes, default=1)), jnp.int32),
            bad_step=jnp.int32(-1),
        )

    def split(self, net: str, module: nnx.Module) -> tuple[Any, Any]:
        """The arrays of a module as nested dicts: those that are trained, and all others."""

        def trained(path: Any, value: Any) -> bool:
            return isinstance(value, nnx.Param) and self.recipe.trains(net, ".".join(map(str, path)))

        _, params, rest = nnx.split(module, trained, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def merge(self, params: Any, rest: Any, frozen: Any) -> dict[str, Any]:
        """All nets as modules."""
        nets = {net: nnx.merge(self.graphs[net], params[net], rest[net]) for net in params}
        return nets | {net: nnx.merge(self.graphs[net], arrays) for net, arrays in frozen.items()}

    def _gradients(
        self, net: str, active: tuple[str, ...], state: TrainState, batch: Any, key: jax.Array, frozen: Any
    ) -> Any:
        params = {name: state.params[name] for name in active}

        def loss(mine: Any, micro: Any, key: jax.Array) -> Any:
            nets = self.merge(params | {net: mine}, state.rest, frozen)
            return self.losses[net](nets, micro, key, state.step)

        grad = jax.value_and_grad(loss, has_aux=True)
        return accumulated(grad, state.params[net], batch, key, self.config.accumulate)

    def _update(
        self, net: str, active: tuple[str, ...], state: TrainState, batch: Any, key: jax.Array, frozen: Any
    ) -> Any:
        """(parameters, rest, optimizer state) of one net after its step, its metrics, and its aux."""
        (loss, aux), grads = self._gradients(net, active, state, batch, key, frozen)
        nets = self.merge(state.params, state.rest, frozen)
        self.recipe.advance(net, nets, aux)
        params, rest = self.split(net, nets[net])
        updates, opt = self.tx[net].update(grads, state.opt[net], params)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **aux.metrics}
        return (optax.apply_updates(params, updates), rest, opt), metrics, aux

    def _step(
        self, state: TrainState, batch: Any, frozen: Any, active: tuple[str, ...]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        new, metrics, finite = dataclasses.replace(state), {}, jnp.bool(True)
        key = jax.random.fold_in(self.key, state.step)
        for i, net in enumerate(active):
            parts, values, aux = self._update(net, active, new, batch, jax.random.fold_in(key, i), frozen)
            new.params, new.rest, new.opt = (
                old | {net: part} for old, part in zip((new.params, new.rest, new.opt), parts, strict=True)
            )
            batch = batch | aux.outputs
            finite &= jnp.isfinite(values["loss"]) & jnp.isfinite(values["grad_norm"])
            prefix = "" if net == "tokenizer" else f"{net}/"
            metrics |= {f"{prefix}{name}": value for name, value in values.items()}
            if "counts" in aux.stats:
                new.counts = jnp.where(state.step % self.config.log_every == 0, 0, state.counts) + aux.stats["counts"]
        if self.vocab_sizes:
            metrics["usage"] = jnp.mean(usage.usage(new.counts, self.vocab_sizes))
            metrics["perplexity"] = jnp.mean(usage.perplexity(new.counts))
        decay = ema_decay(state.step, self.config.ema)
        new.ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, new.params["tokenizer"])
        good = finite & (state.bad_step < 0)
        new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        bad_step = jnp.where(good | (state.bad_step >= 0), state.bad_step, state.step)
        return dataclasses.replace(new, step=state.step + 1, bad_step=bad_step), metrics

    def _prepare(self, state: TrainState, batch: Any, frozen: Any) -> TrainState:
        nets = self.merge(state.params, state.rest, frozen)
        self.recipe.prepare(nets, batch, jax.random.fold_in(self.key, state.step), state.step, state.counts)
        params = {net: self.split(net, nets[net])[0] for net in state.params}
        # The average of a replaced value follows at once: what it averaged before meant something else.
        changed = jax.tree.map(jnp.not_equal, params["tokenizer"], state.params["tokenizer"])
        ema = jax.tree.map(jnp.where, changed, params["tokenizer"], state.ema)
        return dataclasses.replace(state, params=params, ema=ema)
