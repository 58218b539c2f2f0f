"""TiTok's first stage, tiny, on the bundled photos.

    zoo train smoke/titok_stage1 --workdir runs/titok_stage1

The teacher has random weights, but its codes depend on the image, so there is something to learn: the loss falls from
4.2, the logarithm of 64. With a real one: --recipe.teacher RELEASE.
"""

from zoo.models.maskgit_vqgan import MaskGitVqganConfig
from zoo.models.titok import TiTokConfig, ViTConfig
from zoo.published import smoke
from zoo.recipes.proxy_codes import ProxyCodes
from zoo.train import TrainConfig


def get_config() -> TrainConfig:
    vit = ViTConfig(width=32, depth=2, heads=2, patch=16)
    teacher = MaskGitVqganConfig(width=32, multipliers=(1, 1, 1, 1, 1), blocks=1, code_dim=16, vocab_size=64)
    model = TiTokConfig(
        encoder=vit,
        decoder=vit,
        tokens=16,
        code_dim=8,
        vocab_size=256,
        l2_norm=True,
        image_size=64,
        legacy=True,
        teacher_vocab_size=teacher.vocab_size,
    )
    recipe = ProxyCodes(model=model, teacher="untrained", teacher_config=teacher)
    return smoke(recipe)
