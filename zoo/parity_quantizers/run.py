"""Parity of quantizers: forward values, ids, losses, gradients, and the state after training steps."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo import quantize as zq
from zoo.convert import filled, shapes_of
from zoo.parity_quantizers import codebooks, scalars, vectors
from zoo.parity_quantizers.quirks import (
    DiVeQResidual,
    GivenNoise,
    Observing,
    SharedResidual,
    against_unprojected,
    as_original,
    leaves,
    pooled_diversity,
    remember_moved,
    with_masked_losses,
)
from zoo.parity_quantizers.reference import Arguments, Reference, UnknownArgument, sg
from zoo.presets.rules import plan
from zoo.quantize.common import assigned_copy, full_precision
from zoo.quantize.projected import Wrapper
from zoo.types import Quantized

Arrays = Any  # name -> array
SHOWN = ("return_loss_breakdown", "return_all_codes", "mask", "lens")  # arguments of a call that change no result
CALLS = ("rand_quantize_dropout_fixed_seed",)  # and those of one step
MOMENTS = ("mean", "variance")
IGNORED = re.compile(r"(.*\.)?(initted|mask|codebook_(mean|variance)_needs_init)")  # buffers without a value of ours


def quantizer(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """A class of vector-quantize-pytorch (evaluation, then training steps), the official BSQ, or WeTok's."""
    about, outputs = case["reference_config"], case["outputs"]
    if "cls" not in about:
        if "variants" in about:
            return codebooks.bsq(about, io)
        return jax.jit(functools.partial(codebooks.wetok, about))(io)
    call = {name: value for name, value in about["forward_kwargs"].items() if name not in SHOWN}
    every = {name: call.pop(name) for name in CALLS if name in call}
    constructor = dict(about["constructor"])
    if "Residual" in about["cls"]:
        constructor.pop("freeze_codebook", None)  # the call's default overrides it
    run = Run(reference(about["cls"], constructor | call), io, weights)
    if run.found.kmeans and not all(w for name, w in weights.items() if name.endswith("initted")):
        zq.assign(run.module, jax.jit(run.initial)(nnx.state(run.module)))
    if "ids_eval" in outputs and any(isinstance(leaf, Observing) for leaf in leaves(run.module)):
        raise UnknownArgument("affine_param in evaluation, which moves the original's statistics")
    steps = len({match[1] for name in outputs if (match := re.fullmatch(r"(?:ids|quant)_train(\d+)", name))})
    if not steps:
        return run.evaluation()
    out = {}
    for i, arguments in enumerate((about["train_calls"] or [{}] * steps)[:steps], start=1):
        if unknown := arguments.keys() - CALLS:
            raise UnknownArgument(f"{', '.join(unknown)} in train_calls")
        out |= run.step(i, every | arguments)
    for name in outputs:  # all codes are the third result of classes without a loss
        if name.startswith("loss_train") and "levels" in about["constructor"] and f"all_codes{name[4:]}" in out:
            out[name] = out[f"all_codes{name[4:]}"]
    return out


