"""MaskGIT-VQGAN: the published checkpoint, its names, and its parity outputs (bytedance/1d-tokenizer @ 942a96f)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from zoo.models.maskgit_vqgan import MaskGitVqgan, MaskGitVqganConfig
from zoo.presets import Preset
from zoo.presets.outputs import Ids, code_margin
from zoo.presets.rules import CONV, Rule
from zoo.types import Codes

CONFIG = MaskGitVqganConfig

PRESETS = (
    Preset(
        name="maskgit_vqgan_f16.imagenet",
        family="maskgit_vqgan",
        config=MaskGitVqganConfig(),
        parameters=54_515_587,
        licence="Apache-2.0",
        paper="2202.04200",
        repository="fun-research/TiTok",
        file="maskgit-vqgan-imagenet-f16-256.bin",
    ),
)


def half_rules(ours: str, reference: str) -> list[Rule]:
    """The rules of an encoder or decoder below a prefix on each side."""
    convolutions = (
        "conv_in",
        "conv_out",
        "{path}.conv1",
        "{path}.conv2",
        "{path}.nin_shortcut",
        "{path}.upsample_conv",
    )
    norms = ("norm_out", "{path}.norm1", "{path}.norm2")
    return [
        *(Rule(f"{reference}{n}.weight", f"{ours}{n}.kernel", CONV) for n in convolutions),
        *(Rule(f"{reference}{n}.bias", f"{ours}{n}.bias") for n in convolutions),
        *(Rule(f"{reference}{n}.weight", f"{ours}{n}.scale") for n in norms),
        *(Rule(f"{reference}{n}.bias", f"{ours}{n}.bias") for n in norms),
    ]


RULES = [
    Rule("quantize.embedding.weight", "quantize.codebook"),
    *half_rules("encoder.", "encoder."),
    *half_rules("decoder.", "decoder."),
]


def rules(config: MaskGitVqganConfig) -> list[Rule]:
    """The same at every size."""
    return RULES


def config_from_reference(reference: dict[str, Any]) -> MaskGitVqganConfig:
    """`reference` is the original's flat config (channel_mult, ...); missing keys are the published ones."""
    default = MaskGitVqganConfig()
    return MaskGitVqganConfig(
        image_size=reference.get("resolution", default.image_size),
        width=reference.get("hidden_channels", default.width),
        multipliers=tuple(reference.get("channel_mult", default.multipliers)),
        blocks=reference.get("num_res_blocks", default.blocks),
        code_dim=reference.get("z_channels", default.code_dim),
        vocab_size=reference.get("num_embeddings", default.vocab_size),
        norm_groups=reference.get("norm_groups", default.norm_groups),
    )


def outputs(module: MaskGitVqgan, case: dict[str, Any], io: dict[str, np.ndarray]) -> dict[str, Any]:
    """Every output of a tokenizer case, in the reference's layout. Decoders get the stored ids."""
    x = jnp.asarray(io["image"])
    h = module.encoder.conv_in(x)
    for level in module.encoder.down:
        h = level(h)
    out = {"enc_down_last": h}
    for block in module.encoder.mid:
        h = block(h)
    out["enc_mid"] = h
    z = out["z"] = module.encoder(x)
    quantized = module.quantize(z)
    flat = rearrange(z, "b h w d -> b (h w) d")
    stored = jnp.asarray(io["tokens"])[..., None]
    ids = module.encode(x).ids
    assert ids is not None
    size = (x.shape[1], x.shape[2])
    mse = quantized.losses["codebook"]
    z_q = rearrange(module.quantize.lookup(stored), "b (h w) d -> b h w d", h=z.shape[1])
    h = module.decoder.conv_in(z_q)
    for block in module.decoder.mid:
        h = block(h)
    image = module.decode(Codes(ids=stored), size=size)
    out |= {
        "z_q": z_q,
        "z_q_straight_through": quantized.z,
        "dec_mid": h,
        "dec_up_lowest": module.decoder.up[-1](h),
    }
    out = {name: rearrange(value, "b h w c -> b c h w") for name, value in out.items()}
    margin = code_margin(flat, module.quantize.codebook[...])
    # This class puts the commitment cost on the codebook term.
    beta = case["reference_config"]["commitment_cost"]
    return out | {
        "tokens": Ids(ids[..., 0], margin),
        "vq_loss": quantized.losses["commitment"] + beta * mse,
        "codebook_mse": mse,
        "soft_code_t2": module.soft_codes(flat, 2.0)[:, :8],
        "image_raw": image,
        "image_out": jnp.clip(image, 0, 1),
    }
