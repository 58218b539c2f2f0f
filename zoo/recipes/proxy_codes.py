"""TiTok's first stage: the decoder predicts the codes that a teacher, a MaskGIT-VQGAN, gives the image.

    loss = cross entropy(logits, teacher ids) + commitment and codebook losses

Yu et al. 2024, arXiv:2406.07550, section 3.3. The ids come from the teacher in every step, or, once `zoo encode` has
written them, with the data (data.labels).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jaxtyping import Array

from zoo.errors import InputError
from zoo.losses.tokens import prediction
from zoo.models.maskgit_vqgan import MaskGitVqgan, MaskGitVqganConfig
from zoo.models.titok import TiTokConfig
from zoo.pretrained import config_of, load
from zoo.recipes import UNTRAINED, Aux, Frozen, Loss, Recipe, as_input
from zoo.recipes.views import ThroughTeacher


def teacher_config(name: str, vocab_size: int) -> MaskGitVqganConfig:
    """Of the MaskGIT-VQGAN of a preset or a release folder.

    Raises:
        InputError: it is another model, or has another vocabulary.
    """
    _, config = config_of(name)
    if not isinstance(config, MaskGitVqganConfig) or config.vocab_size != vocab_size:
        raise InputError(
            f"{name} is no MaskGIT-VQGAN of {vocab_size} codes; give the teacher of this recipe, e.g. "
            "maskgit_vqgan.imagenet, or set recipe.model.teacher_vocab_size"
        )
    return config


def read_teacher(name: str, vocab_size: int) -> MaskGitVqgan:
    """The MaskGIT-VQGAN itself; raises as `teacher_config`."""
    teacher_config(name, vocab_size)
    return load(name).module


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxyCodes(Recipe):
    """Attributes:
    model: a legacy TiTok without a pixel decoder.
    family: of the model.
    teacher: a preset or a release folder of a MaskGIT-VQGAN, or "untrained".
    teacher_config: of an untrained one.
    commitment, codebook: weights of the VQ losses.
    """

    model: TiTokConfig
    family: str = "titok"
    teacher: str | None = None
    teacher_config: MaskGitVqganConfig = MaskGitVqganConfig()
    commitment: float = 0.25
    codebook: float = 1.0

    def check(self, config: Any) -> None:
        if not isinstance(self.model, TiTokConfig) or not self.model.legacy or self.model.pixel_decoder is not None:
            raise InputError("proxy codes train a stage-1 TiTok: set recipe.model.legacy and leave out pixel_decoder")

    def frozen(self) -> dict[str, Frozen]:
        missing = (
            "the recipe learns from a teacher and recipe.teacher names none: give maskgit_vqgan.imagenet (downloaded), "
            f"a release folder, or '{UNTRAINED}' to try the recipe out"
        )
        read = functools.partial(read_teacher, vocab_size=self.model.teacher_vocab_size)
        return {"teacher": Frozen(self.teacher_config.build, read, self.teacher, missing)}

    def losses(self) -> dict[str, Loss]:
        return {"tokenizer": self._loss}

    def _loss(self, nets: dict[str, Any], batch: dict[str, Array], key: Array, step: Array) -> tuple[Array, Aux]:
        module = nets["tokenizer"]
        x = as_input(batch["image"], module.spec.input_range)
        quantized = module.quantize(module.latents(x), key=key)
        logits = module.decode_latents(quantized.z)
        targets = (batch["ids"] if "ids" in batch else nets["teacher"].encode(x).ids)[..., 0]
        if targets.shape[1] != logits.shape[1] * logits.shape[2]:
            raise InputError(
                f"the teacher gives {targets.shape[1]} ids for an image and the decoder predicts "
                f"{logits.shape[1]} x {logits.shape[2]}; choose recipe.model.decoder.patch as the teacher's stride"
            )
        ce, accuracy = prediction(logits.reshape(*targets.shape, -1), targets)
        losses = quantized.losses
        total = ce + self.commitment * losses["commitment"] + self.codebook * losses["codebook"]
        return total, Aux({"cross_entropy": ce, "accuracy": accuracy, **losses}, quantized.stats)

    def view(self, tokenizer: Any, frozen: dict[str, Any]) -> Any:
        return ThroughTeacher(tokenizer, frozen["teacher"])
