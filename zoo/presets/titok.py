"""TiTok: published checkpoints, their names, and parity outputs (bytedance/1d-tokenizer @ 942a96f)."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.losses.tokens import cross_entropy
from zoo.models.maskgit_vqgan import MaskGitVqganConfig
from zoo.models.titok import BASE, LARGE, SMALL, PixelsHead, TiTok, TiTokConfig, ViTConfig
from zoo.presets import Preset, maskgit_vqgan
from zoo.presets.outputs import Ids, code_margin, top_margin
from zoo.presets.rules import CONV, CONV_1X1, LINEAR, PATCH, TOKEN, Rule, layer
from zoo.quantize.gaussian import DiagonalGaussian, kl_divergence, split_moments
from zoo.types import Codes

CONFIG = TiTokConfig

README = "README of bytedance/1d-tokenizer, ImageNet 256 validation"
LEGACY = {
    "code_dim": 12,
    "vocab_size": 4096,
    "l2_norm": True,
    "legacy": True,
    "pixel_decoder": MaskGitVqganConfig(),
}
VQ8K: dict[str, Any] = {"code_dim": 64, "vocab_size": 8192}
VAE_C16: dict[str, Any] = {"code_dim": 16, "vocab_size": None}


def _imagenet(
    name: str, kind: dict[str, Any], encoder: ViTConfig, decoder: ViTConfig, tokens: int, parameters: int, rfid: float
) -> Preset:
    return Preset(
        name=f"titok_{name}.imagenet",
        family="titok",
        config=TiTokConfig(encoder=encoder, decoder=decoder, tokens=tokens, **kind),
        parameters=parameters,
        licence="Apache-2.0",
        paper="2406.07550",
        repository=f"yucornetto/tokenizer_titok_{name}_imagenet",
        file="model.safetensors",
        alternative=("fun-research/TiTok", f"{'' if kind is VAE_C16 else 'tokenizer_'}titok_{name}.bin"),
        published={"rFID": rfid},
        citation=README,
    )


PRESETS = (
    _imagenet("l32", LEGACY, LARGE, LARGE, 32, 641_054_735, 2.21),
    _imagenet("b64", LEGACY, BASE, BASE, 64, 204_814_095, 1.70),
    _imagenet("s128", LEGACY, SMALL, SMALL, 128, 83_674_639, 1.71),
    _imagenet("bl64_vq8k", VQ8K, BASE, LARGE, 64, 390_016_148, 2.06),
    _imagenet("bl128_vq8k", VQ8K, BASE, LARGE, 128, 390_179_988, 1.49),
    _imagenet("sl256_vq8k", VQ8K, SMALL, LARGE, 256, 330_260_884, 1.03),
    _imagenet("ll32_vae_c16", VAE_C16, LARGE, LARGE, 32, 606_879_604, 1.61),
    _imagenet("bl64_vae_c16", VAE_C16, BASE, LARGE, 64, 389_418_100, 1.25),
    _imagenet("bl128_vae_c16", VAE_C16, BASE, LARGE, 128, 389_581_940, 0.84),
    Preset(
        name="titok_tiny.photos",
        family="titok",
        config=TiTokConfig(
            encoder=ViTConfig(width=192, depth=3, heads=3),
            decoder=ViTConfig(width=192, depth=4, heads=3, patch=8),
            tokens=64,
            code_dim=8,
            vocab_size=4096,
            l2_norm=True,
            image_size=64,
            narrow=True,
        ),
        parameters=3_389_596,
        licence="Apache-2.0",
        paper="2406.07550",
        bundled=True,
    ),
)


def _blocks(side: str) -> list[Rule]:
    ours, reference = f"{side}.blocks.block", f"{side}.transformer.{{layer}}"
    linears = {
        "attn.qkv": ("attn.in_proj_weight", "attn.in_proj_bias"),
        "attn.out": ("attn.out_proj.weight", "attn.out_proj.bias"),
        "mlp.up": ("mlp.c_fc.weight", "mlp.c_fc.bias"),
        "mlp.down": ("mlp.c_proj.weight", "mlp.c_proj.bias"),
    }
    return [
        *(Rule(f"{reference}.{w}", f"{ours}.{n}.kernel", LINEAR) for n, (w, _) in linears.items()),
        *(Rule(f"{reference}.{b}", f"{ours}.{n}.bias") for n, (_, b) in linears.items()),
        *(Rule(f"{reference}.ln_{i}.weight", f"{ours}.ln{i}.scale") for i in (1, 2)),
        *(Rule(f"{reference}.ln_{i}.bias", f"{ours}.ln{i}.bias") for i in (1, 2)),
    ]


def _side(side: str) -> list[Rule]:
    return [
        Rule(f"{side}.class_embedding", f"{side}.class_token"),
        Rule(f"{side}.positional_embedding", f"{side}.positions"),
        Rule(f"{side}.latent_token_positional_embedding", f"{side}.latent_positions"),
        *(Rule(f"{side}.ln_{w}.weight", f"{side}.ln_{w}.scale") for w in ("pre", "post")),
        *(Rule(f"{side}.ln_{w}.bias", f"{side}.ln_{w}.bias") for w in ("pre", "post")),
        *_blocks(side),
    ]


RULES = [
    Rule("latent_tokens", "latent_tokens"),
    Rule("quantize.embedding.weight", "quantize.codebook"),
    Rule("quantize.embed_prob", "quantize.embed_prob"),
    *layer("encoder.patch_embed", "encoder.patch_embed.proj", PATCH),
    *layer("encoder.conv_out", "encoder.project", CONV_1X1),
    *_side("encoder"),
    Rule("decoder.mask_token", "decoder.mask_token", TOKEN),
    *layer("decoder.decoder_embed", "decoder.embed_latents", LINEAR),
    *layer("decoder.text_guidance_proj", "decoder.project_text", LINEAR),
    Rule("decoder.text_guidance_positional_embedding", "decoder.text_positions"),
    *_side("decoder"),
    *layer("decoder.ffn.0", "decoder.head.up", CONV_1X1),  # codes head
    *layer("decoder.ffn.2", "decoder.head.out", CONV_1X1),
    *layer("decoder.conv_out", "decoder.head.conv", CONV),  # pixels head
    Rule("pixel_quantize.embedding.weight", "pixel_decoder.codebook"),
    *maskgit_vqgan.half_rules("pixel_decoder.decoder.", "pixel_decoder."),
]


def rules(config: TiTokConfig) -> list[Rule]:
    """The two heads use the same reference names for different layers."""
    if config.legacy:
        return RULES
    return [*layer("decoder.ffn.0", "decoder.head.out", CONV_1X1), *RULES]


def _vit(size: str, patch: int) -> ViTConfig:
    """A published size, or t<width>x<depth>h<heads> of the tiny parity cases."""
    if tiny := re.fullmatch(r"t(\d+)x(\d+)h(\d+)", size):
        width, depth, heads = map(int, tiny.groups())
        return ViTConfig(width=width, depth=depth, heads=heads, patch=patch)
    published = {"small": SMALL, "base": BASE, "large": LARGE}[size]
    return ViTConfig(width=published.width, depth=published.depth, heads=published.heads, patch=patch)


def config_from_reference(reference: dict[str, Any]) -> TiTokConfig:
    """`reference` is the original's whole config (model.vq_model, dataset.preprocessing), as its config.json has it."""
    whole = reference.get("config", reference)
    vq = whole["model"]["vq_model"]
    quantized = vq.get("quantize_mode", "vq") == "vq"
    legacy = vq.get("is_legacy", True)
    stage2 = legacy and vq.get("finetune_decoder", True)
    return TiTokConfig(
        encoder=_vit(vq["vit_enc_model_size"], vq["vit_enc_patch_size"]),
        decoder=_vit(vq["vit_dec_model_size"], vq["vit_dec_patch_size"]),
        tokens=vq["num_latent_tokens"],
        code_dim=vq["token_size"],
        vocab_size=vq["codebook_size"] if quantized else None,
        l2_norm=vq.get("use_l2_norm", False),
        clustering=vq.get("clustering_vq", False),
        image_size=whole["dataset"]["preprocessing"]["crop_size"],
        legacy=legacy,
        pixel_decoder=maskgit_vqgan.config_from_reference(reference.get("pixel", {})) if stage2 else None,
    )


