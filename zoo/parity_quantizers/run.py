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
from zoo.parity_quantizers.reference import Arguments, Reference, UnknownArgument, sg
from zoo.presets.rules import plan
from zoo.quantize.common import assigned_copy, full_precision, masked_mean
from zoo.quantize.projected import Wrapper
from zoo.quantize.regularizers import distances
from zoo.types import Quantized

Arrays = Any  # name -> array
IGNORED = re.compile(r"(.*\.)?(initted|mask|codebook_(mean|variance)_needs_init)")  # buffers without a value of ours


@dataclasses.dataclass(frozen=True)
class GivenNoise(zq.DiVeQ):
    """DiVeQ with the noise of a case."""

    noise: Any = None

    def __call__(self, z: Any, q: Any, codes: Any = None, *, dot: bool = False, key: Any = None) -> Any:
        return self.moved(z, q, self.noise)


@dataclasses.dataclass(frozen=True)
class Overwritten:
    """A regularizer as the original differentiates it: PyTorch's backward pass finds the codebook already moved by the
    step's averages, and the orthogonality is that of the moved codes."""

    regularizer: Any
    moved: Any

    def __call__(self, z: Any, ids: Any, codes: Any, mask: Any) -> dict[str, Any]:
        moved = codes + sg(self.moved - codes)
        if isinstance(self.regularizer, zq.Orthogonality):
            return self.regularizer(z, ids, moved, mask)
        like = distances(z, moved) ** 2
        squared = sg(distances(z, codes) ** 2) + like - sg(like)
        return self.regularizer.of(jnp.sqrt(squared), ids, mask)


