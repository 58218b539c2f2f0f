"""TA-TiTok sl128_vae: 128 tokens (continuous, 16 channels), and text for the decoder.

    zoo train tatitok_sl128_vae --data.path DATACOMP --data.labels TEXT.npz \
        --recipe.convnext convnext_small-0c510722.pth --recipe.lpips vgg16-397923af.pth,vgg.pth \
        --workdir runs/tatitok_sl128_vae

TEXT.npz holds `file` and `text` [n, 77, 768], the last hidden states of CLIP ViT-L/14-336 after its final norm; or
--recipe.text empty. Source: configs/training/TA-TiTok/tatitok_sl128_vae.yaml of
bytedance/1d-tokenizer @ 942a96f; inferred: the batch, see zoo/published.py. Without the perceptual networks:
--recipe.lpips_weight 0 --recipe.convnext_weight 0. Not run at this size; smoke/tatitok is the same recipe.
"""

from zoo import published
from zoo.train import TrainConfig


def get_config() -> TrainConfig:
    return published.text_aware("tatitok_sl128_vae.datacomp")
