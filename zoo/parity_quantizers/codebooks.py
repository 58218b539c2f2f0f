"""Parity of quantizers that are no class of vector-quantize-pytorch: BSQ, WeTok, and the codebooks of audio codecs."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.special import entr

from zoo import quantize as zq
from zoo.convert import filled
from zoo.parity_quantizers.reference import UnknownArgument
from zoo.presets.rules import Rule
from zoo.quantize import binary
from zoo.quantize.search import kmeans
from zoo.types import Quantized

Arrays = Any  # name -> array
sg = jax.lax.stop_gradient


def channels_last(x: Any) -> jax.Array:
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def channels_first(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -1, 1)


# -- signs


def known(about: dict[str, Any], *names: str) -> None:
    """Raises UnknownArgument where a case says more than these."""
    if others := about.keys() - set(names):
        raise UnknownArgument(", ".join(f"{name}={about[name]}" for name in sorted(others)))


BSQ = ("beta", "gamma0", "gamma", "zeta", "l2_norm", "group_size", "inv_temperature", "persample_entropy_compute")
BSQ_DEFAULTS = {"l2_norm": False, "group_size": 9, "inv_temperature": 1.0, "persample_entropy_compute": "group"}


def bsq(about: dict[str, Any], io: Arrays) -> dict[str, Any]:
    """The official BSQ in each variant."""
    z, up, out = channels_last(io["z"]), channels_last(io["up"]), {}
    known(about, "embed_dim", "variants")
    for tag, given in about["variants"].items():
        known(given, *BSQ, "cb_entropy_compute")  # the last is read nowhere
        v = BSQ_DEFAULTS | given
        size, dim = v["group_size"], about["embed_dim"]
        own = 1 if v["persample_entropy_compute"] == "analytical" else size
        entropy = zq.Entropy(1 / v["inv_temperature"], epsilon=1e-8)
        quantizer = zq.BSQ(dim, groups=dim // size, l2_norm=v["l2_norm"], entropy_bits=own, entropy=entropy)
        values = jax.jit(functools.partial(_bsq_values, quantizer, v))(z, up)
        place = 2 ** (quantizer.bits * np.arange(quantizer.groups, dtype=np.int64)[::-1])
        whole = np.sum(np.asarray(values["group_ids"]) * place, -1)  # more bits than int32 has
        values["ids"] = whole.astype(io[f"ids_{tag}"].dtype)
        stored = quantizer.lookup(jnp.asarray(io[f"group_ids_{tag}"]))
        values["codes_of_group_ids"] = jnp.sign(stored).astype(jnp.int32)
        out |= {f"{name}_{tag}": value for name, value in values.items()}
    return out


def _bsq_values(quantizer: zq.BSQ, v: dict[str, Any], z: jax.Array, up: jax.Array) -> dict[str, Any]:
    def forward(z: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Quantized]:
        out = quantizer(z)
        penalty = v["gamma0"] * out.losses["sample_entropy"] - v["gamma"] * out.losses["codebook_entropy"]
        loss = v["beta"] * out.losses["commitment"] + v["zeta"] * penalty / v["inv_temperature"]
        return (loss, jnp.sum(out.z * up)), out

    (loss, _), pull, out = jax.vjp(forward, z, has_aux=True)
    to_loss, to_output = jax.vmap(pull)(tuple(jnp.eye(2, dtype=z.dtype)))[0]
    units = quantizer.continuous(z)
    logits = 4 * v["inv_temperature"] * quantizer.magnitude * units
    logits = logits.reshape(-1, quantizer.dim // quantizer.entropy_bits, quantizer.entropy_bits)
    p = jnp.exp(binary.code_log_probabilities(logits[..., ::-1]))  # the original's codes are big endian
    return {
        "zq": channels_first(out.z),
        "loss": loss,
        "H": out.losses["codebook_entropy"],
        "avg_prob": jnp.mean(p, 0),
        "group_ids": out.ids,
        "grad_quant": channels_first(to_output),
        "grad_loss": channels_first(to_loss),
    }


WEIGHTS = ("sample_minimization_weight", "batch_maximization_weight")


def wetok(about: dict[str, Any], io: Arrays) -> dict[str, Any]:
    """WeTok's group-wise quantizer, and its tokens in factors."""
    out = {}
    known(about, "specs", "temperature", "eps", *WEIGHTS)
    for spec in about["specs"]:
        options = spec.get("kw", {})
        known(spec, "tag", "cls", "codebook_size", "num_codebooks", "hw", "std", "kw")
        known(options, "token_factorization", "factorized_bits", *WEIGHTS)
        z, up = channels_last(io[f"z_{spec['tag']}"]), channels_last(io[f"up_{spec['tag']}"])
        entropy = zq.Entropy(about["temperature"], pooling="pooled", epsilon=about["eps"])
        bits = spec["codebook_size"].bit_length() - 1
        quantizer = zq.LFQ(spec["num_codebooks"], bits, entropy=entropy, rngs=nnx.Rngs(0))
        if options.get("token_factorization"):
            values = _wetok_factors(quantizer, options["factorized_bits"], z, spec["tag"], io)
        else:
            weights = [options.get(n, about[n]) for n in WEIGHTS]
            values = _wetok_values(quantizer, weights, z, up)
            ids = jnp.asarray(io[f"ids_{spec['tag']}"]).reshape(len(z), -1, quantizer.groups)
            values = {f"{name}_{spec['tag']}": value for name, value in values.items()}
            values[f"decode_{spec['tag']}"] = quantizer.lookup(ids)
        out |= values
    return out


