"""Training against a discriminator: TiTok's second stage, and the single stage of TA-TiTok, vq8k and vae_c16.

    tokenizer:      reconstruction terms + gan_weight * G(D(x_hat))          the weight is constant, D's part 0 before
    discriminator:  L_D(D(x), D(x_hat)) + lecam_weight * LeCAM               `discriminator_start`

Yu et al. 2024, arXiv:2406.07550, section 3.3 and appendix; Kim et al. 2025, arXiv:2501.07730, section 3.1. As in
bytedance/1d-tokenizer the discriminator sees the reconstruction that the tokenizer was trained on in the same step, its
learning rate starts with its own first update, and LeCAM compares with averages from before the step.

Stage 2 starts from a stage-1 release (init), takes its pixel decoder from the teacher, and trains the decoders only.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.errors import InputError
from zoo.losses import adversarial
from zoo.models.titok import TiTokConfig
from zoo.nn.discriminators import BlurDiscriminator
from zoo.optim import Optimizer
from zoo.quantize.common import full_precision
from zoo.recipes import UNTRAINED, Aux, Loss, as_input
from zoo.recipes.proxy_codes import read_teacher, teacher_config
from zoo.recipes.reconstruction import Reconstruction, Terms


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Channels after the stem, and halvings."""

    width: int = 128
    stages: int = 3


class Critic(nnx.Module):
    """The discriminator, and the moving averages of its mean logits of real and rebuilt images, for LeCAM."""

    def __init__(self, config: DiscriminatorConfig, *, dtype: Any = None, rngs: nnx.Rngs):
        self.net = BlurDiscriminator(width=config.width, stages=config.stages, dtype=dtype, rngs=rngs)
        self.averages = nnx.Variable(jnp.zeros(2))

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b 16 16 1"]:
        return self.net(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gan(Reconstruction):
    """Attributes:
    gan: the pair of losses.
    gan_weight: of the tokenizer's adversarial term.
    discriminator: its size.
    discriminator_start: the first step that trains it and that its judgement counts in.
    lecam_weight: 0 leaves LeCAM out.
    trained: regular expression for the start of the paths that are trained, e.g. "decoder"; "": all.
    pixel_decoder: stage 2: the teacher whose codebook and decoder it starts from, a preset or a release folder, or
        "untrained".
    """

    gan: Literal["hinge", "non_saturating"] = "hinge"
    gan_weight: float = 0.1
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    discriminator_start: int = 0
    lecam_weight: float = 0.001
    trained: str = ""
    pixel_decoder: str | None = None

    def build(self, *, dtype: Any, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        nets = super().build(dtype=dtype, rngs=rngs)
        return nets | {"discriminator": Critic(self.discriminator, dtype=dtype, rngs=rngs)}

    def trains(self, net: str, path: str) -> bool:
        return net != "tokenizer" or re.match(self.trained, path) is not None

    def optimizers(self, optim: Optimizer, steps: int) -> dict[str, tuple[Optimizer, int]]:
        return {"tokenizer": (optim, steps), "discriminator": (optim, max(steps - self.discriminator_start, 1))}

    def losses(self) -> dict[str, Loss]:
        return {"tokenizer": self._loss, "discriminator": self._discriminator_loss}

    def active(self, net: str, step: int) -> bool:
        return net != "discriminator" or step >= self.discriminator_start

    def terms(self, nets: dict[str, Any], x: Array, x_hat: Array, losses: dict[str, Array], warm: Any = 1.0) -> Terms:
        terms = super().terms(nets, x, x_hat, losses, warm)
        if "discriminator" in nets:
            generator = {"hinge": adversarial.generator_hinge, "non_saturating": adversarial.generator_non_saturating}
            terms["gan"] = (self.gan_weight, generator[self.gan](nets["discriminator"](x_hat)))
        return terms

    def outputs(self, x_hat: Array) -> dict[str, Array]:
        return {"x_hat": jax.lax.stop_gradient(x_hat)}

    def _discriminator_loss(
        self, nets: dict[str, Any], batch: dict[str, Array], key: Array, step: Array
    ) -> tuple[Array, Aux]:
        x = as_input(batch["image"], nets["tokenizer"].spec.input_range)
        return self.discriminator_terms(nets["discriminator"], x, batch["x_hat"])

    def discriminator_terms(self, critic: Critic, x: Array, x_hat: Array) -> tuple[Array, Aux]:
        """The discriminator's loss on true and rebuilt images in [0, 1], and what it is made of."""
        real, fake = full_precision(critic(x)), full_precision(critic(x_hat))
        loss = {"hinge": adversarial.hinge, "non_saturating": adversarial.non_saturating}[self.gan](real, fake)
        lecam = adversarial.lecam(real, fake, critic.averages[...])
        metrics = {self.gan: loss, "lecam": lecam, "logits_real": jnp.mean(real), "logits_fake": jnp.mean(fake)}
        return loss + self.lecam_weight * lecam, Aux(metrics)

    def advance(self, net: str, nets: dict[str, Any], aux: Aux) -> None:
        super().advance(net, nets, aux)
        if net == "discriminator":
            means = aux.metrics["logits_real"], aux.metrics["logits_fake"]
            averages = nets[net].averages
            averages[...] = adversarial.lecam_averages(averages[...], *means)

    def check(self, config: Any) -> None:
        super().check(config)
        if self.trained and config.init is None:
            raise InputError(
                f"only '{self.trained}' is trained and the rest needs a start: give --init RELEASE (of stage 1), or "
                f"--init {UNTRAINED} to try the recipe out"
            )

    def starting_from(self, model: Any, family: str) -> Self:
        mine = self.model
        if not isinstance(mine, TiTokConfig) or mine.pixel_decoder is None or getattr(model, "pixel_decoder", None):
            return dataclasses.replace(super().starting_from(model, family), pixel_decoder=None)  # it is complete
        if not getattr(model, "legacy", False) or model.teacher_vocab_size != mine.teacher_vocab_size:
            raise InputError(
                f"the release to start from does not predict {mine.teacher_vocab_size} codes of a teacher, which the "
                "pixel decoder takes; give the release of a stage-1 run"
            )
        if self.pixel_decoder is None:
            raise InputError(
                "the release to start from is of stage 1 and recipe.pixel_decoder is not set: give the teacher, "
                f"maskgit_vqgan.imagenet or a release folder, or '{UNTRAINED}' to try the recipe out"
            )
        decoder = mine.pixel_decoder
        if self.pixel_decoder != UNTRAINED:
            decoder = teacher_config(self.pixel_decoder, mine.teacher_vocab_size)
        return super().starting_from(dataclasses.replace(model, pixel_decoder=decoder), family)

    def initial(self) -> dict[tuple, Array]:
        if self.pixel_decoder in (None, UNTRAINED) or not isinstance(self.model, TiTokConfig):
            return {}
        teacher = read_teacher(self.pixel_decoder, self.model.teacher_vocab_size)
        decoder = {("pixel_decoder", "decoder", *path): v for path, v in nnx.to_flat_state(nnx.state(teacher.decoder))}
        return {("pixel_decoder", "codebook"): teacher.quantize.codebook[...]} | {p: v[...] for p, v in decoder.items()}
