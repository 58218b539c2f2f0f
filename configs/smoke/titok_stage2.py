"""TiTok's second stage, tiny, on the bundled photos.

    zoo train smoke/titok_stage2 --workdir runs/titok_stage2

Start and pixel decoder are random; the real thing: --init RUN_OF_SMOKE_TITOK_STAGE1/release
--recipe.pixel_decoder RELEASE_OF_ITS_TEACHER.
"""

from zoo.models.maskgit_vqgan import MaskGitVqganConfig
from zoo.models.titok import TiTokConfig, ViTConfig
from zoo.published import STAGE2, smoke
from zoo.recipes.gan import DiscriminatorConfig, Gan
from zoo.train import TrainConfig


def get_config() -> TrainConfig:
    vit = ViTConfig(width=32, depth=2, heads=2, patch=16)
    decoder = MaskGitVqganConfig(width=32, multipliers=(1, 1, 1, 1, 1), blocks=1, code_dim=16, vocab_size=64)
    model = TiTokConfig(
        encoder=vit,
        decoder=vit,
        tokens=16,
        code_dim=8,
        vocab_size=256,
        l2_norm=True,
        image_size=64,
        legacy=True,
        teacher_vocab_size=decoder.vocab_size,
        pixel_decoder=decoder,
    )
    recipe = Gan(
        model=model,
        trained=STAGE2,
        pixel_decoder="untrained",
        commitment=0.0,
        codebook=0.0,
        gan_weight=0.01,
        discriminator=DiscriminatorConfig(width=32, stages=2),
        discriminator_start=30,
    )
    return smoke(recipe, init="untrained")