def _encoder_outputs(module: TiTok, x: jax.Array) -> dict[str, Any]:
    encoder = module.encoder
    h = encoder.embed(x, module.latent_tokens[...])
    last = encoder.blocks(h)
    z = encoder(x, module.latent_tokens[...]).swapaxes(1, 2)[:, :, None]
    name = "moments" if module.spec.continuous else "z"
    out = {"enc_ln_pre": h, "enc_block0": encoder.blocks.layer(0)(h), "enc_block_last": last}
    return out | {"enc_ln_post": encoder.read_out(last), name: z}


def _decoder_outputs(module: TiTok, z: jax.Array, text: jax.Array | None) -> dict[str, Any]:
    decoder = module.decoder
    h = decoder.embed(z, text)
    last = decoder.blocks(h)
    post = decoder.read_out(last)
    out = {"dec_embed": decoder.embed_latents(z), "dec_ln_pre": h, "dec_block0": decoder.blocks.layer(0)(h)}
    out |= {"dec_block_last": last, "dec_ln_post": post}
    head = decoder.head(post, decoder.grid)
    if isinstance(decoder.head, PixelsHead):
        return out | {"dec_unpatchified": decoder.head.patches(post, decoder.grid), "image_out": head}
    out["logits"] = jnp.moveaxis(head, -1, 1)
    if module.config.pixel_decoder is None:
        return out
    soft = module.pixel_decoder.soft_codes(head)
    return out | {"pixel_soft_quantized": jnp.moveaxis(soft, -1, 1), "image_out": module.pixel_decoder(head)}