class Run:
    """A case's quantizer as ours, with its state."""

    def __init__(self, found: Reference, io: Arrays, weights: Arrays):
        self.found, self.io = found, io
        self.module: Any = nnx.eval_shape(lambda: found.make(nnx.Rngs(0)))
        layers = [m.layers for _, m in nnx.iter_modules(self.module) if isinstance(m, zq.Residual) and m.shared]
        self.shared = layers[0] if layers else 0
        given = {n: w for n, w in weights.items() if not IGNORED.fullmatch(n) and self.stands_for(n) == n}
        given |= found.constants | _statistics(given, weights)
        self.module = filled(lambda: found.make(nnx.Rngs(0)), found.rules, given)
        self.graph, state = nnx.split(self.module)
        self.entries = plan(found.rules, shapes_of(state))
        self.mask = jnp.asarray(io["mask"]) == 1 if "mask" in io else None
        if "lens" in io:
            self.mask = jnp.arange(self.take("x").shape[1]) < jnp.asarray(io["lens"])[:, None]

    def stands_for(self, name: str) -> str:
        """All layers of a shared codebook are the first."""
        return re.sub(r"layers\.\d+\._codebook", "layers.0._codebook", name) if self.shared else name

    def take(self, name: str) -> jax.Array:
        x = jnp.asarray(self.io[name])
        return jnp.moveaxis(x, 1, -1) if self.channels_first else x

    @property
    def channels_first(self) -> bool:
        images = self.found.channels_first == "images"
        return self.io["x"].ndim > 3 if images else bool(self.found.channels_first)

    def outside(self, q: jax.Array) -> jax.Array:
        return jnp.moveaxis(q, -1, 1) if self.channels_first else q

    def ids(self, ids: jax.Array) -> jax.Array:
        """Ours to the original's layout."""
        groups = self.found.groups
        if groups:
            ids = jnp.moveaxis(ids.reshape(*ids.shape[:-1], groups, -1), -2, 0)
        if self.found.ids_channels_first:
            ids = jnp.moveaxis(ids, -1, 2 if groups else 1)
        return ids[..., 0] if self.found.squeeze else ids

    def own_ids(self, ids: jax.Array) -> jax.Array:
        """And back. The original decodes ids [b, q, ...] as if q came last."""
        if self.found.groups:
            return jnp.moveaxis(ids, 0, -2).reshape(*ids.shape[1:-1], -1)
        return ids[..., None] if self.found.squeeze else ids

    def masked(self, out: Quantized, x: jax.Array) -> Quantized:
        """Zeros, or x, and ids -1 where the mask is False."""
        if self.mask is None or not self.found.masked:
            return out
        mask = self.mask[..., None]
        q = jnp.where(mask, out.z, x if self.found.masked == "input" else 0)
        return dataclasses.replace(out, z=q, ids=jnp.where(mask, jnp.asarray(out.ids), -1))

    def initial(self, state: Any) -> dict[Any, Any]:
        """The state after k-means."""
        module: Any = nnx.merge(self.graph, state)
        return module.initialize(self.take("x"), iterations=self.found.kmeans, mask=self.mask)

    def evaluation(self) -> dict[str, Any]:
        """What the original gives without training."""
        values = jax.jit(lambda state, x: self._evaluated(nnx.merge(self.graph, state), x))
        return _of_evaluation(values(nnx.state(self.module), self.take("x")))

    def _evaluated(self, module: Any, x: jax.Array) -> dict[str, Any]:
        """Without training: the codes of the ids, and what the stored ids decode to."""
        self._give_noise(module, training=False)
        for _, inner in nnx.iter_modules(module):
            if isinstance(inner, SharedResidual):
                inner.trains = False
        out = module(x, mask=self.mask)
        ids = jnp.asarray(out.ids)
        noisy = any(isinstance(m, DiVeQResidual) for _, m in nnx.iter_modules(module))  # in evaluation too
        out = self.masked(Quantized(z=out.z if noisy else module.lookup(ids), ids=ids), x)
        values = {"quant": self.outside(out.z), "ids": self._reference_ids(module, out, ids)}
        if "ids_eval" in self.io:
            values["decoded"] = self._decoded(module, self.own_ids(jnp.asarray(self.io["ids_eval"])))
        return values | self._codes(module, jnp.asarray(out.ids))

    def _decoded(self, module: Any, ids: jax.Array) -> jax.Array:
        module = self._plain(module)
        if isinstance(module, zq.Heads) and hasattr(module.quantizer, "codebook"):  # heads are left apart
            return self.outside(module.quantizer.lookup(ids[..., None]))
        q = module.lookup(ids)
        if self.found.decoded_channels_first:
            return self.outside(q)
        if self.found.groups and self.channels_first:  # channels come last, and groups are joined along axis 1
            return jnp.concatenate(jnp.split(q, self.found.groups, -1), 1)
        return q

    def _plain(self, module: Any) -> Any:
        """With the codes as they are in the original's table of all codes."""
        if self.found.plain_codes:
            module = nnx.clone(module)
            for leaf in leaves(module):
                leaf.rotate = leaf.spherical = False
                leaf.table = True
        return module

    def _reference_ids(self, module: Any, out: Quantized, ids: jax.Array) -> jax.Array:
        if self.found.ids_of is None:
            return self.ids(jnp.asarray(out.ids))
        return self.found.ids_of((module.quantizer if isinstance(module, Wrapper) else module).lookup(ids))

    def _codes(self, module: Any, ids: jax.Array) -> dict[str, jax.Array]:
        """Each layer's codes of a residual quantizer; of several in groups, with a leading group axis."""
        module, channels = self._plain(module), self.channels_first and self.found.decoded_channels_first

        def codes(module: Any, ids: jax.Array) -> jax.Array:
            while isinstance(module, Wrapper):
                module = module.quantizer
            layers = jnp.stack(module.codes(ids))
            return jnp.moveaxis(layers, -1, 2) if channels else layers

        if not any(isinstance(m, zq.Residual) for _, m in nnx.iter_modules(module)):
            return {}
        if isinstance(module, zq.Product):
            return {"all_codes": module.map(codes, module.split(ids))}
        return {"all_codes": codes(module, self.ids(ids))}

    @functools.cached_property
    def _step(self) -> Callable[..., Any]:
        return jax.jit(self._differentiate)

    def step(self, i: int, arguments: dict[str, Any]) -> dict[str, Any]:
        """One training step, the first with the evaluation before it; the module moves on."""
        x, up = (self.take(name if i == 1 else f"{name}{i}") for name in ("x", "up"))
        before, values, gradients, state = self._step(nnx.state(self.module), x, up, self.found.layers(arguments))
        out = {f"{name}_train{i}": value for name, value in values.items()}
        if i == 1:
            out |= _of_evaluation(before)
        for j, what in enumerate(("quant", "loss")):
            to_state, to_x = jax.tree.map(lambda g, j=j: g[j], gradients)
            out[f"grad_x_{what}_train{i}"] = self.outside(to_x)
            out |= {f"grad[{n}]_{what}_train{i}": g for n, g in self._tied(self._named(to_state)).items()}
        nnx.update(self.module, state)
        return out | {f"after{i}:{name}": value for name, value in self._named(state).items()}

    def _named(self, state: Any) -> dict[str, Any]:
        """Arrays under the original's names."""
        flat = {path: variable[...] for path, variable in nnx.to_flat_state(state)}
        out = {}
        for entry in self.entries:
            if entry.path in flat:
                out |= entry.to_reference(flat[entry.path])
        if self.shared:
            named = list(out.items())
            out |= {n.replace("layers.0", f"layers.{i}"): v for n, v in named for i in range(self.shared)}
        return out

    def _tied(self, gradients: dict[str, Any]) -> dict[str, Any]:
        """The sum of the gradients of arrays that are one in the original."""
        of = {n: match[1] for n in gradients if self.found.tied and (match := re.fullmatch(self.found.tied, n))}
        return gradients | {n: sum(gradients[other] for other in of if of[other] == of[n]) for n in of}

    def _differentiate(self, state: Any, x: jax.Array, up: jax.Array, number: jax.Array | None) -> Any:
        """(evaluation before, values, gradients of the output and of the loss, state after the step)."""
        module: Any = nnx.merge(self.graph, state)
        before = self._evaluated(nnx.clone(module), x)
        moved = self._moved(module, x, number)

        def forward(state: Any, x: jax.Array) -> tuple[Any, Any]:
            module: Any = nnx.merge(self.graph, state)
            if moved is not None:
                remember_moved(module, moved)
            self._give_noise(module)
            out, layers = apply(as_original(module), x, self.mask, number)
            ids = jnp.asarray(out.ids)
            out = self.masked(out, x)
            loss, parts = self._loss(module, x, out, layers)
            values = {"quant": self.outside(out.z), "ids": self._reference_ids(module, out, ids), "loss": loss}
            values |= {f"loss_{name}": value for name, value in parts.items()}
            return (jnp.sum(out.z * up), jnp.sum(loss).astype(x.dtype)), (values, out)

        _, pull, (values, out) = jax.vjp(forward, state, x, has_aux=True)
        gradients = jax.vmap(pull)(tuple(jnp.eye(2, dtype=x.dtype)))
        if self.found.updates:
            zq.assign(module, module.update(out.stats, out.samples))
        values |= self._codes(module, jnp.asarray(out.ids))  # those of the moved codebooks
        return before, values, gradients, nnx.state(module)

    def _moved(self, module: Any, x: jax.Array, number: Any) -> Any:
        """The quantizer after this step, where regularizers look at it."""
        if not (self.found.updates and any(getattr(leaf, "regularizers", ()) for leaf in leaves(module))):
            return None
        out, _ = apply(as_original(nnx.clone(module)), x, self.mask, number)
        return assigned_copy(module, module.update(out.stats, out.samples))

    def _give_noise(self, module: Any, *, training: bool = True) -> None:
        """The noise of the case to what draws some; around all layers also in evaluation."""
        if "dnoise" in self.io:
            noise = jnp.asarray(self.io["dnoise"])
            for leaf in leaves(module):
                if training and isinstance(leaf.estimator, zq.DiVeQ):
                    leaf.estimator = GivenNoise(leaf.estimator.variance, noise)
            for _, inner in nnx.iter_modules(module):
                if isinstance(inner, DiVeQResidual):
                    inner.noise = noise

    def _loss(self, module: Any, x: jax.Array, out: Quantized, layers: list[Quantized]) -> tuple[Any, dict[str, Any]]:
        if self.found.per_layer:
            return jnp.stack([self.found.loss(layer.losses, x, out.z)[0] for layer in layers], -1), {}
        losses = out.losses
        if "diversity" in losses and jnp.asarray(out.ids).shape[-1] > 1:
            losses = losses | {"diversity": pooled_diversity(module, x)}
        return self.found.loss(losses, x, out.z)