def _wetok_values(quantizer: zq.LFQ, weights: list[float], z: jax.Array, up: jax.Array) -> dict[str, Any]:
    def terms(z: jax.Array) -> tuple[tuple[jax.Array, ...], Quantized]:
        out = quantizer(z)
        entropy = weights[0] * out.losses["sample_entropy"] - weights[1] * out.losses["codebook_entropy"]
        return (entropy, out.losses["commitment"], jnp.sum(out.z * up)), out

    values, pull, out = jax.vjp(terms, z, has_aux=True)
    gradients = jax.vmap(pull)(tuple(jnp.eye(3, dtype=z.dtype)))[0]
    return {
        "quant": channels_first(out.z),
        "ids": jnp.ravel(jnp.asarray(out.ids)),
        "per_sample_entropy": out.losses["sample_entropy"],
        "codebook_entropy": out.losses["codebook_entropy"],
        "entropy_aux": values[0],
        "commit": values[1],
        **dict(zip(("grad_entropy", "grad_commit", "grad_quant"), map(channels_first, gradients), strict=True)),
    }


def _wetok_factors(quantizer: zq.LFQ, factors: list[int], z: jax.Array, tag: str, io: Arrays) -> dict[str, Any]:
    """The ids in factors, and the codes of the stored ones."""
    quantized = quantizer(z)  # its entropies are not looked at, and so not computed
    ids = binary.regroup(jnp.asarray(quantized.ids), quantizer.bits, factors)
    out = {f"quant_{tag}": channels_first(quantized.z)}
    for i, bits in enumerate(factors):
        out[f"ids_{tag}_factor{i}"] = jnp.ravel(ids[..., i])
        stored = jnp.asarray(io[f"ids_{tag}_factor{i}"]).reshape(*z.shape[:-1], 1)
        one = zq.LFQ(1, bits, entropy=None, rngs=nnx.Rngs(0))
        out[f"entry_{tag}_factor{i}"] = channels_first(one.lookup(stored))
    return out


# -- codebooks of audio codecs

ENCODEC = [
    Rule("_codebook.embed", "codebook"),
    Rule("_codebook.cluster_size", "cluster_size"),
    Rule("_codebook.embed_avg", "embed_sum"),
]


CODEBOOK = ("dim", "codebook_size", "decay", "epsilon", "kmeans_init", "kmeans_iters", "threshold_ema_dead_code")


def _encodec(about: dict[str, Any], weights: Arrays) -> Any:
    known(about, *CODEBOOK, "commitment_weight")
    given = {name: tensor for name, tensor in weights.items() if name != "_codebook.inited"}
    options = {"decay": about["decay"], "epsilon": about["epsilon"]}
    build = lambda: zq.EncodecVQ(about["codebook_size"], about["dim"], **options, rngs=nnx.Rngs(0))  # noqa: E731
    return filled(build, ENCODEC, given)


def _buffers(module: Any, prefix: str) -> dict[str, Any]:
    names = {rule.reference.removeprefix("_codebook."): rule.ours for rule in ENCODEC}
    return {f"{prefix}_{theirs}": getattr(module, ours)[...] for theirs, ours in names.items()}


