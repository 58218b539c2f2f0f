"""Parity of what is no tokenizer: preprocessing, quantizers, discriminators, losses. One function for each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.convert import filled, state_to_reference
from zoo.losses import adversarial, tokens
from zoo.metrics.fid import FeatureStatistics, InceptionScore, frechet_distance
from zoo.nn.convnext import ConvNeXt, ConvNeXtConfig, logits_distance, squash
from zoo.nn.discriminators import BlurDiscriminator
from zoo.nn.lpips import LPIPS
from zoo.optim import ema_decay, warmup_cosine
from zoo.presets import networks
from zoo.presets.outputs import Ids, code_margin
from zoo.presets.rules import Rule
from zoo.quantize import usage
from zoo.quantize.common import assign
from zoo.quantize.gaussian import DiagonalGaussian, kl_divergence, split_moments
from zoo.quantize.vq import VQ
from zoo.types import Quantized

Arrays = Mapping[str, Any]
VQ_RULES = [Rule("embedding.weight", "codebook"), Rule("embed_prob", "embed_prob")]


def preprocess(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """The published image preprocessing and the ADM crop."""
    from zoo.data.transforms import adm_crop, eval_transform, resize_shorter

    size, out = case["reference_config"]["crop_size"], {}
    for name in case["input"]:
        image, i = io[name].astype(np.uint8), name.removeprefix("uint8_")
        out[f"eval_{i}"] = eval_transform(image, size).astype(np.float32) / 255
        out[f"resized_{i}"] = resize_shorter(image, size).astype(np.int32)
        out[f"adm_{i}"] = adm_crop(image, size).astype(np.int32)
    return out


def vector_quantizer(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """TiTok's VQ in evaluation, and in training with the clustering update, the state carried along."""
    about = case["reference_config"]
    options = {"l2_norm": about["use_l2_norm"], "clustering": about["clustering_vq"]}
    codes, dim = about["codebook_size"], about["token_size"]
    module = filled(lambda: VQ(codes, dim, **options, rngs=nnx.Rngs(0)), VQ_RULES, weights)
    assert isinstance(module, VQ)
    out = {"soft_entry": module.soft(jnp.asarray(io["soft_weights"]))}
    stages = ("eval1", "eval2", *(("train1", "train2") if about["clustering_vq"] else ()))
    for stage in stages:
        z = jnp.asarray(io[f"z{stage[-1]}"])[:, :, 0].swapaxes(1, 2)
        values, quantized = _quantized(module, z, jnp.asarray(io["r"]), about["commitment_cost"])
        if stage.startswith("train"):
            new = module.update(quantized.stats, quantized.samples)
            values |= {"embedding_after": new["codebook"], "embed_prob_after": new["embed_prob"]}
            assign(module, new)
        out |= {f"{stage}/{name}": value for name, value in values.items()}
    return out


def _quantized(module: VQ, z: jax.Array, r: jax.Array, beta: float) -> tuple[dict[str, Any], Quantized]:
    """Outputs and gradients of one call, in the reference's layout, and its result."""

    def bcn(x: jax.Array) -> jax.Array:
        return x.swapaxes(1, 2)[:, :, None]

    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def loss(z: jax.Array, params: Any) -> Any:
        quantized = nnx.merge(graph, params, rest)(z)
        commitment, codebook = beta * quantized.losses["commitment"], quantized.losses["codebook"]
        terms = {"commitment_loss": commitment, "codebook_loss": codebook, "quantizer_loss": commitment + codebook}
        return jnp.sum(bcn(quantized.z) * r) + 3 * terms["quantizer_loss"], (quantized, terms)

    differentiate = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (grad_z, grad_params), (quantized, terms) = differentiate(z, params)
    margin = code_margin(module.continuous(z), module.continuous(module.codebook[...]))
    values = terms | {
        "z_quantized": bcn(quantized.z),
        "tokens": Ids(quantized.ids.swapaxes(1, 2), margin[:, None]),
        "grad_z": bcn(grad_z),
        "grad_embedding": nnx.to_pure_dict(grad_params)["codebook"],
    }
    return values, quantized


def below(weights: Arrays, prefix: str) -> dict[str, Any]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def filled_discriminator(weights: Arrays, width: int, stages: int) -> Any:
    """BlurDiscriminator with the original's weights."""
    learned = {name: tensor for name, tensor in weights.items() if not name.endswith("kernel")}  # the fixed blur
    rules = networks.BLUR_DISCRIMINATOR
    return filled(lambda: BlurDiscriminator(width=width, stages=stages, rngs=nnx.Rngs(0)), rules, learned)


