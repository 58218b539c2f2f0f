"""TA-TiTok: the text-aware relative of TiTok. Same model, same names, plus text in the decoder."""

from __future__ import annotations

import dataclasses
from typing import Any

from zoo.models.titok import TiTokConfig
from zoo.presets import Preset, titok

CONFIG = TiTokConfig
PRESETS: tuple[Preset, ...] = ()
rules = titok.rules
outputs = titok.outputs


def config_from_reference(reference: dict[str, Any]) -> TiTokConfig:
    """As TiTok's; text is 77 x 768 (CLIP ViT-L/14-336) where the config does not say."""
    vq = reference.get("config", reference)["model"]["vq_model"]
    text = (vq.get("text_context_length", 77), vq.get("text_embed_dim", 768))
    return dataclasses.replace(titok.config_from_reference(reference), text=text)
