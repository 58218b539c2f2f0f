"""Classes of vector-quantize-pytorch with a codebook of vectors; see reference.py."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo import quantize as zq
from zoo.parity_quantizers.quirks import (
    DiVeQResidual,
    HeadsFirst,
    Observing,
    SharedResidual,
    Synchronous,
    ToCodes,
    Unnormalized,
)
from zoo.parity_quantizers.reference import (
    Arguments,
    Loss,
    Make,
    Reference,
    UnknownArgument,
    activation,
    dropout,
    grouped,
    no_loss,
    projections,
    sg,
    without_effect,
)
from zoo.presets.rules import LINEAR, SAME, TOKEN, Layout, Rule, layer

VECTOR = Layout(lambda x: x[0, 0], lambda x: x[None, None])  # [1, 1, d] <-> [d]
HEADS = Layout(lambda x: x[:, 0], lambda x: x[:, None])  # [h, 1, d] <-> [h, d]
BUFFERS = {"embed": "codebook", "cluster_size": "cluster_size", "embed_avg": "embed_sum"}


def _codebook(a: Arguments, dim: int, codes: int, *, outer: int) -> tuple[Make, Loss, bool]:
    """(makes one codebook of `dim` channels, of `outer` before any projection; its loss; whether training moves it)."""
    diveq, dead = a.take("directional_reparam", False), a.take("threshold_ema_dead_code", 0)
    ema, learned = a.take("ema_update", not diveq), a.take("learnable_codebook", diveq)
    frozen, l2_norm, affine = (a.take(n, False) for n in ("freeze_codebook", "use_cosine_sim", "affine_param"))
    estimator = _estimator(a, outer, diveq)
    loss, regularizers = _codebook_loss(a, diveq, learned and not frozen)
    options: dict[str, Any] = {
        "l2_norm": l2_norm,
        "decay": a.take("decay", 0.8),
        "epsilon": a.take("eps", 1e-5),
        "dead_below": dead,
        "learned": "ema" if ema and not a.take("manual_ema_update", False) else "gradient",
        "estimator": estimator,
        "regularizers": regularizers,
    }
    decays = {n: a.take(f"affine_param_{n}", value) for n, value in (("batch_decay", 0.99), ("codebook_decay", 0.9))}
    without_effect(a, "manual_ema_update", "sync_kmeans", "sync_codebook", "sync_affine_param", "sample_codebook_temp")
    without_effect(a, stochastic_sample_codes=False, manual_in_place_optimizer_update=False)

    def make(rngs: nnx.Rngs) -> Any:
        if not affine:
            return zq.EMAVQ(codes, dim, rngs=rngs, **options)
        quantizer = Observing(codes, dim, rngs=rngs, **options, **decays)
        quantizer.frozen = frozen or not (ema or dead)
        return quantizer

    return make, loss, affine or (ema or dead > 0) and not frozen


def _estimator(a: Arguments, dim: int, diveq: bool) -> Any:
    rotation, variance = a.take("rotation_trick", not diveq and dim > 1), a.take("directional_reparam_variance", 5e-3)
    a.take("straight_through")  # without noise and with temperatures above 0 its gradient is lost in the argmax
    v, routed = a.take("sync_update_v", 0.0), a.take("route_gradients_to_input", True)
    estimator = zq.DiVeQ(variance) if diveq else zq.RotationTrick() if rotation else zq.StraightThrough()
    estimator = estimator if routed else ToCodes()
    return Synchronous(estimator, v) if v else estimator


def _codebook_loss(a: Arguments, diveq: bool, learned: bool) -> tuple[Loss, list[Any]]:
    """The weighted loss of VectorQuantize, and our regularizers that it needs."""
    weight = 0.0 if diveq else a.take("commitment_weight", 1.0)
    a.take("commitment_weight")
    cross_entropy = a.take("commitment_use_cross_entropy_loss", False)
    orthogonality, active = a.take("orthogonal_reg_weight", 0.0), a.take("orthogonal_reg_active_codes_only", False)
    diversity = a.take("codebook_diversity_loss_weight", 0.0)
    temperature = a.take("codebook_diversity_temperature", 100.0)
    regularizers: list[Any] = [zq.CrossEntropyCommitment()] if cross_entropy else []
    regularizers += [zq.Orthogonality(active)] if orthogonality else []
    regularizers += [zq.Diversity(temperature)] if diversity else []

    def loss(losses: dict[str, Any], z: jax.Array, q: jax.Array) -> tuple[Any, dict[str, Any]]:
        zero = jnp.zeros((), z.dtype)
        commitment = losses["cross_entropy" if cross_entropy else "commitment"] if weight else zero
        parts = {
            "commitment": commitment,
            "codebook_diversity": losses.get("diversity", zero),
            "orthogonal_reg": losses.get("orthogonality", zero),
            "inplace_optimize": zero,
        }
        if learned and not cross_entropy:  # one term for both, so that its value counts once
            commitment = commitment + losses["codebook"] - sg(losses["codebook"])
        total = weight * commitment + orthogonality * parts["orthogonal_reg"]
        return total + diversity * parts["codebook_diversity"], parts

    return loss, regularizers


def _buffers(reference: str, ours: str, heads: bool = False) -> list[Rule]:
    """Of one codebook, or of one for each head."""
    layout, vector = (SAME, HEADS) if heads else (TOKEN, VECTOR)
    rules = [Rule(f"{reference}_codebook.{theirs}", f"{ours}{mine}", layout) for theirs, mine in BUFFERS.items()]
    for which in ("batch", "codebook"):  # of the affine form
        for name in ("mean", "variance"):
            rules.append(Rule(f"{reference}_codebook.{which}_{name}", f"{ours}{which}_{name}", vector))
        rules.append(Rule(f"{reference}_codebook.{which}_seen", f"{ours}{which}_seen"))
    return rules


def vector_quantize(a: Arguments) -> Reference:
    dim, heads, separate = a.take("dim"), a.take("heads", 1), a.take("separate_codebook_per_head", False)
    inner, norm = a.take("codebook_dim", dim), a.take("layernorm_after_project_in", False)
    images = a.take("accept_image_fmap", False), a.take("accept_3d_fmap", False), not a.take("channel_last", True)
    if heads > 1 and a.get("directional_reparam"):
        raise UnknownArgument("directional_reparam of several heads")
    maximum, active = a.take("orthogonal_reg_max_codes"), a.get("orthogonal_reg_active_codes_only")
    if maximum and a.get("orthogonal_reg_weight") and (active or maximum < a.get("codebook_size")):
        raise UnknownArgument(f"orthogonal_reg_max_codes={maximum}")
    masked = "zeros" if a.take("return_zeros_for_masked_padding", True) else "input"
    one, loss, updates = _codebook(a, inner, a.take("codebook_size"), outer=dim)
    projected = inner * heads != dim

    def make(rngs: nnx.Rngs) -> Any:
        if heads == 1:
            quantizer = one(rngs)
        else:
            quantizer = zq.Product(one, heads, rngs=rngs) if separate else HeadsFirst(one(rngs), heads)
        return zq.Projected(quantizer, dim, inner * heads, norm=norm, rngs=rngs) if projected else quantizer

    path = ("quantizer." if projected else "") + ("" if heads == 1 else "each." if separate else "quantizer.")
    return Reference(
        make,
        _buffers("", path, separate and heads > 1) + (projections(norm=norm) if projected else []),
        loss,
        squeeze=heads == 1,
        channels_first=any(images),
        masked=masked,
        updates=updates,
        kmeans=_kmeans(a),
    )


def _kmeans(a: Arguments) -> int:
    iterations = a.take("kmeans_iters", 10)
    return iterations if a.take("kmeans_init", False) else 0


def residual_vq(a: Arguments, *, groups: bool = False) -> Reference:
    number = a.take("groups", 1)
    dim, sizes = a.take("dim") // number, a.take("codebook_size")
    sizes = [sizes] * a.take("num_quantizers") if isinstance(sizes, int) else sizes
    inner, shared, diveq = a.take("codebook_dim", dim), a.take("shared_codebook", False), a.take("diveq", False)
    without_effect(a, "num_quantizers", heads=1, quant_grad_frac=0.0)
    if diveq:
        a |= {"ema_update": False, "learnable_codebook": True, "route_gradients_to_input": False}
        a |= {"commitment_weight": 0.0}
    if shared and a.get("orthogonal_reg_weight"):
        raise UnknownArgument("orthogonal_reg_weight with shared_codebook, half of whose gradient is of moved codes")
    if a.get("kmeans_init") and a.get("quantize_dropout"):
        raise UnknownArgument("kmeans_init with quantize_dropout, which starts a layer when it first runs")
    kind = SharedResidual if shared and a.get("threshold_ema_dead_code") else DiVeQResidual if diveq else zq.Residual
    if kind is SharedResidual and diveq:
        raise UnknownArgument("diveq with shared_codebook and threshold_ema_dead_code")
    layers, projected = dropout(a, len(sizes)), inner != dim
    common = {"channels_first": a.take("accept_image_fmap", False), "kmeans": _kmeans(a), "layers": layers}
    common |= {"masked": "zeros" if a.take("return_zeros_for_masked_padding", True) else "input"}
    made = [_codebook(Arguments(a), inner, size, outer=inner) for size in sizes[1:]]
    made = [_codebook(a, inner, sizes[0], outer=inner), *made]

    def one(rngs: nnx.Rngs) -> Any:
        quantizers = [make(rngs) for make, _, _ in (made[:1] if shared else made)]
        residual = kind(quantizers, layers=len(sizes) if shared else None)
        return zq.Projected(residual, dim, inner, rngs=rngs) if projected else residual

    (outer, path), make = grouped(one, number if groups else 0)
    within = f"{path}quantizer." if projected else path
    rules = _buffers(f"{outer}layers.{{layer}}.", f"{within}quantizers.{{layer}}.")
    rules += projections(outer, path) if projected else []
    common |= {"groups": number if groups else 0, "updates": made[0][2], "decoded_channels_first": False}
    return Reference(make, rules, made[0][1], True, **common)


def sim_vq(a: Arguments) -> Reference:
    residual, layers = "num_quantizers" in a, a.take("num_quantizers", 1)
    dim, codes = a.take("dim"), a.take("codebook_size")
    frozen = a.take("frozen_codebook_dim", dim)
    drop = dropout(a, layers)
    tied = residual and "codebook_transform" in a  # one module for all layers
    text = a.take("codebook_transform", f"Linear(in_features={frozen}, out_features={dim}, bias=False)")
    estimator = zq.RotationTrick() if a.take("rotation_trick", True) else zq.StraightThrough()
    back, weight = a.take("input_to_quantize_commit_loss_weight", 0.25), a.take("commitment_weight", 1.0)
    options = {"frozen_dim": frozen, "transform": lambda rngs: _sequential(text, rngs), "estimator": estimator}
    one = lambda rngs: zq.SimVQ(codes, dim, rngs=rngs, **options)  # noqa: E731

    def loss(losses: dict[str, Any], z: jax.Array, q: jax.Array) -> tuple[Any, dict[str, Any]]:
        return weight * (losses["codebook"] + back * losses["commitment"]), {}

    return Reference(
        one if not residual else lambda rngs: zq.Residual([one(rngs) for _ in range(layers)]),
        _sim_rules("layers.{layer}.", "quantizers.{layer}.") if residual else _sim_rules("", ""),
        loss,
        per_layer=residual,
        squeeze=not residual,
        channels_first=a.take("channel_first", False),
        tied=r"layers\.\d+\.(code_transform\..+)" if tied else None,
        layers=drop,
    )


def _sim_rules(reference: str, ours: str) -> list[Rule]:
    several = layer(f"{reference}code_transform.{{i}}", f"{ours}transform.layers.{{i}}", LINEAR)
    several += layer(f"{reference}code_transform.{{i}}", f"{ours}transform.layers.{{i}}", SAME)
    one = layer(f"{reference}code_transform", f"{ours}transform", LINEAR)
    return [Rule(f"{reference}frozen_codebook", f"{ours}frozen"), *several, *one]


def _sequential(text: str, rngs: nnx.Rngs) -> Any:
    """The module that PyTorch prints as `text`: linear layers, layer norms and activations."""
    if not text.startswith("Sequential"):
        return _module(text, rngs)
    return nnx.Sequential(*(_module(line, rngs) for line in re.findall(r"\(\d+\): (.+)", text)))


def _module(text: str, rngs: nnx.Rngs) -> Any:
    if linear := re.fullmatch(r"Linear\(in_features=(\d+), out_features=(\d+), bias=(\w+)\)", text):
        return nnx.Linear(int(linear[1]), int(linear[2]), use_bias=linear[3] == "True", rngs=rngs)
    if norm := re.fullmatch(r"LayerNorm\(\((\d+),\), eps=([\d.e-]+), elementwise_affine=True.*\)", text):
        return nnx.LayerNorm(int(norm[1]), epsilon=float(norm[2]), use_fast_variance=False, rngs=rngs)
    return activation(text)


def random_projection(a: Arguments) -> Reference:
    dim, heads, inner = a.take("dim"), a.take("num_codebooks", 1), a.take("codebook_dim")
    width, codes = heads * inner, a.take("codebook_size")
    kind = zq.RandomProjection if a.take("norm", True) else Unnormalized
    without_effect(a, "decay", "eps", "threshold_ema_dead_code", "commitment_weight", "rotation_trick")  # never trained

    def make(rngs: nnx.Rngs) -> Any:
        one = lambda rngs: zq.EMAVQ(codes, width, l2_norm=True, rngs=rngs)  # noqa: E731
        quantizer: Any = one(rngs) if heads == 1 else zq.Product(one, heads, rngs=rngs)
        quantizer = quantizer if heads == 1 else zq.Projected(quantizer, width, width * heads, rngs=rngs)
        return kind(quantizer, dim, width, rngs=rngs)

    path = "quantizer." if heads == 1 else "quantizer.quantizer.each."
    side_by_side = Layout(
        lambda x: x.transpose(1, 0, 2).reshape(dim, width), lambda x: x.reshape(dim, heads, inner).transpose(1, 0, 2)
    )
    rules = [Rule("rand_projs", "projection", side_by_side), *projections("vq.", "quantizer.")]
    return Reference(make, rules + _buffers("vq.", path, heads > 1), no_loss, squeeze=heads == 1)
