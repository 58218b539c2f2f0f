"""Classes of vector-quantize-pytorch whose codes are levels or signs; see reference.py."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo import quantize as zq
from zoo.parity_quantizers.reference import (
    Arguments,
    Loss,
    Reference,
    UnknownArgument,
    dropout,
    grouped,
    no_loss,
    projections,
    sg,
)
from zoo.presets.rules import SAME, Rule


def fsq(a: Arguments) -> Reference:
    levels, groups = a.take("levels"), a.take("num_codebooks", 1)
    inner, bias, squeeze = len(levels) * groups, a.take("projection_has_bias", True), _squeezed(a, groups)
    dim = a.take("dim", inner)
    options = {"symmetric": a.take("preserve_symmetry", False), "rotate": a.take("orthogonal_rotation", False)}
    options |= {"clamp": "hard" if a.take("bound_hard_clamp", False) else "tanh", "groups": groups}
    _without_effect(a, "allowed_dtypes", "return_indices", "force_quantization_f32", noise_dropout=0.0)

    def make(rngs: nnx.Rngs) -> Any:
        quantizer = zq.FSQ(levels, **options, rngs=rngs)
        return quantizer if dim == inner else zq.Projected(quantizer, dim, inner, use_bias=bias, rngs=rngs)

    rules = [Rule("orthogonal_rot", "{path}rotation"), Rule("orthogonal_rot", "rotation"), *projections()]
    return Reference(make, rules, no_loss, squeeze=squeeze, channels_first=a.take("channel_first", False))


def _squeezed(a: Arguments, groups: int) -> bool:
    return not a.take("keep_num_codebooks_dim", groups > 1)


def _without_effect(a: Arguments, *names: str, **neutral: Any) -> None:
    """Takes what changes nothing here, whatever it is, or as long as it has its neutral value."""
    for name in names:
        a.take(name)
    for name, value in neutral.items():
        if a.take(name, value) != value:
            raise UnknownArgument(name)


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
    channels_first = a.take("channel_first", False)
    _without_effect(a, "force_quantization_f32", frac_per_sample_entropy=1.0)

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


def residual_scalar(a: Arguments) -> Reference:
    """ResidualFSQ (it has levels) and ResidualLFQ."""
    groups, layers, levels = a.take("groups", 1), a.take("num_quantizers"), a.take("levels")
    bits = 0 if levels else a.take("codebook_size").bit_length() - 1
    inner = len(levels) if levels else bits
    dim, drop = a.take("dim", inner * groups) // groups, dropout(a, layers)
    hard, limit = a.take("bound_hard_clamp", True), a.take("soft_clamp_input_value")
    if levels and (not hard or limit or a.take("orthogonal_rotation")) or limit:
        raise UnknownArgument(
            "bound_hard_clamp=False, soft_clamp_input_value or orthogonal_rotation of a residual class"
        )
    inverse = a.take("inv_temperature", 100.0)
    options = {"big_endian": True, "entropy": zq.Entropy(1 / inverse, clamp=1e-5)}
    options |= {} if levels else {"spherical": a.take("spherical", False)}
    _without_effect(a, "force_quantization_f32", "accept_image_fmap", frac_per_sample_entropy=1.0)

    def one(rngs: nnx.Rngs) -> Any:
        if levels:
            quantizer: Any = zq.SoftClamp(zq.residual_fsq(levels, layers), [1 + 1 / (n - 1) for n in levels])
        else:
            quantizer = zq.residual_lfq(bits, layers, **options)
        return quantizer if dim == inner else zq.Projected(quantizer, dim, inner, rngs=rngs)

    (outer, path), make = grouped(one, groups)
    loss = no_loss if levels else _lfq_loss(a)
    channels_first = a.take("is_channel_first", False)
    layout = {"channels_first": channels_first, "ids_channels_first": channels_first}
    return Reference(make, projections(outer, path), loss, not levels, groups, layers=drop, **layout)


def latent_quantize(a: Arguments) -> Reference:
    levels, dim = a.take("levels"), a.take("dim")
    levels = [levels] * a.take("codebook_dim") if isinstance(levels, int) else levels
    weights = [np.float32(a.take(f"{name}_loss_weight", 0.1)) for name in ("commitment", "quantization")]  # buffers
    _without_effect(a, "codebook_dim", num_codebooks=1, keep_num_codebooks_dim=False, optimize_values=True)

    def make(rngs: nnx.Rngs) -> Any:
        quantizer = zq.LatentQuantizer(levels)
        return quantizer if dim == len(levels) else zq.Projected(quantizer, dim, len(levels), rngs=rngs)

    def loss(losses: dict[str, Any], z: jax.Array, q: jax.Array) -> tuple[Any, dict[str, Any]]:
        return weights[0] * jnp.mean((sg(z) - q) ** 2) + weights[1] * jnp.mean((z - sg(q)) ** 2), {}

    def ids_of(q: jax.Array) -> jax.Array:
        half, basis = np.asarray(levels) // 2, np.cumprod([1, *levels[:-1]])
        return jnp.sum((q * 2 * half + half) * basis, -1).astype(jnp.int32)

    inside = "" if dim == len(levels) else "quantizer."
    rules = [Rule("values_per_latent.{i}", f"{inside}values.{{i}}"), *projections()]
    return Reference(make, rules, loss, squeeze=True, channels_first=True, ids_of=ids_of)
