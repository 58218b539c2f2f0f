"""Parity of training: the losses of both nets, and whole steps with optimizer, schedule and averages."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo import presets, sharding
from zoo.convert import from_reference, state_to_reference
from zoo.losses.adversarial import lecam_averages
from zoo.optim import Optimizer
from zoo.parity_blocks import Arrays, below, filled_convnext, filled_discriminator, filled_lpips
from zoo.presets import networks
from zoo.presets.outputs import Ids, code_margin
from zoo.presets.rules import Rule
from zoo.quantize.gaussian import DiagonalGaussian
from zoo.recipes.gan import Critic, DiscriminatorConfig, Gan
from zoo.recipes.proxy_codes import ProxyCodes
from zoo.recipes.reconstruction import Reconstruction
from zoo.step import Program
from zoo.train import TrainConfig

CRITIC = [
    Rule(f"discriminator.{rule.reference}", f"net.{rule.ours}", rule.layout) for rule in networks.BLUR_DISCRIMINATOR
]


def reconstruction_loss(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """The generator's loss before and after the discriminator's start, and two calls of the discriminator's."""
    losses = case["reference_config"]["config"]["losses"]
    start, recipe = losses["discriminator_start"], _gan(losses, weights)
    nets = _loss_networks(case, weights)
    averages = np.concatenate([weights[f"ema_{which}_logits_mean"] for which in ("real", "fake")])
    averages = jnp.asarray(averages, jnp.result_type(float))
    x, x_hat = jnp.asarray(io["image"]), jnp.asarray(io["reconstruction"])

    @functools.partial(jax.jit, static_argnums=1)
    def generator(x_hat: jax.Array, step: int) -> Any:
        present = {net: module for net, module in nets.items() if recipe.active(net, step)}

        def loss(x_hat: jax.Array) -> Any:
            terms = recipe.terms(present, x, x_hat, _quantizer_losses(io))
            return sum(weight * value for weight, value in terms.values()), terms

        (total, terms), gradient = jax.value_and_grad(loss, has_aux=True)(x_hat)
        return _generator_outputs(recipe, total, terms) | {"grad_reconstruction": gradient}

    graph, params, rest = nnx.split(nets["discriminator"], nnx.Param, ...)

    @jax.jit
    def discriminator(params: Any, averages: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            critic: Any = nnx.merge(graph, params, jax.tree.map(lambda _: averages, rest))
            return recipe.discriminator_terms(critic, x, x_hat)

        (total, aux), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        named = state_to_reference(CRITIC, gradients)
        norms = jnp.stack([jnp.linalg.norm(named[name].ravel()) for name in case["info"]["grad_norm_keys"]])
        means = aux.metrics["logits_real"], aux.metrics["logits_fake"]
        return total, aux.metrics, norms, lecam_averages(averages, *means)

    out = {}
    for when, step in (("before", start - 1), ("after", start)):
        values = generator(x_hat, step)
        values["discriminator_factor"] = np.array(float(recipe.active("discriminator", step)))
        out |= {f"gen_{when}/{name}": value for name, value in values.items()}
    for call in ("disc1", "disc2"):
        total, metrics, norms, averages = discriminator(params, averages)
        values = {
            "discriminator_loss": total,
            "grad_norms": norms,
            "lecam_loss": recipe.lecam_weight * metrics["lecam"],
        }
        values |= {name: metrics[name] for name in ("logits_real", "logits_fake")}
        values |= {f"ema_{w}_logits_mean_after": averages[i : i + 1] for i, w in enumerate(("real", "fake"))}
        out |= {f"{call}/{name}": value for name, value in values.items()}
    return out


def _gan(losses: dict[str, Any], weights: Arrays) -> Gan:
    """The recipe of the original's loss config."""
    logvar = float(weights["logvar"]) if "logvar" in weights else 0.0
    return Gan(
        model=presets.get("titok_tiny.photos").config,
        pixel=losses["reconstruction_loss"],
        pixel_weight=losses["reconstruction_weight"] / np.exp(logvar),
        commitment=losses["quantizer_weight"],  # the stored loss is already times its cost
        codebook=losses["quantizer_weight"],
        kl=losses.get("kl_weight", 0.0),
        gan_weight=losses["discriminator_weight"],
        discriminator_start=losses["discriminator_start"],
        lecam_weight=losses["lecam_regularization_weight"],
        **_perceptual_weights(losses),
    )


def _perceptual_weights(losses: dict[str, Any]) -> dict[str, Any]:
    """Of the original's names: "convnext_s", "lpips", or "lpips-convnext_s-1.0-0.1", a weighted mean."""
    name, weight = losses["perceptual_loss"], losses["perceptual_weight"]
    if name in ("lpips", "convnext_s"):
        return {f"{name.removesuffix('_s')}_weight": weight}
    shares = [float(share) for share in name.split("-")[2:]]
    return {
        f"{net}_weight": weight * share / sum(shares) for net, share in zip(("lpips", "convnext"), shares, strict=True)
    }


def _quantizer_losses(io: Arrays) -> dict[str, jax.Array]:
    if "moments" in io:
        return DiagonalGaussian()(jnp.asarray(io["moments"])[:, :, 0].swapaxes(1, 2)).losses
    return dict(zip(("commitment", "codebook"), jnp.asarray(io["quantizer_losses"]), strict=True))


def _generator_outputs(recipe: Gan, total: jax.Array, terms: dict[str, Any]) -> dict[str, Any]:
    """Under the original's names: most are weighted there, the GAN's and the VQ's own are not."""

    def weighted(*names: str) -> Any:
        return sum((terms[name][0] * terms[name][1] for name in names if name in terms), jnp.zeros(()))

    out = {
        "total_loss": total,
        "reconstruction_loss": weighted(recipe.pixel),
        "perceptual_loss": weighted("lpips", "convnext"),
        "weighted_gan_loss": weighted("gan"),
        "gan_loss": terms["gan"][1] if "gan" in terms else jnp.zeros(()),
        "d_weight": jnp.asarray(recipe.gan_weight),
    }
    if "kl" in terms:
        return out | {"kl_loss": weighted("kl")}
    out |= {f"{name}_loss": terms[name][1] for name in ("commitment", "codebook")}
    return out | {"quantizer_loss": weighted("commitment", "codebook")}


def _loss_networks(case: dict[str, Any], weights: Arrays) -> dict[str, Any]:
    """The networks of a loss module."""
    about = case["reference_config"]
    width, stages = about["disc_hidden_channels"], about["disc_num_stages"]
    critic = Critic(DiscriminatorConfig(width=width, stages=stages), rngs=nnx.Rngs(0))
    critic.net = filled_discriminator(below(weights, "discriminator."), width, stages)
    convnext = filled_convnext(below(weights, "perceptual_loss.convnext."), about["convnext"])
    nets: dict[str, Any] = {"discriminator": critic, "convnext": convnext}
    if channels := about.get("lpips_chns"):
        nets["lpips"] = filled_lpips(below(weights, "perceptual_loss.lpips."), channels)
    return nets


def train_steps(case: dict[str, Any], io: Arrays, weights: Arrays) -> dict[str, Any]:
    """Steps of the real training program from given weights, on given images."""
    config, mesh = _train_config(case), sharding.make_mesh(1)
    program = Program(config, mesh)
    module = from_reference("titok", case["reference_config"], weights).module
    state = program.state_of({"tokenizer": module})
    rate = config.optim.schedule(config.steps)
    out: dict[str, list[Any]] = {"loss": [], "grad_norm_before_clip": [], "lr": [], "tokens": []}
    margins = []
    for step, image in enumerate(io["images"]):
        now: Any = program.merge(state.params, state.rest, {})["tokenizer"]
        ids, margin = jax.jit(_chosen)(*nnx.split(now), jnp.asarray(image))
        batch = {"image": np.round(image * 255).astype(np.uint8)}
        if "target_codes" in io:
            batch["ids"] = np.asarray(io["target_codes"][step])[..., None]
        state, metrics = program.step(state, sharding.put_batch(mesh, batch))
        out["loss"].append(metrics["loss"])
        out["grad_norm_before_clip"].append(metrics["grad_norm"])
        out["lr"].append(rate(step))
        out["tokens"].append(ids.swapaxes(1, 2))
        margins.append(margin[:, None])
    values: dict[str, Any] = {name: jnp.stack(steps) for name, steps in out.items()}
    values["tokens"] = Ids(values["tokens"], jnp.stack(margins))
    for name, params in (("after", state.params["tokenizer"]), ("ema", state.ema)):
        merged = nnx.merge(program.graphs["tokenizer"], params, state.rest["tokenizer"])
        named = state_to_reference(presets.family("titok").rules(module.config), nnx.state(merged))
        values |= {f"{name}:{key}": named[key] for key in case["reference_config"]["save_params"]}
        norms = [jnp.linalg.norm(named[key].ravel()) for key in case["info"]["param_norm_keys"]]
        values["param_norms_after" if name == "after" else "ema_norms_after"] = jnp.stack(norms)
    return values


def _chosen(graph: Any, state: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ids of a batch, and by how much each was decided."""
    module = nnx.merge(graph, state)
    h = module.latents(x)
    codes = module.quantize.codebook[...]
    return module.quantize(h).ids, code_margin(module.quantize.continuous(h), module.quantize.continuous(codes))


def _train_config(case: dict[str, Any]) -> TrainConfig:
    """Of the original's yaml."""
    about = case["reference_config"]
    whole = about["config"]
    adam, cosine = whole["optimizer"]["params"], whole["lr_scheduler"]["params"]
    model = presets.family("titok").config_from_reference(about)
    commitment = whole["model"]["vq_model"]["commitment_cost"]
    if about["stage1"]:
        recipe = ProxyCodes(model=model, commitment=commitment)
    else:
        recipe = Reconstruction(model=model, commitment=commitment)
    return TrainConfig(
        recipe=recipe,
        steps=whole["training"]["max_train_steps"],
        optim=Optimizer(
            lr=cosine["learning_rate"],
            end_lr=cosine["end_lr"],
            warmup=cosine["warmup_steps"],
            betas=(adam["beta1"], adam["beta2"]),
            weight_decay=adam["weight_decay"],
            clip=about["max_grad_norm"],
        ),
    )


TRAINING = {
    "recon_stage2": reconstruction_loss,
    "recon_single_stage": reconstruction_loss,
    "train_steps": train_steps,
}
