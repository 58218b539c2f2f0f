"""TiTok-L-32, second stage: the decoders learn pixels, against a discriminator.

    zoo train titok_l32_stage2 --data.path IMAGENET --init runs/titok_l32_stage1/release \
        --recipe.pixel_decoder maskgit_vqgan.imagenet --recipe.convnext convnext_small-0c510722.pth \
        --workdir runs/titok_l32_stage2

Source: configs/training/TiTok/stage2/titok_l32.yaml of bytedance/1d-tokenizer @ 942a96f; inferred:
see zoo/published.py.
Without the weights of ConvNeXt-S: --recipe.convnext_weight 0. Not run at this size; smoke/titok_stage2 is the same
recipe.
"""

from zoo import published
from zoo.train import TrainConfig


def get_config() -> TrainConfig:
    return published.stage2("titok_l32.imagenet")