def _of_evaluation(values: dict[str, Any]) -> dict[str, Any]:
    return {"decoded_from_ids" if name == "decoded" else f"{name}_eval": value for name, value in values.items()}


def _statistics(given: Arrays, weights: Arrays) -> Arrays:
    """Of the affine form: the batch's, which are not there before the first one, and whether each has been seen."""
    out = {}
    for name in weights:
        if name.endswith("codebook_mean_needs_init"):
            start, like = name.removesuffix("codebook_mean_needs_init"), given[name.removesuffix("_needs_init")]
            out |= {f"{start}batch_{n}": given.get(f"{start}batch_{n}", np.zeros_like(like)) for n in MOMENTS}
            for which, seen in (("batch", f"{start}batch_mean" in given), ("codebook", not weights[name])):
                out[f"{start}{which}_seen"] = np.full(len(like) if len(like) > 1 else (), float(seen))
    return out


def apply(module: Any, z: jax.Array, mask: Any, number: Any) -> tuple[Quantized, list[Quantized]]:
    """(the result, and that of each layer of a residual quantizer of which `number` layers run)."""
    if isinstance(module, Wrapper):
        out, layers = apply(module.quantizer, module.inside(full_precision(z)), mask, number)
        if isinstance(module.quantizer, zq.EMAVQ) and out.z.shape[-1] == 1:
            out = against_unprojected(z, out, mask)
        return module.around(out), layers
    if isinstance(module, zq.Residual):
        layers = module.each(z, mask=mask, number=number)
        out, residual = module.collect(z, layers, number), z
        for i, layer in enumerate(layers):
            layers[i] = with_masked_losses(module.layer(i), residual, layer, mask)
            residual = residual - sg(layer.z)
        return out, layers
    if isinstance(module, zq.Product):
        out, layers = module.map(lambda q, z: apply(as_original(q), z, mask, number), module.split(z))
        return module.side_by_side(out), layers
    out = with_masked_losses(module, z, module(z, mask=mask), mask)
    return out, [out]