def filled_lpips(weights: Arrays, channels: list[int]) -> Any:
    """LPIPS with the original's weights."""
    learned = {name: tensor for name, tensor in weights.items() if not name.startswith("scaling_layer.")}
    return filled(lambda: LPIPS(channels, rngs=nnx.Rngs(0)), networks.LPIPS, learned)


def filled_convnext(weights: Arrays, about: dict[str, Any]) -> Any:
    """ConvNeXt of a case's sizes with the original's weights."""
    sizes = {"widths": tuple(about["dims"]), "depths": tuple(about["depths"]), "classes": about["num_classes"]}
    return filled(lambda: ConvNeXt(ConvNeXtConfig(**sizes), rngs=nnx.Rngs(0)), networks.CONVNEXT, weights)


def discriminator(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """The blurred discriminator: activations, losses with LeCAM, gradients of both sides."""
    about = case["reference_config"]
    rules = networks.BLUR_DISCRIMINATOR
    graph, params = nnx.split(filled_discriminator(weights, about["hidden_channels"], about["num_stages"]))
    io = {name: jnp.asarray(io[name]) for name in case["input"]}
    averages = jnp.asarray(about["ema_logits_mean_real_fake"], io["real"].dtype)

    def loss(params: Any, real: jax.Array, fake: jax.Array) -> Any:
        net: Any = nnx.merge(graph, params)
        logits = net(real), net(fake)
        parts = adversarial.hinge(*logits), adversarial.lecam(*logits, averages)
        return parts[0] + about["lecam_weight"] * parts[1], (logits, parts)

    @jax.jit
    def run(params: Any, real: jax.Array, fake: jax.Array) -> dict[str, Any]:
        net: Any = nnx.merge(graph, params)
        (total, (logits, parts)), grads = jax.value_and_grad(loss, has_aux=True)(params, real, fake)
        named = state_to_reference(rules, grads)
        generator = jax.value_and_grad(lambda x: adversarial.generator_hinge(net(x)))(fake)
        maps = net.stage_outputs(real[:1])
        return {
            "real_block0_stride2": _nchw(maps[0][:, ::2, ::2, :16]),
            "real_block_last": _nchw(maps[-1]),
            "real_pooled": _nchw(net.features(real[:1])),
            "logits_real": _nchw(logits[0]),
            "logits_fake": _nchw(logits[1]),
            "hinge_d_loss": parts[0],
            "lecam_loss": parts[1],
            "disc_loss": total,
            "grad_norms": jnp.stack([jnp.linalg.norm(named[name].ravel()) for name in case["info"]["grad_norm_keys"]]),
            **{f"grad:{name}": value for name, value in named.items()},
            "generator_loss": generator[0],
            "grad_fake_image": generator[1],
        }

    return run(params, io["real"], io["fake"])


def lpips(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """LPIPS with narrow VGG16 stages."""
    graph, params = nnx.split(filled_lpips(weights, case["reference_config"]["lpips_chns"]))

    @jax.jit
    def run(params: Any, x: jax.Array, y: jax.Array) -> dict[str, Any]:
        net: Any = nnx.merge(graph, params)
        out = {f"feat{i}": _nchw(h) for i, h in enumerate(net.features(x), start=1)}
        out |= {"per_layer": net.per_stage(x, y), "lpips": net(x, y)[:, None, None, None]}
        return out | {"grad_target_image": jax.grad(lambda y: jnp.mean(net(x, y)))(y)}

    return run(params, jnp.asarray(io["input"]), jnp.asarray(io["target"]))


def convnext(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """The distance of ConvNeXt's logits."""
    graph, params = nnx.split(filled_convnext(below(weights, "convnext."), case["reference_config"]["convnext"]))

    @jax.jit
    def run(params: Any, x: jax.Array, y: jax.Array) -> dict[str, Any]:
        net: Any = nnx.merge(graph, params)
        distance, gradient = jax.value_and_grad(lambda y: logits_distance(net, x, y))(y)
        return {
            "resized_input_stride8": squash(x)[:, ::8, ::8],
            "convnext_logits_input": net(squash(x)),
            "convnext_logits_target": net(squash(y)),
            **dict.fromkeys(("convnext_mse", "perceptual_loss", "perceptual_loss_mean"), distance),
            "grad_target_image": gradient,
        }

    return run(params, jnp.asarray(io["input"]), jnp.asarray(io["target"]))


def diagonal_gaussian(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """The posterior of a VAE."""
    bnc = jnp.asarray(io["moments"])[:, :, 0].swapaxes(1, 2)
    mean, logvar = split_moments(bnc)
    sample = DiagonalGaussian().sample(bnc, jnp.asarray(io["eps"])[:, :, 0].swapaxes(1, 2))
    values = {"mean": mean, "logvar": logvar, "std": jnp.exp(0.5 * logvar), "var": jnp.exp(logvar), "sample": sample}
    values["mode"] = DiagonalGaussian().continuous(bnc)
    out = {name: value.swapaxes(1, 2)[:, :, None] for name, value in values.items()}
    return out | {"kl": kl_divergence(mean, logvar), "kl_loss": DiagonalGaussian()(bnc).losses["kl"]}


def loss_functions(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """Losses of given logits."""
    about, x = case["reference_config"], {name: jnp.asarray(value) for name, value in io.items()}
    real, fake = x["logits_real"], x["logits_fake"]
    smoothing, unmasked = about["label_smoothing"], about["loss_weight_unmasked_token"]
    masked = x["mlm_logits"], x["mlm_targets"], x["mlm_masks"] == 1
    mlm = tokens.masked_prediction(*masked, smoothing=smoothing, unmasked_weight=unmasked)
    ar = tokens.next_token(x["ar_logits"], x["ar_labels"])
    codes = x["stage1_target_codes"].reshape(x["stage1_logits"][:, 0].shape)
    stage1 = jnp.mean(tokens.cross_entropy(jnp.moveaxis(x["stage1_logits"], 1, -1), codes))
    quantizer = about["quantizer_weight"] * jnp.sum(x["stage1_quantizer_losses"])
    return {
        "hinge_d_loss": adversarial.hinge(real, fake),
        "lecam_loss": adversarial.lecam(real, fake, x["ema_real_fake"]),
        "mlm_loss": mlm[0],
        "mlm_correct_tokens": mlm[1],
        "ar_loss": ar[0],
        "ar_correct_tokens": ar[1],
        "stage1_total_loss": stage1 + quantizer,
        "stage1_reconstruction_loss": stage1,
        "stage1_quantizer_loss": quantizer,
    }


def schedules(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """Learning rates, the averaging of parameters, and RAR's annealing."""
    about, at = case["reference_config"], jnp.asarray(io["steps"])
    out = {}
    for name, lr in about["lr"].items():
        rate = warmup_cosine(lr["learning_rate"], lr["end_lr"], lr["warmup_steps"], lr["max_train_steps"])
        out[f"lr/{name}"] = jax.vmap(rate)(at)
    shadow, shadows = jnp.asarray(io["ema_params"][0]), []
    for update in range(about["ema_updates"]):
        decay = ema_decay(update, about["ema_decay"])
        shadow = decay * shadow + (1 - decay) * io["ema_params"][update + 1]
        shadows.append(shadow)
    start, end = about["rar_anneal"]
    return out | {
        "ema_decay_at_step": ema_decay(at - 1, about["ema_decay"]),
        "ema_shadow": jnp.stack(shadows),
        "rar_random_ratio": tokens.random_order_probability(at, start, end),
    }


def evaluator(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """FID, Inception Score and codebook use, of given features, logits and ids."""
    real, fake, score = FeatureStatistics(), FeatureStatistics(), InceptionScore()
    for start in range(0, len(io["features_real"]), case["reference_config"]["batch"]):
        batch = slice(start, start + case["reference_config"]["batch"])
        real.add(io["features_real"][batch])
        fake.add(io["features_fake"][batch])
        score.add(io["logits_fake"][batch])
    sizes = (case["reference_config"]["codebook_size"],)
    counts = usage.count_ids(io["tokens"].reshape(-1, 1), sizes)
    return {
        "rFID": np.array(frechet_distance(real, fake)),
        "InceptionScore": np.array(score.value()),
        "CodebookUsage": np.mean(usage.usage(counts, sizes)),
        "CodebookEntropy": np.mean(usage.entropy_bits(counts)),
    }


def _nchw(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -1, 1)


BLOCKS: dict[str, Callable[[dict[str, Any], Arrays, Arrays], dict[str, Any]]] = {
    "preprocess": preprocess,
    "vector_quantizer": vector_quantizer,
    "discriminator": discriminator,
    "lpips": lpips,
    "perceptual": convnext,
    "diagonal_gaussian": diagonal_gaussian,
    "loss_functions": loss_functions,
    "schedules": schedules,
    "evaluator": evaluator,
}
KINKED = ("discriminator", "lpips")  # networks of ReLUs
