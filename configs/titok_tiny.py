"""titok_tiny.photos, the bundled release: photographs of 64 px as 64 tokens of 12 bits.

    zoo train titok_tiny --data.path PHOTOS --data.eval_path OTHER_PHOTOS --workdir runs/titok_tiny

Muon instead of AdamW and fan-in weights instead of normal(0.02): with the published settings a model of this width is
still at the mean image (12.5 dB) after 250 steps, with these at 17 dB.
"""

from zoo.data.loader import DataConfig
from zoo.models.titok import TiTokConfig, ViTConfig
from zoo.recipes.reconstruction import Reconstruction
from zoo.train import Optimizer, TrainConfig


def get_config() -> TrainConfig:
    model = TiTokConfig(
        encoder=ViTConfig(width=192, depth=3, heads=3),
        decoder=ViTConfig(width=192, depth=4, heads=3),
        tokens=64,
        code_dim=12,
        vocab_size=4096,
        l2_norm=True,
        image_size=64,
        narrow=True,
    )
    return TrainConfig(
        recipe=Reconstruction(model=model, autoencode_steps=600),
        data=DataConfig(batch_size=48, scale=(1.0, 1.6)),
        optim=Optimizer(name="muon", lr=1e-2, end_lr=5e-4, warmup=50, betas=(0.9, 0.99), weight_decay=0.01),
        steps=4000,
        ema=0.998,
        log_every=20,
        save_every=200,
        picture_every=500,
    )
