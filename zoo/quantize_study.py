"""What each quantizer is worth: a two-layer autoencoder of image patches, trained through it and measured.

    patch 8 x 8 x 3 -> hidden, GELU -> z -> quantizer -> hidden, GELU -> patch        mean squared error + its losses

One program holds start, all steps and the measurement, so that a quantizer compiles once. Items are strips of four
neighbouring patches: a sequence [t = 4, 192], which the quantizers with coarse layers need.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from zoo.bench_rows import repeated
from zoo.data.sources import holdout, open_source
from zoo.quantize import MultiScale, assign
from zoo.quantize import usage as use
from zoo.quantize.search import kmeans, nearest
from zoo.quantize.table import Scheme
from zoo.types import Quantized

PATCH, STRIP = 8, 4  # pixels; patches side by side

CHUNK = 256  # items measured at a time
SHARE = 0.2  # of the photos, held out
FITTED = 16 * CHUNK  # items that k-means on pixels sees
VECTORS = 8192  # whose quantization is timed
Build = Callable[[nnx.Rngs], Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        steps: of Adam, with a rate that falls along a cosine.
        batch: items of a step.
        rate: of Adam, at the start.
        hidden: channels of both hidden layers.
        fitted: the quantizer starts from latents (k-means), where it has a way to.
        seed: of the weights and of all draws.
    """

    steps: int = 1000
    batch: int = 64
    rate: float = 2e-3
    hidden: int = 64
    fitted: bool = True
    seed: int = 0