CLASSES: dict[str, Callable[[Arguments], Reference]] = {
    "VectorQuantize": vectors.vector_quantize,
    "ResidualVQ": vectors.residual_vq,
    "GroupedResidualVQ": functools.partial(vectors.residual_vq, groups=True),
    "SimVQ": vectors.sim_vq,
    "ResidualSimVQ": vectors.sim_vq,
    "FSQ": scalars.fsq,
    "LFQ": scalars.lfq,
    "ResidualFSQ": scalars.residual_scalar,
    "ResidualLFQ": scalars.residual_scalar,
    "GroupedResidualFSQ": functools.partial(scalars.residual_scalar, groups=True),
    "GroupedResidualLFQ": functools.partial(scalars.residual_scalar, groups=True),
    "LatentQuantize": scalars.latent_quantize,
    "RandomProjectionQuantizer": vectors.random_projection,
}


def reference(name: str, arguments: dict[str, Any]) -> Reference:
    """The class `name` with these arguments, and with "inv_temperature" of the call among them.

    Raises:
        UnknownArgument: the class, or an argument.
    """
    if name not in CLASSES:
        raise UnknownArgument(f"class {name}")
    left = Arguments(arguments)
    found = CLASSES[name](left)
    if left:
        raise UnknownArgument(", ".join(f"{key}={value}" for key, value in left.items()))
    return found