def quantizer(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """A class of vector-quantize-pytorch (evaluation, then training steps), the official BSQ, or WeTok's."""
    about, outputs = case["reference_config"], case["outputs"]
    if "cls" not in about:
        adapter = codebooks.bsq if "variants" in about else codebooks.wetok
        return jax.jit(functools.partial(adapter, about))(io)
    call = {k: v for k, v in about["forward_kwargs"].items() if k == "inv_temperature"}
    run = Run(reference(about["cls"], about["constructor"] | call), about, io, weights)
    if run.found.kmeans and not weights[next(name for name in weights if name.endswith("initted"))]:
        zq.assign(run.module, jax.jit(run.initial)(nnx.state(run.module)))
    steps = sum(bool(re.fullmatch(r"ids_train\d+", name)) for name in outputs)
    out = {}
    for i, arguments in enumerate((about["train_calls"] or [{}] * max(steps, 1))[: max(steps, 1)], start=1):
        out |= run.step(i, arguments)
    for name in outputs:  # all codes are the third result of classes without a loss
        if name.startswith("loss_train") and "levels" in about["constructor"] and f"all_codes{name[4:]}" in out:
            out[name] = np.asarray(out[f"all_codes{name[4:]}"], np.float32)  # from a float32 table
    return out


class Run:
    """A case's quantizer as ours, with its state."""

    def __init__(self, found: Reference, about: dict[str, Any], io: Arrays, weights: Arrays):
        self.found, self.io = found, io
        self.shared = about["constructor"].get("shared_codebook", False)
        given = {n: w for n, w in weights.items() if not IGNORED.fullmatch(n) and self.stands_for(n) == n}
        if about["constructor"].get("affine_param"):  # what is not there before the first batch
            for name in ("batch_mean", "batch_variance"):
                given.setdefault(f"_codebook.{name}", np.zeros_like(given["_codebook.codebook_mean"]))
            given["_codebook.batch_seen"] = np.zeros(())
            given["_codebook.codebook_seen"] = 1.0 - weights["_codebook.codebook_mean_needs_init"]
        self.module: Any = filled(lambda: found.make(nnx.Rngs(0)), found.rules, given)
        self.graph, state = nnx.split(self.module)
        self.entries = plan(found.rules, shapes_of(state))
        self.mask = jnp.asarray(io["mask"]) == 1 if "mask" in io else None

    def stands_for(self, name: str) -> str:
        """All layers of a shared codebook are the first."""
        return re.sub(r"layers\.\d+\._codebook", "layers.0._codebook", name) if self.shared else name

    def take(self, name: str) -> jax.Array:
        x = jnp.asarray(self.io[name])
        return jnp.moveaxis(x, 1, -1) if self.channels_first else x

    @property
    def channels_first(self) -> bool:
        return self.found.channels_first or self.io["x"].ndim > 3

    def outside(self, q: jax.Array) -> jax.Array:
        return jnp.moveaxis(q, -1, 1) if self.channels_first else q

    def ids(self, ids: jax.Array) -> jax.Array:
        """Ours to the original's layout."""
        if self.found.groups > 1:
            return jnp.moveaxis(ids.reshape(*ids.shape[:-1], self.found.groups, -1), -2, 0)
        if self.found.ids_channels_first:
            return jnp.moveaxis(ids, -1, 1)
        return ids[..., 0] if self.found.squeeze else ids

    def own_ids(self, ids: jax.Array) -> jax.Array:
        """And back."""
        if self.found.groups > 1:
            return jnp.moveaxis(ids, 0, -2).reshape(*ids.shape[1:-1], -1)
        if self.found.ids_channels_first:
            return jnp.moveaxis(ids, 1, -1)
        return ids[..., None] if self.found.squeeze else ids

    def masked(self, out: Quantized) -> Quantized:
        """Zeros and ids -1 where the mask is False."""
        if self.mask is None:
            return out
        q, ids = jnp.where(self.mask[..., None], out.z, 0), jnp.where(self.mask[..., None], jnp.asarray(out.ids), -1)
        return dataclasses.replace(out, z=q, ids=ids)

    def initial(self, state: Any) -> dict[Any, Any]:
        """The state after k-means."""
        module: Any = nnx.merge(self.graph, state)
        return module.initialize(self.take("x"), iterations=self.found.kmeans)

    def _evaluated(self, module: Any, x: jax.Array) -> dict[str, Any]:
        """Without training: the codes of the ids, and what the stored ids decode to."""
        ids = jnp.asarray(module(x, mask=self.mask).ids)
        out = self.masked(Quantized(z=module.lookup(ids), ids=ids))
        values = {"quant": self.outside(out.z), "ids": self._reference_ids(module, out, ids)}
        if "ids_eval" in self.io:
            values["decoded"] = self.outside(module.lookup(self.own_ids(jnp.asarray(self.io["ids_eval"]))))
        return values | self._codes(module, jnp.asarray(out.ids))

    def _reference_ids(self, module: Any, out: Quantized, ids: jax.Array) -> jax.Array:
        if self.found.ids_of is None:
            return self.ids(jnp.asarray(out.ids))
        return self.found.ids_of((module.quantizer if isinstance(module, Wrapper) else module).lookup(ids))

    def _codes(self, module: Any, ids: jax.Array) -> dict[str, jax.Array]:
        """Each layer's codes of a residual quantizer."""
        while isinstance(module, Wrapper):
            module = module.quantizer
        return {"all_codes": jnp.stack(module.codes(ids))} if isinstance(module, zq.Residual) else {}

    @functools.cached_property
    def _step(self) -> Callable[..., Any]:
        return jax.jit(self._differentiate)

    def step(self, i: int, arguments: dict[str, Any]) -> dict[str, Any]:
        """One training step, the first with the evaluation before it; the module moves on."""
        x, up = (self.take(name if i == 1 else f"{name}{i}") for name in ("x", "up"))
        before, values, gradients, state = self._step(nnx.state(self.module), x, up, self.found.layers(arguments))
        out = {f"{name}_train{i}": value for name, value in values.items()}
        if i == 1:
            out |= {f"{name}_eval": value for name, value in before.items()}
            out["decoded_from_ids"] = before.get("decoded")
        for j, what in enumerate(("quant", "loss")):
            to_state, to_x = jax.tree.map(lambda g, j=j: g[j], gradients)
            out[f"grad_x_{what}_train{i}"] = self.outside(to_x)
            out |= {f"grad[{n}]_{what}_train{i}": g for n, g in self._named(to_state).items()}
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
            layers = range(self.module.layers)
            out |= {n.replace("layers.0", f"layers.{i}"): v for n, v in list(out.items()) for i in layers}
        return out

    def _differentiate(self, state: Any, x: jax.Array, up: jax.Array, number: jax.Array | None) -> Any:
        """(evaluation before, values, gradients of the output and of the loss, state after the step)."""
        module: Any = nnx.merge(self.graph, state)
        before = self._evaluated(module, x)
        if isinstance(module, zq.AffineVQ):  # the original's statistics move first
            zq.assign(module, module.observe(module(x, mask=self.mask).stats, module.codebook[...]))
            state = nnx.state(module)
        moved = self._moved(module, x)

        def forward(state: Any, x: jax.Array) -> tuple[Any, Any]:
            module: Any = nnx.merge(self.graph, state)
            if moved is not None:
                inner = innermost(module)
                inner.regularizers = [Overwritten(r, moved) for r in inner.regularizers]
            if "dnoise" in self.io:
                module.estimator = GivenNoise(module.estimator.variance, jnp.asarray(self.io["dnoise"]))
            out, layers = apply(module, x, self.mask, number)
            ids = jnp.asarray(out.ids)
            q = out.z + (self.found.gradient_scale - 1) * (out.z - sg(out.z))
            out = self.masked(dataclasses.replace(out, z=q))
            loss, parts = self._loss(module, x, out, layers)
            values = {"quant": self.outside(out.z), "ids": self._reference_ids(module, out, ids), "loss": loss}
            values |= {f"loss_{name}": value for name, value in parts.items()}
            return (jnp.sum(out.z * up), jnp.sum(loss).astype(x.dtype)), (values, out)

        _, pull, (values, out) = jax.vjp(forward, state, x, has_aux=True)
        gradients = jax.vmap(pull)(tuple(jnp.eye(2, dtype=x.dtype)))
        if self.found.updates:
            update = zq.EMAVQ.update if isinstance(module, zq.AffineVQ) else type(module).update
            zq.assign(module, update(module, out.stats, out.samples))
        values |= self._codes(module, jnp.asarray(out.ids))  # those of the moved codebooks
        return before, values, gradients, nnx.state(module)

    def _moved(self, module: Any, x: jax.Array) -> Any:
        """The codebook after this step, where regularizers look at it."""
        if not (self.found.updates and getattr(innermost(module), "regularizers", ())):
            return None
        out = module(x, mask=self.mask)
        return innermost(assigned_copy(module, module.update(out.stats, out.samples))).codes()

    def _loss(self, module: Any, x: jax.Array, out: Quantized, layers: list[Quantized]) -> tuple[Any, dict[str, Any]]:
        if self.found.per_layer:
            return jnp.stack([self.found.loss(layer.losses, x, out.z)[0] for layer in layers], -1), {}
        losses = out.losses
        if self.mask is not None and getattr(module, "l2_norm", False):  # the original compares with the raw input
            losses = losses | {"commitment": masked_mean((x - sg(out.z)) ** 2, self.mask)}
        return self.found.loss(losses, x, out.z)


def innermost(module: Any) -> Any:
    """The quantizer inside of wrappers and heads."""
    while isinstance(module, Wrapper | zq.Heads):
        module = module.quantizer
    return module


def apply(module: Any, z: jax.Array, mask: Any, number: Any) -> tuple[Quantized, list[Quantized]]:
    """(the result, and that of each layer of a residual quantizer of which `number` layers run)."""
    if isinstance(module, Wrapper):
        out, layers = apply(module.quantizer, module.inside(full_precision(z)), mask, number)
        return module.around(out), layers
    if isinstance(module, zq.Residual):
        layers = module.each(z, mask=mask, number=number)
        return module.collect(z, layers, number), layers
    if isinstance(module, zq.Product):
        out, layers = module.map(lambda q, z: apply(q, z, mask, number), module.split(z))
        return module.side_by_side(out), layers
    out = module(z, mask=mask)
    return out, [out]


CLASSES: dict[str, Callable[[Arguments], Reference]] = {
    "VectorQuantize": vectors.vector_quantize,
    "ResidualVQ": vectors.residual_vq,
    "GroupedResidualVQ": vectors.residual_vq,
    "SimVQ": vectors.sim_vq,
    "ResidualSimVQ": vectors.sim_vq,
    "FSQ": scalars.fsq,
    "LFQ": scalars.lfq,
    "ResidualFSQ": scalars.residual_scalar,
    "ResidualLFQ": scalars.residual_scalar,
    "GroupedResidualFSQ": scalars.residual_scalar,
    "GroupedResidualLFQ": scalars.residual_scalar,
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