def _text(io: dict[str, np.ndarray]) -> jax.Array | None:
    return jnp.asarray(io["text_guidance"]) if "text_guidance" in io else None


def _train_loss(module: TiTok, case: dict[str, Any], io: dict[str, np.ndarray]) -> jax.Array:
    """The loss whose gradients the cases store: of stage 1, stage 2 or the single stage, without GAN terms."""
    x, text = jnp.asarray(io["image"]), _text(io)
    h = module.latents(x)
    if isinstance(module.quantize, DiagonalGaussian):
        noise = jnp.asarray(io["eps"])[:, :, 0].swapaxes(1, 2)
        image = module.decode_latents(module.quantize.sample(h, noise), text)
        return jnp.mean((x - image) ** 2) + 1e-2 * module.quantize(h).losses["kl"]
    quantized = module.quantize(h)
    out = module.decode_latents(quantized.z, text)
    if module.config.pixel_decoder:
        return jnp.mean((x - out) ** 2)
    beta = case["reference_config"]["config"]["model"]["vq_model"]["commitment_cost"]
    quantizer_loss = beta * quantized.losses["commitment"] + quantized.losses["codebook"]
    if module.config.legacy:
        labels = jnp.asarray(io["target_codes"]).reshape(out.shape[:-1])
        return cross_entropy(out, labels).mean() + quantizer_loss
    return jnp.mean((x - out) ** 2) + quantizer_loss


def _gradients(module: TiTok, case: dict[str, Any], io: dict[str, np.ndarray]) -> dict[str, Any]:
    from zoo.convert import state_to_reference

    graph, params, rest = nnx.split(module, nnx.Param, ...)
    loss, grads = jax.value_and_grad(lambda p: _train_loss(nnx.merge(graph, p, rest), case, io))(params)
    named = state_to_reference(rules(module.config), grads)
    out = {f"grad:{name}": value for name, value in named.items()}
    norms = [jnp.linalg.norm(named[name].ravel()) for name in case["info"]["grad_norm_keys"]]
    return out | {"train_loss": loss, "grad_norms": jnp.stack(norms)}


def outputs(module: TiTok, case: dict[str, Any], io: dict[str, np.ndarray]) -> dict[str, Any]:
    """Every output of a tokenizer case, in the reference's layout. Decoders get the stored ids."""
    x, text = jnp.asarray(io["image"]), _text(io)
    out = _encoder_outputs(module, x) | _gradients(module, case, io)
    h = module.latents(x)
    if isinstance(module.quantize, DiagonalGaussian):

        def bcn(v):
            return v.swapaxes(1, 2)[:, :, None]

        mean, logvar = split_moments(h)
        z = module.quantize.sample(h, jnp.asarray(io["eps"])[:, :, 0].swapaxes(1, 2))
        out |= {
            "mean": bcn(mean),
            "logvar": bcn(logvar),
            "z_sampled": bcn(z),
            "kl": kl_divergence(mean, logvar),
        }
        out |= {"kl_loss": module.quantize(h).losses["kl"]} | _decoder_outputs(module, z, text)
        stored = jnp.asarray(io["mean"])[:, :, 0].swapaxes(1, 2)
        return out | {"image_from_mean": module.decode(Codes(latents=stored), text=text)}

    quantized = module.quantize(h)
    stored, ids = jnp.asarray(io["tokens"]).swapaxes(1, 2), module.encode(x).ids
    assert ids is not None
    beta = case["reference_config"]["config"]["model"]["vq_model"]["commitment_cost"]
    commitment, codebook = beta * quantized.losses["commitment"], quantized.losses["codebook"]
    margin = code_margin(module.quantize.continuous(h), module.quantize.continuous(module.quantize.codebook[...]))
    z = module.quantize.lookup(stored)
    out |= _decoder_outputs(module, z, text) | {
        "z_quantized": quantized.z.swapaxes(1, 2)[:, :, None],
        "tokens": Ids(ids.swapaxes(1, 2), margin[:, None]),
        "quantizer_loss": commitment + codebook,
        "commitment_loss": commitment,
        "codebook_loss": codebook,
    }
    decoded = module.decode_latents(z, text)
    if module.config.legacy and not module.config.pixel_decoder:
        logits = out["logits"]
        margin = top_margin(jnp.moveaxis(logits, 1, -1))
        labels = jnp.asarray(io["target_codes"]).reshape(decoded.shape[:-1])
        ce = cross_entropy(decoded, labels).mean()
        out |= {"pixel_token_argmax": Ids(jnp.argmax(logits, 1), margin), "ce_loss": ce}
        return out | {"logits_from_tokens": jnp.moveaxis(decoded, -1, 1)}
    return out | {"image_from_tokens": decoded}