class Autoencoder(nnx.Module):
    """Two layers, a quantizer, two layers.

    Args:
        make: builds the quantizer.
        channels: of an item's positions.
        width: channels of z.
        hidden: of both hidden layers.
    """

    def __init__(self, make: Build, channels: int, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.encoder = nnx.Sequential(
            nnx.Linear(channels, hidden, rngs=rngs), jax.nn.gelu, nnx.Linear(hidden, width, rngs=rngs)
        )
        self.quantizer = make(rngs)
        z = jax.ShapeDtypeStruct((1, STRIP, width), jnp.float32)
        back = jax.eval_shape(lambda z: self.quantizer(z).z, z).shape[-1]
        self.decoder = nnx.Sequential(
            nnx.Linear(back, hidden, rngs=rngs), jax.nn.gelu, nnx.Linear(hidden, channels, rngs=rngs)
        )


@functools.cache
def draws_of(settings: Settings, items: int) -> tuple[Array, Array]:
    """(which items each step takes [steps, batch], its keys [steps]), drawn outside of what compiles per scheme."""
    key = jax.random.key(settings.seed)
    return jax.random.randint(key, (settings.steps, settings.batch), 0, items), jax.random.split(key, settings.steps)


def train(
    model: Autoencoder,
    data: Float[Array, "n t c"],
    draws: tuple[Array, Array],
    weights: Mapping[str, float],
    settings: Settings,
) -> tuple[Autoencoder, dict[str, Array]]:
    """Trains an autoencoder. Pure, to be called within jax.jit.

    Args:
        model: as it starts.
        data: items.
        draws: of `draws_of`.
        weights: of those of the quantizer's losses that are named.
        settings: how.

    Returns:
        The trained model, and by step: "loss", "error" (mean squared), and where there are ids their "counts" in the
        batch [steps, q, k].
    """
    items, keys = draws
    graph, params, state = nnx.split(model, nnx.Param, ...)
    if settings.fitted:
        model = nnx.merge(graph, params, state)
        assign(model.quantizer, model.quantizer.initialize(model.encoder(data[items[0]]), key=keys[0]))
        _, params, state = nnx.split(model, nnx.Param, ...)
    adam = optax.flatten(optax.adam(optax.cosine_decay_schedule(settings.rate, settings.steps)))  # compiles faster

    def loss(params: Any, state: Any, x: Array, key: PRNGKeyArray) -> tuple[Array, tuple[Any, Array]]:
        model = nnx.merge(graph, params, state)
        out = model.quantizer(model.encoder(x), key=key)
        error = jnp.mean((model.decoder(out.z) - x) ** 2)
        named = [weights[name] * value for name, value in out.losses.items() if name in weights]
        return error + sum(named), (out, error)

    def step(carry: Any, now: tuple[Array, Array]) -> tuple[Any, dict[str, Array]]:
        params, state, moments = carry
        chosen, key = now
        (total, (out, error)), gradient = jax.value_and_grad(loss, has_aux=True)(params, state, data[chosen], key)
        change, moments = adam.update(gradient, moments)
        model = nnx.merge(graph, optax.apply_updates(params, change), state)
        assign(model.quantizer, model.quantizer.update(out.stats, out.samples))
        _, params, state = nnx.split(model, nnx.Param, ...)
        return (params, state, moments), {"loss": total, "error": error} | _counts(out)

    start = (params, state, adam.init(params))
    (params, state, _), curves = jax.lax.scan(step, start, draws)
    return nnx.merge(graph, params, state), curves


def _counts(out: Quantized) -> dict[str, Array]:
    return {"counts": out.stats["counts"]} if "counts" in out.stats else {}


def fit(
    make: Build, data: np.ndarray, *, width: int, weights: Mapping[str, float], settings: Settings = Settings()
) -> tuple[Autoencoder, dict[str, np.ndarray]]:
    """`train` as a function to call: the trained model, and its curves.

    Args:
        make: builds the quantizer.
        data: float32 [n, t, c].
        width: channels of z.
        weights: of the quantizer's losses.
        settings: how.
    """
    model = Autoencoder(make, data.shape[-1], width, settings.hidden, rngs=nnx.Rngs(settings.seed))
    graph, state = nnx.split(model)

    @jax.jit
    def program(state: Any, data: Array, draws: Any) -> tuple[Any, Any]:
        model, curves = train(nnx.merge(graph, state), data, draws, weights, settings)
        return nnx.state(model), curves

    state, curves = program(state, data, draws_of(settings, len(data)))
    return nnx.merge(graph, state), jax.device_get(curves)


def measure(model: Autoencoder, data: Float[Array, "n t c"]) -> dict[str, Array]:
    """Of each CHUNK items: the mean squared "error" [m], and the "counts" [m, q, k] of ids, if any. Pure."""

    def part(x: Array) -> dict[str, Array]:
        out = model.quantizer(model.encoder(x))
        return {"error": jnp.mean((model.decoder(out.z) - x) ** 2)} | _counts(out)

    return jax.lax.map(part, data.reshape(-1, CHUNK, *data.shape[1:]))


@dataclasses.dataclass(frozen=True)
class Photos:
    """Strips of the bundled photos, shifted and divided by one number each.

    Attributes:
        training, heldout: float32 [n, 4, 192], of different photos; both n are multiples of CHUNK.
        deviation: what they were divided by; pixels are from 0 to 1.
    """

    training: np.ndarray
    heldout: np.ndarray
    deviation: float


def photos(step: int = 8) -> Photos:
    """Strips `step` pixels apart vertically and twice as far horizontally, six of the 24 photos held out."""
    training, heldout = (_strips(source, step) for source in holdout(open_source("bundled"), SHARE))
    mean, deviation = training.mean(), float(training.std())
    return Photos((training - mean) / deviation, (heldout - mean) / deviation, deviation)


def _strips(source: Any, step: int) -> np.ndarray:
    shape = (PATCH, PATCH * STRIP, 3)
    windows = [np.lib.stride_tricks.sliding_window_view(source[i]["image"], shape) for i in range(len(source))]
    found = np.concatenate([w[::step, :: 2 * step].reshape(-1, PATCH, STRIP, PATCH, 3) for w in windows])
    found = found.transpose(0, 2, 1, 3, 4).reshape(len(found), STRIP, -1)
    order = np.random.default_rng(0).permutation(len(found))[: len(found) // CHUNK * CHUNK]
    return found[order].astype(np.float32) / 255


def run(scheme: Scheme, codes: int, data: Photos, settings: Settings) -> dict[str, Any]:
    """Trains through a scheme and measures it.

    Args:
        scheme: a row of the table.
        codes: of each codebook, about.
        data: what to train on, and what not to.
        settings: how.

    Returns:
        scheme, codes (None for continuous latents), steps and seed; "parameters" of the quantizer; "start" and "end",
        the loss; "first" and "last", the squared error of the first step and of the last tenth; "mse" and "psnr" of
        pixels in [0, 1] on the photos held out; where there are ids, "bits" of a patch if all are equally likely,
        "entropy" in bits of a patch with each codebook's ids coded by themselves, both of the photos held out, and of
        the training photos "usage" (the lowest of the codebooks), "dead" codes and "perplexity" (the mean).
    """
    make = functools.partial(scheme.make, codes)
    model = Autoencoder(make, PATCH**2 * 3, scheme.width(codes), settings.hidden, rngs=nnx.Rngs(settings.seed))
    graph, state = nnx.split(model)

    @jax.jit
    def program(state: Any, training: Array, heldout: Array, draws: Any) -> Any:
        model, curves = train(nnx.merge(graph, state), training, draws, scheme.weights, settings)
        return curves["loss"], curves["error"], measure(model, jnp.concatenate([training[: len(heldout)], heldout]))

    draws = draws_of(settings, len(data.training))
    loss, error, parts = jax.device_get(program(state, data.training, data.heldout, draws))
    mse = float(parts["error"][len(parts["error"]) // 2 :].mean()) * data.deviation**2
    tail = max(1, settings.steps // 10)
    row = {
        "scheme": scheme.name,
        "codes": codes if "counts" in parts else None,
        "steps": settings.steps,
        "seed": settings.seed,
        "parameters": sum(x.size for x in jax.tree.leaves(nnx.state(model.quantizer))),
        "start": float(loss[0]),
        "end": float(loss[-tail:].mean()),
        "first": float(error[0]),
        "last": float(error[-tail:].mean()),
        "mse": mse,
        "psnr": float(-10 * np.log10(mse)),
    }
    return row | (_rates(model.quantizer, parts["counts"]) if "counts" in parts else {})


def _rates(quantizer: Any, counts: np.ndarray) -> dict[str, float]:
    """Of counts [m, q, k], the first half of the m from training photos, the other half from those held out."""
    seen, unseen = (half.sum(0) for half in np.split(counts, 2))
    strides = np.asarray(quantizer.strides if isinstance(quantizer, MultiScale) else [1] * len(seen))
    return {
        "codebooks": len(quantizer.vocab_sizes),
        "bits": float(np.sum(np.log2(quantizer.vocab_sizes) / strides)),
        "entropy": float(np.sum(use.entropy_bits(unseen) / strides)),
        "usage": float(np.min(use.usage(seen, quantizer.vocab_sizes))),
        "dead": int(np.sum(use.dead_codes(seen, quantizer.vocab_sizes))),
        "perplexity": float(np.mean(use.perplexity(seen))),
    }


def speed(scheme: Scheme, codes: int) -> dict[str, float]:
    """The quantizer alone, as in encoding: "vectors_per_second" (the median of repeated calls) and "memory", the bytes
    of XLA's temporaries, both with VECTORS random vectors; "load", the programs that ran meanwhile."""
    z = jax.random.normal(jax.random.key(0), (VECTORS // STRIP, STRIP, scheme.width(codes)))
    graph, state = nnx.split(scheme.make(codes, nnx.Rngs(0)))

    def encode(state: Any, z: Array) -> tuple[Array, Array | None]:
        out = nnx.merge(graph, state)(z)
        return out.z, out.ids

    call = jax.jit(encode).lower(state, z).compile()
    memory: Any = call.memory_analysis()
    seconds = float(np.median(repeated(lambda: call(state, z))))
    return {"vectors_per_second": VECTORS / seconds, "memory": memory.temp_size_in_bytes, "load": os.getloadavg()[0]}


def pixel_codebook(codes: int, data: Photos, iterations: int = 20) -> dict[str, Any]:
    """k-means on the pixels of training patches, without an autoencoder, measured as in `run`."""
    training, heldout = (x.reshape(-1, x.shape[-1]) for x in (data.training[:FITTED], data.heldout))
    means = jax.jit(kmeans, static_argnums=2)(training, training[:codes], iterations)[0]
    ids = jax.lax.map(lambda z: nearest(z, means), heldout.reshape(-1, CHUNK, heldout.shape[-1])).reshape(-1)
    mse = float(jnp.mean((means[ids] - heldout) ** 2)) * data.deviation**2
    counts = np.bincount(ids, minlength=codes)[None]
    rates = {"bits": float(np.log2(codes)), "entropy": use.bits_per_token(counts)}
    quality = {"mse": mse, "psnr": float(-10 * np.log10(mse))}
    return {"scheme": "kmeans", "codes": codes, "seed": 0, "parameters": means.size} | quality | rates


def gaussian_bound(data: Photos) -> dict[str, list[float]]:
    """Rate against distortion of a Gaussian source with the covariance of the patches held out.

    Reverse water-filling (Cover and Thomas, Elements of Information Theory, theorem 10.3.3), over eigenvalues v:
    mse = sum min(v, level) / 192 and bits = sum max(0, log2(v / level) / 2), for levels of 0.5 to 60 bits.
    """
    patches = data.heldout.reshape(-1, data.heldout.shape[-1]).astype(np.float64) * data.deviation
    values = np.linalg.eigvalsh(np.cov(patches, rowvar=False)).clip(1e-12)
    levels = np.geomspace(values.max(), 1e-5, 400)
    bits = np.array([np.sum(np.maximum(0, np.log2(values / level) / 2)) for level in levels])
    mse = np.array([np.mean(np.minimum(values, level)) for level in levels])
    kept = (bits >= 0.5) & (bits <= 60)
    return {"bits": bits[kept].tolist(), "mse": mse[kept].tolist()}


def facts(settings: Settings, data: Photos, batch: int) -> dict[str, int]:
    """What docs/quantizers.md says of the study, in which no batch has more than `batch` items."""
    training, heldout = (len(source) for source in holdout(open_source("bundled"), SHARE))
    shown = {"training": training, "heldout": heldout, "fitted": FITTED * STRIP, "vectors": VECTORS}
    patches = len(data.training) * STRIP
    return shown | {"hidden": settings.hidden, "steps": settings.steps, "patches": patches, "batch": batch}
