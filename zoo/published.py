"""The published recipes of TiTok and TA-TiTok as configs, one function for each kind.

Numbers are those of the training configs in bytedance/1d-tokenizer @ 942a96f; what they leave open is inferred, and
marked so.
Everywhere: bfloat16 where the original has float16 with loss scaling, EMA 0.999 with its ramp, gradients clipped to 1,
shorter edge to 256 px, random crop, mirror.
"""

from __future__ import annotations

import dataclasses

from zoo import presets
from zoo.data.loader import DataConfig
from zoo.models.titok import TiTokConfig
from zoo.optim import Optimizer
from zoo.recipes.gan import Gan
from zoo.recipes.proxy_codes import ProxyCodes
from zoo.recipes.reconstruction import Reconstruction
from zoo.train import TrainConfig

IMAGENET = "imagenet2012"  # where --data.path does not say
STAGE2 = r"decoder\.|pixel_decoder\."  # the parameters that stage 2 trains


def stage1(preset: str) -> TrainConfig:
    """First stage of a legacy TiTok: its teacher's codes, 1 M steps of 256 images (configs/training/TiTok/stage1).

    The batch is the README's 8 GPUs of 32.
    """
    model = dataclasses.replace(presets.get(preset).config, pixel_decoder=None)
    return _run(ProxyCodes(model=model), IMAGENET, Optimizer(betas=(0.9, 0.99), warmup=10_000), steps=1_000_000)


def stage2(preset: str) -> TrainConfig:
    """Second stage: the decoders on pixels, ConvNeXt-S and a discriminator, 500 k steps.

    From configs/training/TiTok/stage2. Encoder, codebook and latent tokens stay as stage 1 left them, so the quantizer
    has no loss.
    """
    recipe = Gan(
        model=presets.get(preset).config,
        trained=STAGE2,
        commitment=0.0,
        codebook=0.0,
        convnext_weight=0.1,
        gan_weight=0.01,
        discriminator_start=20_000,
    )
    return _run(recipe, IMAGENET, Optimizer(warmup=5_000), steps=500_000)


def single_stage(preset: str) -> TrainConfig:
    """The vq8k and vae_c16 models in one stage, 1 M steps of 256 images (both from issue 67 of the original).

    Inferred: all weights are TA-TiTok's (its configs/training/TA-TiTok), since no config was published, and the
    codebook is trained without clustering.
    """
    chosen = presets.get(preset)
    recipe = _single_stage(chosen.config, chosen.family)
    return _run(recipe, IMAGENET, Optimizer(warmup=10_000), steps=1_000_000)


def text_aware(preset: str) -> TrainConfig:
    """TA-TiTok, 650 k steps (configs/training/TA-TiTok).

    Inferred: a batch of 1,024, which the README's 4 machines of 8 GPUs of 32 give. The codebooks are clustered.
    """
    chosen = presets.get(preset)
    model = dataclasses.replace(chosen.config, clustering=chosen.config.vocab_size is not None)
    return _run(_single_stage(model, chosen.family), "datacomp", Optimizer(warmup=10_000), steps=650_000, batch=1024)


def _single_stage(model: TiTokConfig, family: str) -> Gan:
    return Gan(
        model=model,
        family=family,
        lpips_weight=1.0,
        convnext_weight=0.1,
        gan_weight=0.1,
        discriminator_start=200_000,
    )


def _run(recipe: ProxyCodes | Gan, data: str, optim: Optimizer, *, steps: int, batch: int = 256) -> TrainConfig:
    return TrainConfig(
        recipe=recipe,
        data=DataConfig(path=data, batch_size=batch, threads=16),
        optim=optim,
        steps=steps,
        dtype="bfloat16",
        save_every=10_000,
        picture_every=5_000,
        seed=42,
    )


def smoke(recipe: Reconstruction | ProxyCodes, *, init: str | None = None) -> TrainConfig:
    """A recipe for a minute or two on a CPU: 60 steps of 8 crops of the bundled photos at 64 px."""
    return TrainConfig(
        recipe=recipe,
        data=DataConfig(batch_size=8, image_size=64, scale=(1.0, 1.5)),
        optim=Optimizer(lr=2e-3, end_lr=1e-4, warmup=5),
        init=init,
        steps=60,
        log_every=1,
        save_every=20,
        picture_every=0,
    )
