"""A tiny TA-TiTok with clustered codes and a discriminator, on the bundled photos.

    zoo train smoke/tatitok --workdir runs/tatitok

The perceptual networks are left out, since their files have to be given. Neither is there text.
"""

from zoo.models.titok import TiTokConfig, ViTConfig
from zoo.published import smoke
from zoo.recipes.gan import DiscriminatorConfig, Gan
from zoo.train import TrainConfig


def get_config() -> TrainConfig:
    vit = ViTConfig(width=32, depth=2, heads=2, patch=16)
    model = TiTokConfig(
        encoder=vit,
        decoder=vit,
        tokens=16,
        code_dim=8,
        vocab_size=256,
        clustering=True,
        text=(3, 8),
        image_size=64,
    )
    recipe = Gan(
        model=model,
        family="tatitok",
        text="empty",
        discriminator=DiscriminatorConfig(width=32, stages=2),
        gan_weight=0.01,
        discriminator_start=30,
    )
    return smoke(recipe)
