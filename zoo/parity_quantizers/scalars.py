"""Classes of vector-quantize-pytorch whose codes are levels or signs; see reference.py."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo import quantize as zq
from zoo.parity_quantizers.quirks import Activated, TableFSQ
from zoo.parity_quantizers.reference import (
    Arguments,
    Loss,
    Make,
    Reference,
    activation,
    dropout,
    grouped,
    no_loss,
    projections,
    sg,
    without_effect,
)
from zoo.presets.rules import SAME, Rule


def fsq(a: Arguments) -> Reference:
    levels, groups = a.take("levels"), a.take("num_codebooks", 1)
    inner, bias, squeeze = len(levels) * groups, a.take("projection_has_bias", True), _squeezed(a, groups)
    dim = a.take("dim", inner)
    options = {"symmetric": a.take("preserve_symmetry", False), "rotate": a.take("orthogonal_rotation", False)}
    options |= {"clamp": "hard" if a.take("bound_hard_clamp", False) else "tanh", "groups": groups}
    without_effect(a, "allowed_dtypes", "scale", "return_indices", "force_quantization_f32", noise_dropout=0.0)

    def make(rngs: nnx.Rngs) -> Any:
        quantizer = zq.FSQ(levels, **options, rngs=rngs)
        return quantizer if dim == inner else zq.Projected(quantizer, dim, inner, use_bias=bias, rngs=rngs)

    rules = [Rule("orthogonal_rot", "{path}rotation"), Rule("orthogonal_rot", "rotation"), *projections()]
    channels_first = a.take("channel_first", False) or "images"
    return Reference(make, rules, no_loss, squeeze=squeeze, channels_first=channels_first)


def _squeezed(a: Arguments, groups: int) -> bool:
    return not a.take("keep_num_codebooks_dim", groups > 1)


def lfq(a: Arguments) -> Reference:
    groups, codes, dim = a.take("num_codebooks", 1), a.take("codebook_size"), a.take("dim")
    bits = (codes or 2**dim).bit_length() - 1
    inner, scale, squeeze = groups * bits, a.take("codebook_scale", 1.0), _squeezed(a, groups)
    dim = dim or inner
    projected, bias = a.take("has_projections", dim != inner), a.take("projection_has_bias", True)
    clamp, loss = a.take("soft_clamp_input_value"), _lfq_loss(a)
    cosine = a.take("cosine_sim_project_in_scale", scale)
    cosine = cosine if a.take("cosine_sim_project_in", False) else None
    options = {"spherical": a.take("spherical", False), "rotate": a.take("orthogonal_rotation", False), "scale": scale}
    inverse = a.take("inv_temperature", 100.0)
    options |= {"entropy": zq.Entropy(1 / inverse, clamp=1e-5), "big_endian": True}
    if through := a.take("straight_through_activation"):
        options |= {"estimator": Activated(activation=activation(through))}
    channels_first = a.take("channel_first", "images")
    without_effect(a, "force_quantization_f32", frac_per_sample_entropy=1.0)

    def make(rngs: nnx.Rngs) -> Any:
        quantizer: Any = zq.LFQ(groups, bits, **options, rngs=rngs)
        quantizer = zq.SoftClamp(quantizer, clamp) if clamp else quantizer
        if not projected:
            return quantizer
        return zq.Projected(quantizer, dim, inner, cosine=cosine, use_bias=bias, rngs=rngs)

    rules = [Rule("project_in.weight", "project_in.kernel", SAME)] if cosine is not None else []
    rules += [Rule("orthogonal_rot", "{path}rotation"), Rule("orthogonal_rot", "rotation"), *projections()]
    return Reference(make, rules, loss, squeeze=squeeze, channels_first=channels_first)


def _lfq_loss(a: Arguments) -> Loss:
    entropy, commitment = a.take("entropy_loss_weight", 0.1), a.take("commitment_loss_weight", 0.0)
    gamma, offset = a.take("diversity_gamma", 1.0), a.take("entropy_loss_offset", 5.0)
    softplus = a.take("experimental_softplus_entropy_loss", False)

    def loss(losses: dict[str, Any], z: jax.Array, q: jax.Array) -> tuple[Any, dict[str, Any]]:
        auxiliary = losses["sample_entropy"] - gamma * losses["codebook_entropy"]
        auxiliary = jax.nn.softplus(auxiliary + offset) if softplus else auxiliary
        parts = {"per_sample_entropy": losses["sample_entropy"], "batch_entropy": losses["codebook_entropy"]}
        parts["commitment"] = losses["commitment"] if commitment else jnp.zeros(())
        return entropy * auxiliary + commitment * parts["commitment"], parts

    return loss


def residual_scalar(a: Arguments, *, groups: bool = False) -> Reference:
    """ResidualFSQ (it has levels) and ResidualLFQ."""
    number, layers, levels = a.take("groups", 1), a.take("num_quantizers"), a.take("levels")
    inner = len(levels) if levels else a.take("codebook_size").bit_length() - 1
    dim, drop = a.take("dim", inner * number) // number, dropout(a, layers)
    first = a.take("is_channel_first", False) if levels else False
    channels_first = any((first, a.take("accept_image_fmap", False), not levels and a.take("channel_first", False)))
    rotate = a.take("orthogonal_rotation", False)
    spherical = False if levels else a.take("spherical", False)
    several = _fsq_layers(a, levels, layers, rotate) if levels else _lfq_layers(a, inner, layers, rotate, spherical)
    loss = no_loss if levels else _lfq_loss(a)
    without_effect(a, "force_quantization_f32", "allowed_dtypes", num_codebooks=1, keep_num_codebooks_dim=False)
    without_effect(a, frac_per_sample_entropy=1.0, noise_dropout=0.0)

    def one(rngs: nnx.Rngs) -> Any:
        return several(rngs) if dim == inner else zq.Projected(several(rngs), dim, inner, rngs=rngs)

    (outer, path), make = grouped(one, number if groups else 0)
    rotations = [
        Rule(f"{outer}layers.{{layer}}.orthogonal_rot", f"{path}{wrappers}quantizers.{{layer}}.{clamp}rotation")
        for wrappers in ("", "quantizer.", "quantizer.quantizer.")
        for clamp in ("", "quantizer.")
    ]
    return Reference(
        make,
        [*rotations, *projections(outer, path)],
        loss,
        per_layer=not levels,
        groups=number if groups else 0,
        channels_first=channels_first or "images",
        decoded_channels_first=False,
        ids_channels_first=first,
        plain_codes=True,
        layers=drop,
    )


def _fsq_layers(a: Arguments, levels: list[int], layers: int, rotate: bool) -> Make:
    hard, limit = a.take("bound_hard_clamp", True), a.take("soft_clamp_input_value")
    limit = [1 + 1 / (n - 1) for n in levels] if hard else limit
    scales = [(np.asarray(levels, np.float32) ** -i).tolist() for i in range(layers)]
    options = {"symmetric": True, "clamp": "hard" if hard else "tanh", "rotate": rotate}

    def several(rngs: nnx.Rngs) -> Any:
        residual = zq.Residual([TableFSQ(levels, **options, scale=scale, rngs=rngs) for scale in scales])
        return zq.SoftClamp(residual, limit) if limit else residual

    return several


def _lfq_layers(a: Arguments, bits: int, layers: int, rotate: bool, spherical: bool) -> Make:
    limit, inverse = a.take("soft_clamp_input_value"), a.take("inv_temperature", 100.0)
    entropy = zq.Entropy(1 / inverse, clamp=1e-5)
    options: dict[str, Any] = {"big_endian": True, "entropy": entropy, "rotate": rotate, "spherical": spherical}
    if through := a.take("straight_through_activation"):
        options |= {"estimator": Activated(activation=activation(through))}

    def one(i: int, rngs: nnx.Rngs) -> Any:
        quantizer = zq.LFQ(1, bits, scale=2.0**-i, rngs=rngs, **options)
        return zq.SoftClamp(quantizer, limit * 0.5**i) if limit else quantizer

    return lambda rngs: zq.Residual([one(i, rngs) for i in range(layers)])


def latent_quantize(a: Arguments) -> Reference:
    levels, dim, books = a.take("levels"), a.take("dim"), a.take("num_codebooks", 1)
    levels = [levels] * a.take("codebook_dim") if isinstance(levels, int) else levels
    inner, squeeze = len(levels) * books, not (a.take("keep_num_codebooks_dim", False) or books > 1)
    weights = [np.float32(a.take(f"{name}_loss_weight", 0.1)) for name in ("commitment", "quantization")]  # buffers
    without_effect(a, "codebook_dim")
    start = [values[...] for values in zq.LatentQuantizer(levels).values]
    constants = {} if a.take("optimize_values", True) else {f"values_per_latent.{i}": v for i, v in enumerate(start)}

    def make(rngs: nnx.Rngs) -> Any:
        quantizer: Any = zq.LatentQuantizer(levels)
        quantizer = quantizer if books == 1 else zq.Heads(quantizer, books)
        return quantizer if dim == inner else zq.Projected(quantizer, dim, inner, rngs=rngs)

    def loss(losses: dict[str, Any], z: jax.Array, q: jax.Array) -> tuple[Any, dict[str, Any]]:
        return weights[0] * jnp.mean((sg(z) - q) ** 2) + weights[1] * jnp.mean((z - sg(q)) ** 2), {}

    def ids_of(q: jax.Array) -> jax.Array:
        half, basis = np.asarray(levels) // 2, np.cumprod([1, *levels[:-1]])
        q = q.reshape(*q.shape[:-1], books, len(levels))
        ids = jnp.sum((q * 2 * half + half) * basis, -1).astype(jnp.int32)
        return ids[..., 0] if squeeze else ids

    inside = ("" if dim == inner else "quantizer.") + ("" if books == 1 else "quantizer.")
    rules = [Rule("values_per_latent.{i}", f"{inside}values.{{i}}"), *projections()]
    return Reference(make, rules, loss, squeeze=squeeze, channels_first=True, ids_of=ids_of, constants=constants)
