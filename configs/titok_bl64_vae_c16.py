"""TiTok bl64_vae_c16: 64 tokens (continuous, 16 channels), a base encoder and a large decoder, trained in one stage.

    zoo train titok_bl64_vae_c16 --data.path IMAGENET --recipe.convnext convnext_small-0c510722.pth \
        --recipe.lpips vgg16-397923af.pth,vgg.pth --workdir runs/titok_bl64_vae_c16

Source: issues 67 and 72 of bytedance/1d-tokenizer give the stage, the losses, the steps and the batch; the weights
are inferred from TA-TiTok's, see zoo/published.py. Without the perceptual networks: --recipe.lpips_weight 0
--recipe.convnext_weight 0. Not run at this size; smoke/titok_vae is the same recipe.
"""

from zoo import published
from zoo.train import TrainConfig


def get_config() -> TrainConfig:
    return published.single_stage("titok_bl64_vae_c16.imagenet")
