"""TiTok-L-32, first stage: the decoder learns to predict the codes of a MaskGIT-VQGAN.

    zoo train titok_l32_stage1 --data.path IMAGENET --recipe.teacher maskgit_vqgan.imagenet \
        --workdir runs/titok_l32_stage1

Source: configs/training/TiTok/stage1/titok_l32.yaml of bytedance/1d-tokenizer @ 942a96f; inferred:
see zoo/published.py.
The teacher's ids can be stored once: `zoo encode IMAGENET --model maskgit_vqgan.imagenet --out ids.npz`, then add
--data.labels ids.npz --data.crop center --data.no-flip. Not run at this size; smoke/titok_stage1 is the same recipe.
"""

from zoo import published
from zoo.train import TrainConfig


def get_config() -> TrainConfig:
    return published.stage1("titok_l32.imagenet")