def encodec_steps(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """Two training steps of EnCodec's codebook."""
    about = case["reference_config"]
    graph, state = nnx.split(_encodec(about, weights))
    return jax.jit(lambda state, io: _encodec_steps(about, nnx.merge(graph, state), io))(state, io)


def _encodec_steps(about: dict[str, Any], module: Any, io: Arrays) -> dict[str, Any]:
    w = channels_last(io["w"])
    out: dict[str, Any] = {"tokens_eval": module(channels_last(io["x"])).ids[..., 0], "commit_loss_eval": np.zeros(1)}
    out["expired_mask"] = (module.cluster_size[...] < about["threshold_ema_dead_code"]).astype(float)
    for step, name in (("", "x"), ("2", "x2")):
        x = channels_last(io[name])

        def loss(x: jax.Array) -> tuple[jax.Array, Quantized]:
            quantized = module(x)
            weight = 1000 * about.get("commitment_weight", 1.0)
            return weight * quantized.losses["commitment"] + jnp.sum(quantized.z * w), quantized

        (_, quantized), gradient = jax.value_and_grad(loss, has_aux=True)(x)
        commitment = about.get("commitment_weight", 1.0) * quantized.losses["commitment"]
        zq.assign(module, module.update(quantized.stats, quantized.samples))
        out |= {f"tokens{step}": quantized.ids[..., 0], f"commit_loss{step}": commitment[None]}
        out |= _buffers(module, f"step{step}")
        if not step:
            out |= {"quantize": channels_first(quantized.z), "grad_x": channels_first(gradient)}
    return out


def encodec_kmeans(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """The k-means start of EnCodec's codebook, and what the first average makes of it."""
    about = case["reference_config"]
    graph, state = nnx.split(_encodec(about, weights))
    first = io["init_index"]
    return jax.jit(lambda state, io: _encodec_kmeans(about, nnx.merge(graph, state), io, first))(state, io)


def _encodec_kmeans(about: dict[str, Any], module: Any, io: Arrays, first: np.ndarray) -> dict[str, Any]:
    x = channels_last(io["x"])
    flat = x.reshape(-1, x.shape[-1])
    unique = len(np.unique(first)) == len(first)
    order = jnp.concatenate([flat[first], jnp.delete(flat, first, axis=0)])  # `initialize` starts from the first
    out = {}
    for name, iterations in (("_1iter", 1), ("_3iter", 3), ("", about["kmeans_iters"])):
        if unique:
            start = module.initialize(order, iterations=iterations)
        else:  # fewer vectors than codes: some were drawn more than once
            means, sizes = kmeans(flat, flat[first], iterations)
            start = {"codebook": means, "cluster_size": sizes.astype(means.dtype), "embed_sum": means}
        out[f"kmeans_means{name}"] = start["codebook"]
    zq.assign(module, start)
    out |= {"kmeans_bins": start["cluster_size"], "embed_norm_after_init": _mean_norm(module)}
    for step, ids in (("", "tokens"), ("2", "tokens_step2")):
        quantized = module(x)
        zq.assign(module, module.update(quantized.stats, quantized.samples))
        out[ids], suffix = quantized.ids[..., 0], f"_step{step}" if step else ""
        out[f"commit_loss{suffix}"] = about.get("commitment_weight", 1.0) * quantized.losses["commitment"][None]
        out |= _buffers(module, f"step{step}")
        if not step:
            out |= {"quantize": channels_first(quantized.z), "embed_norm_after_first_ema": _mean_norm(module)}
    return out


def _mean_norm(module: Any) -> jax.Array:
    return jnp.mean(jnp.linalg.norm(module.codes(), axis=-1))


def mimi_step(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """One training step of Mimi's residual quantizer."""
    about = case["reference_config"]
    names = {"cluster_usage": "cluster_size", "embedding_sum": "embed_sum"}
    rules = [Rule(f"layers.{{i}}._codebook.{a}", f"quantizers.{{i}}.{b}") for a, b in names.items()]
    known(about, "n_q", "dim", "bins", "decay", "threshold_usage_ratio", "replaced_usage_ratio", "epsilon")
    options = {"decay": about["decay"], "dead_below": about["threshold_usage_ratio"]}
    options |= {"refill": about.get("replaced_usage_ratio", 1.0), "epsilon": about.get("epsilon", 1e-5)}

    def build() -> zq.Residual:
        rngs = nnx.Rngs(0)
        layers = [zq.MimiVQ(about["bins"], about["dim"], **options, rngs=rngs) for _ in range(about["n_q"])]
        return zq.Residual(layers, estimator=zq.StraightThrough())

    module = filled(build, rules, {n: t for n, t in weights.items() if not n.endswith("_initialized")})
    graph, state = nnx.split(module)
    return jax.jit(lambda state, io: _mimi_step(about, nnx.merge(graph, state), io, names))(state, io)


def _mimi_step(about: dict[str, Any], module: Any, io: Arrays, names: dict[str, str]) -> dict[str, Any]:
    x, w = channels_last(io["x"]), channels_last(io["w"])

    def loss(x: jax.Array) -> tuple[jax.Array, Any]:
        layers = module.each(x)
        out = module.collect(x, layers)
        losses = jnp.stack([layer.losses["commitment"] for layer in layers])
        return jnp.mean(losses) + jnp.sum(out.z * w), (out, layers, losses)

    (_, (quantized, layers, losses)), gradient = jax.value_and_grad(loss, has_aux=True)(x)
    out = {
        "quantized": channels_first(quantized.z),
        "codes": jnp.moveaxis(quantized.ids, -1, 0),
        "loss": losses,
        "grad_x": channels_first(gradient),
    }
    residual = x
    for i, (codebook, layer) in enumerate(zip(module.quantizers, layers, strict=True)):
        usage = codebook.cluster_size[...]
        vectors = residual.reshape(-1, x.shape[-1])[io["replacement_index"][i]]
        new = codebook.update(layer.stats, {"vectors": vectors})
        out |= {f"layer{i}_{theirs}": new[ours] for theirs, ours in names.items()}
        out[f"layer{i}_expired"] = jnp.mean(usage < codebook.dead_below * jnp.mean(usage), dtype=x.dtype)
        p = new["cluster_size"] / jnp.sum(new["cluster_size"])
        out[f"layer{i}_entropy"] = jnp.sum(entr(p)) / np.log(about["bins"])
        residual = residual - sg(layer.z)
    return out
