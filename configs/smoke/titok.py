"""A TiTok of 60 k parameters on the bundled photos, for a look at the whole way in a minute on a CPU.

    zoo train smoke/titok --workdir runs/smoke          # 2 cores: see README

It learns the mean colours of the image and no more: PSNR rises to about 13 dB.
"""

from zoo.data.loader import DataConfig
from zoo.models.titok import TiTokConfig, ViTConfig
from zoo.optim import Optimizer
from zoo.recipes.reconstruction import Reconstruction
from zoo.train import TrainConfig


def get_config() -> TrainConfig:
    vit = ViTConfig(width=32, depth=2, heads=2, patch=16)
    model = TiTokConfig(encoder=vit, decoder=vit, tokens=16, code_dim=8, vocab_size=256, l2_norm=True, image_size=64)
    return TrainConfig(
        recipe=Reconstruction(model=model, autoencode_steps=50),
        data=DataConfig(path="bundled", batch_size=16, scale=(1.0, 1.5)),
        optim=Optimizer(lr=2e-3, end_lr=1e-4, warmup=10),
        steps=100,
        log_every=1,
        save_every=25,
        picture_every=50,
    )
