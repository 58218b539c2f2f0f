"""Single-stage training without an adversary: encode, quantize, decode, compare.

    loss = pixel_weight * L(x, x_hat) + weighted quantizer losses
           + lpips_weight * LPIPS + convnext_weight * ConvNeXt + perceptual_weight * VGG16(HED)

The terms are those of TA-TiTok's single stage (arXiv:2501.07730, section 3.1) without the GAN's, which
zoo/recipes/gan.py adds. Images are in [0, 1], so an L2 of 0.01 is 20 dB.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, Self

import jax.numpy as jnp
from jaxtyping import Array

from zoo.errors import InputError
from zoo.losses.perceptual import vgg16_hed
from zoo.losses.reconstruction import l1, l2
from zoo.models.maskgit_vqgan import MaskGitVqganConfig
from zoo.models.titok import TiTokConfig
from zoo.networks import CONVNEXT_FILE, LPIPS_FILES, load_convnext, load_lpips
from zoo.nn.convnext import ConvNeXt, ConvNeXtConfig, logits_distance
from zoo.nn.lpips import LPIPS
from zoo.quantize.common import assign
from zoo.quantize.vq import VQ
from zoo.recipes import Aux, Frozen, Loss, Recipe, as_input
from zoo.recipes.views import WithoutText

Terms = dict[str, tuple[Any, Array]]  # name -> weight, value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(Recipe):
    """Attributes:
    family: of the model, a name in zoo.presets.FAMILIES.
    model: its config.
    pixel: the pixel loss.
    pixel_weight: its weight.
    commitment, codebook: weights of the VQ losses (0.25 and 1 in the VQ-VAE paper).
    kl: weight of the VAE's KL, which is per sample.
    lpips, convnext: files of their weights (see zoo.networks), or "untrained".
    lpips_weight, convnext_weight: 0 trains without them and needs no file.
    perceptual: an .npz that scripts/vgg16_features.py wrote, or None.
    perceptual_weight: its weight.
    text: where a text-aware model's text comes from: "given" with the data (data.labels), or "empty", all zeros.
    autoencode_steps: the first steps leave the latents unquantized; then the codebook starts from latents of a batch.
        Without it, a VQ that starts while the encoder still gives every image the same latents collapses.
    restart_every: steps between replacing the codes that nothing chose since the last log line by latents of a batch
        (random restarts, Dhariwal et al. 2020, arXiv:2005.00341, section 3.1); 0: never. A multiple of log_every.
    """

    model: TiTokConfig | MaskGitVqganConfig
    family: str = "titok"
    pixel: Literal["l2", "l1"] = "l2"
    pixel_weight: float = 1.0
    commitment: float = 0.25
    codebook: float = 1.0
    kl: float = 1e-6
    lpips: str | None = None
    lpips_weight: float = 0.0
    convnext: str | None = None
    convnext_weight: float = 0.0
    perceptual: str | None = None
    perceptual_weight: float = 0.1
    text: Literal["given", "empty"] = "given"
    autoencode_steps: int = 0
    restart_every: int = 0

    def frozen(self) -> dict[str, Frozen]:
        def missing(name: str, files: str) -> str:
            return (
                f"the recipe compares images with {name} and recipe.{name} is not set: give the path of {files}; or "
                f"--recipe.{name}_weight 0 to train without it"
            )

        nets = {}
        if self.lpips_weight:
            nets["lpips"] = Frozen(LPIPS, load_lpips, self.lpips, missing("lpips", LPIPS_FILES))
        if self.convnext_weight:
            build = functools.partial(ConvNeXt, ConvNeXtConfig())
            nets["convnext"] = Frozen(build, load_convnext, self.convnext, missing("convnext", CONVNEXT_FILE))
        if (file := self.perceptual) is not None:  # its layers' sizes are those of the file
            nets["perceptual"] = Frozen(lambda rngs: vgg16_hed(file), vgg16_hed, file, "")
        return nets

    def check(self, config: Any) -> None:
        shape = self._text_shape()
        if shape and self.text == "given" and config.data.labels is None:
            raise InputError(
                f"the decoder takes text and data.labels is not set: give an .npz with `file` [n] and `text` "
                f"{['n', *shape]}, or --recipe.text empty to train without text"
            )

    def losses(self) -> dict[str, Loss]:
        return {"tokenizer": self._loss}

    def _loss(self, nets: dict[str, Any], batch: dict[str, Array], key: Array, step: Array) -> tuple[Array, Aux]:
        module = nets["tokenizer"]
        x = as_input(batch["image"], module.spec.input_range)
        h = module.latents(x)
        quantized = module.quantize(h, key=key)
        z, warm = quantized.z, jnp.float32(1)
        if self.autoencode_steps:
            warm = (step >= self.autoencode_steps).astype(jnp.float32)
            z = jnp.where(step < self.autoencode_steps, module.quantize.continuous(h), z)
        x_hat = module.decode_latents(z, **self._conditions(batch, x.shape[0])).astype(x.dtype)
        terms = self.terms(nets, x, x_hat, quantized.losses, warm)
        total = jnp.sum(jnp.stack([weight * value for weight, value in terms.values()]))
        metrics = {name: value for name, (_, value) in terms.items()}
        mse = jnp.mean((jnp.clip(x_hat, 0, 1) - x) ** 2)
        metrics["psnr"] = -10 * jnp.log10(jnp.maximum(mse, 1e-10))
        outputs = self.outputs(x_hat) | {"samples": quantized.samples}
        return total, Aux(metrics, quantized.stats, outputs)

    def terms(self, nets: dict[str, Any], x: Array, x_hat: Array, losses: dict[str, Array], warm: Any = 1.0) -> Terms:
        """The weighted terms of the tokenizer's loss on images in [0, 1]; `losses` are the quantizer's."""
        terms: Terms = {self.pixel: (self.pixel_weight, {"l1": l1, "l2": l2}[self.pixel](x, x_hat))}
        weights = {"commitment": self.commitment * warm, "codebook": self.codebook * warm, "kl": self.kl}
        terms |= {name: (weights[name], value) for name, value in losses.items()}
        if "lpips" in nets:
            terms["lpips"] = (self.lpips_weight, jnp.mean(nets["lpips"](x, x_hat)))
        if "convnext" in nets:
            terms["convnext"] = (self.convnext_weight, logits_distance(nets["convnext"], x, x_hat))
        if "perceptual" in nets:
            terms["perceptual"] = (self.perceptual_weight, nets["perceptual"](x, x_hat))
        return terms

    def outputs(self, x_hat: Array) -> dict[str, Array]:
        """What later losses need of a batch."""
        return {}

    def _text_shape(self) -> tuple[int, int] | None:
        return self.model.text if isinstance(self.model, TiTokConfig) else None

    def _conditions(self, batch: dict[str, Array], rows: int) -> dict[str, Array]:
        shape = self._text_shape()
        if shape is None:
            return {}
        return {"text": batch["text"] if self.text == "given" else jnp.zeros((rows, *shape))}

    def advance(self, net: str, nets: dict[str, Any], aux: Aux) -> None:
        if net == "tokenizer":
            quantize = nets[net].quantize
            assign(quantize, quantize.update(aux.stats, aux.outputs["samples"]))

    def prepare_at(self, step: int) -> bool:
        start, every = self.autoencode_steps, self.restart_every
        return step == start > 0 or (every > 0 and step > start and step % every == 0)

    def prepare(self, nets: dict[str, Any], batch: dict[str, Array], key: Array, step: Array, counts: Array) -> None:
        """Puts latents of a batch, in place, where codes have no counts; everywhere when autoencoding ends."""
        module = nets["tokenizer"]
        if isinstance(module.quantize, VQ):
            codebook = module.quantize.codebook
            h = module.latents(as_input(batch["image"], module.spec.input_range))
            unused = (counts[0] == 0) | (step == self.autoencode_steps)
            codebook[...] = jnp.where(unused[:, None], module.quantize.codebook_from(h, key), codebook[...])

    def starting_from(self, model: Any, family: str) -> Self:
        if isinstance(self.model, TiTokConfig):  # published weights come without the usage estimate
            model = dataclasses.replace(model, clustering=self.model.clustering)
        return dataclasses.replace(self, model=model, family=family, autoencode_steps=0)

    def view(self, tokenizer: Any, frozen: dict[str, Any]) -> Any:
        return WithoutText(tokenizer) if self._text_shape() else tokenizer
