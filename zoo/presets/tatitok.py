"""TA-TiTok: the text-aware relative of TiTok. Same model, same names, plus text in the decoder."""

from __future__ import annotations

import dataclasses
from typing import Any

from zoo.models.titok import BASE, LARGE, SMALL, TiTokConfig, ViTConfig
from zoo.presets import Preset, titok

CONFIG = TiTokConfig
CLIP = (77, 768)  # tokens and channels of the text encoder, ViT-L/14-336 of OpenAI


def _datacomp(
    name: str, kind: dict[str, Any], encoder: ViTConfig, tokens: int, parameters: int, rfid: float, inception: float
) -> Preset:
    return Preset(
        name=f"tatitok_{name}.datacomp",
        family="tatitok",
        config=TiTokConfig(encoder=encoder, decoder=LARGE, tokens=tokens, text=CLIP, **kind),
        parameters=parameters,
        licence="Apache-2.0",
        paper="2501.07730",
        repository=f"turkeyju/tokenizer_tatitok_{name}",
        file="model.safetensors",
        alternative=("fun-research/TA-TiTok", f"tatitok_{name}.bin"),
        published={"rFID": rfid, "IS": inception},
        citation=titok.README,
    )


PRESETS = (
    _datacomp("bl32_vq", titok.VQ8K, BASE, 32, 390_800_532, 3.95, 219.6),
    _datacomp("bl64_vq", titok.VQ8K, BASE, 64, 390_882_452, 2.43, 218.8),
    _datacomp("bl128_vq", titok.VQ8K, BASE, 128, 391_046_292, 1.53, 222.8),
    _datacomp("bl32_vae", titok.VAE_C16, BASE, 32, 390_202_484, 1.53, 222.0),
    _datacomp("bl64_vae", titok.VAE_C16, BASE, 64, 390_284_404, 1.47, 220.7),
    _datacomp("sl128_vae", titok.VAE_C16, SMALL, 128, 330_275_188, 0.90, 227.7),
)
rules = titok.rules
outputs = titok.outputs


def config_from_reference(reference: dict[str, Any]) -> TiTokConfig:
    """As TiTok's; text is CLIP's where the config does not say."""
    vq = reference.get("config", reference)["model"]["vq_model"]
    text = (vq.get("text_context_length", CLIP[0]), vq.get("text_embed_dim", CLIP[1]))
    return dataclasses.replace(titok.config_from_reference(reference), text=text)
