"""Classes of vector-quantize-pytorch with a codebook of vectors; see reference.py."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo import quantize as zq
from zoo.parity_quantizers.reference import (
    Arguments,
    Loss,
    Make,
    Reference,
    UnknownArgument,
    dropout,
    grouped,
    no_loss,
    projections,
    sg,
)
from zoo.presets.rules import LINEAR, SAME, TOKEN, Layout, Rule, layer

VECTOR = Layout(lambda x: x[0, 0], lambda x: x[None, None])  # [1, 1, d] <-> [d]
BUFFERS = {"embed": "codebook", "cluster_size": "cluster_size", "embed_avg": "embed_sum"}


def _codebook(a: Arguments, dim: int, codes: int) -> tuple[Make, Loss, bool]:
    """(makes one codebook, its loss, whether training moves it)."""
    diveq, dead = a.take("directional_reparam", False), a.take("threshold_ema_dead_code", 0)
    ema, learned = a.take("ema_update", not diveq), a.take("learnable_codebook", diveq)
    rotation, frozen = a.take("rotation_trick", not diveq and dim > 1), a.take("freeze_codebook", False)
    variance = a.take("directional_reparam_variance", 5e-3)
    loss, regularizers = _codebook_loss(a, diveq, learned and not frozen)
    options: dict[str, Any] = {
        "l2_norm": a.take("use_cosine_sim", False),
        "decay": a.take("decay", 0.8),
        "epsilon": a.take("eps", 1e-5),
        "dead_below": dead,
        "learned": "ema" if ema else "gradient",
        "estimator": zq.DiVeQ(variance) if diveq else zq.RotationTrick() if rotation else zq.StraightThrough(),
        "regularizers": regularizers,
    }
    kind: type[zq.EMAVQ] = zq.AffineVQ if a.take("affine_param", False) else zq.EMAVQ
    decays = a.take("affine_param_batch_decay", 0.99), a.take("affine_param_codebook_decay", 0.9)
    if kind is zq.AffineVQ:
        options |= dict(zip(("batch_decay", "codebook_decay"), decays, strict=True))
    for neutral in ("sync_kmeans", "sync_codebook", "sync_affine_param", "return_zeros_for_masked_padding"):
        a.take(neutral)
    return lambda rngs: kind(codes, dim, rngs=rngs, **options), loss, (ema or dead > 0) and not frozen


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


def _buffers(reference: str, ours: str, layout: Layout) -> list[Rule]:
    rules = [Rule(f"{reference}_codebook.{theirs}", f"{ours}{mine}", layout) for theirs, mine in BUFFERS.items()]
    for which in ("batch", "codebook"):  # of the affine form, which has one codebook
        for name in ("mean", "variance"):
            rules.append(Rule(f"{reference}_codebook.{which}_{name}", f"{ours}{which}_{name}", VECTOR))
        rules.append(Rule(f"{reference}_codebook.{which}_seen", f"{ours}{which}_seen"))
    return rules


def vector_quantize(a: Arguments) -> Reference:
    dim, heads, separate = a.take("dim"), a.take("heads", 1), a.take("separate_codebook_per_head", False)
    inner, norm = a.take("codebook_dim", dim), a.take("layernorm_after_project_in", False)
    images = a.take("accept_image_fmap", False), a.take("accept_3d_fmap", False), not a.take("channel_last", True)
    if heads > 1 and a.get("codebook_diversity_loss_weight"):
        raise UnknownArgument("codebook_diversity_loss_weight of several heads")
    one, loss, updates = _codebook(a, inner, a.take("codebook_size"))
    projected = inner * heads != dim

    def make(rngs: nnx.Rngs) -> Any:
        if heads == 1:
            quantizer = one(rngs)
        else:
            quantizer = zq.Product(one, heads, rngs=rngs) if separate else zq.Heads(one(rngs), heads)
        return zq.Projected(quantizer, dim, inner * heads, norm=norm, rngs=rngs) if projected else quantizer

    path = ("quantizer." if projected else "") + ("" if heads == 1 else "each." if separate else "quantizer.")
    rules = _buffers("", path, SAME if separate and heads > 1 else TOKEN)
    return Reference(
        make,
        rules + (projections(norm=norm) if projected else []),
        loss,
        squeeze=heads == 1,
        channels_first=any(images),
        updates=updates,
        gradient_scale=1 + a.take("sync_update_v", 0.0),
        kmeans=_kmeans(a),
    )


def _kmeans(a: Arguments) -> int:
    iterations = a.take("kmeans_iters", 10)
    return iterations if a.take("kmeans_init", False) else 0


def residual_vq(a: Arguments) -> Reference:
    groups = a.take("groups", 1)
    dim, sizes = a.take("dim") // groups, a.take("codebook_size")
    sizes = [sizes] * a.take("num_quantizers") if isinstance(sizes, int) else sizes
    inner, shared = a.take("codebook_dim", dim), a.take("shared_codebook", False)
    a.take("num_quantizers")
    layers, projected = dropout(a, len(sizes)), inner != dim
    common = {"channels_first": a.take("accept_image_fmap", False), "kmeans": _kmeans(a)}
    common |= {"gradient_scale": 1 + a.take("sync_update_v", 0.0)}
    made = [_codebook(Arguments(a), inner, size) for size in sizes[1:]]
    made = [_codebook(a, inner, sizes[0]), *made]

    def one(rngs: nnx.Rngs) -> Any:
        quantizers = [make(rngs) for make, _, _ in (made[:1] if shared else made)]
        residual = zq.Residual(quantizers, layers=len(sizes) if shared else None)
        return zq.Projected(residual, dim, inner, rngs=rngs) if projected else residual

    (outer, path), make = grouped(one, groups)
    within = f"{path}quantizer." if projected else path
    rules = _buffers(f"{outer}layers.{{layer}}.", f"{within}quantizers.{{layer}}.", TOKEN)
    rules += projections(outer, path) if projected else []
    return Reference(make, rules, made[0][1], True, groups, updates=made[0][2], layers=layers, **common)


def sim_vq(a: Arguments) -> Reference:
    residual, layers = "num_quantizers" in a, a.take("num_quantizers", 1)
    dim, codes = a.take("dim"), a.take("codebook_size")
    frozen = a.take("frozen_codebook_dim", dim)
    drop = dropout(a, layers)
    text = a.take("codebook_transform", f"(0): Linear(in_features={frozen}, out_features={dim}, bias=False)")
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
        layers=drop,
    )


def _sim_rules(reference: str, ours: str) -> list[Rule]:
    several = layer(f"{reference}code_transform.{{i}}", f"{ours}transform.layers.{{i}}", LINEAR)
    one = layer(f"{reference}code_transform", f"{ours}transform", LINEAR)
    return [Rule(f"{reference}frozen_codebook", f"{ours}frozen"), *several, *one]


def _sequential(text: str, rngs: nnx.Rngs) -> Any:
    """The module that PyTorch prints as `text`: linear layers and activations."""
    activations = {
        "ReLU": nnx.relu,
        "GELU": lambda x: nnx.gelu(x, approximate=False),
        "SiLU": nnx.silu,
        "Tanh": nnx.tanh,
    }
    modules: list[Any] = []
    for kind, inside in re.findall(r"(?:^|\): )(\w+)\(([^()]*)\)", text):
        if kind == "Linear":
            about = dict(part.split("=") for part in inside.split(", "))
            sizes = int(about["in_features"]), int(about["out_features"])
            modules.append(nnx.Linear(*sizes, use_bias=about["bias"] == "True", rngs=rngs))
        elif kind in activations:
            modules.append(activations[kind])
        else:
            raise UnknownArgument(f"codebook_transform {kind}")
    return nnx.Sequential(*modules) if text.startswith("Sequential") else modules[0]


def random_projection(a: Arguments) -> Reference:
    dim, heads, inner = a.take("dim"), a.take("num_codebooks", 1), a.take("codebook_dim")
    if not a.take("norm", True):
        raise UnknownArgument("norm=False")
    width, codes = heads * inner, a.take("codebook_size")

    def make(rngs: nnx.Rngs) -> Any:
        one = lambda rngs: zq.EMAVQ(codes, width, l2_norm=True, rngs=rngs)  # noqa: E731
        quantizer: Any = one(rngs) if heads == 1 else zq.Product(one, heads, rngs=rngs)
        quantizer = quantizer if heads == 1 else zq.Projected(quantizer, width, width * heads, rngs=rngs)
        return zq.RandomProjection(quantizer, dim, width, rngs=rngs)

    path = "quantizer." if heads == 1 else "quantizer.quantizer.each."
    side_by_side = Layout(
        lambda x: x.transpose(1, 0, 2).reshape(dim, width), lambda x: x.reshape(dim, heads, inner).transpose(1, 0, 2)
    )
    rules = [Rule("rand_projs", "projection", side_by_side), *projections("vq.", "quantizer.")]
    return Reference(make, rules + _buffers("vq.", path, SAME), no_loss, squeeze=heads == 1)
