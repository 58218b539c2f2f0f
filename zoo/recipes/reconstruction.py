"""Single-stage training: encode, quantize, decode, compare.

    loss = pixel_weight * L(x, x_hat) + sum of weighted quantizer losses (+ perceptual_weight * P(x, x_hat))

The terms are those of TA-TiTok's single stage (arXiv:2501.07730, section 3.1) without the adversarial one. Images are
in [0, 1], so an L2 of 0.01 is 20 dB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.losses.perceptual import vgg16_hed
from zoo.losses.reconstruction import l1, l2
from zoo.models.maskgit_vqgan import MaskGitVqganConfig
from zoo.models.titok import TiTokConfig
from zoo.quantize.vq import VQ
from zoo.recipes import Aux


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Attributes:
    family: of the model, a name in zoo.presets.FAMILIES.
    model: its config.
    pixel: the pixel loss.
    pixel_weight: its weight.
    commitment, codebook: weights of the VQ losses (0.25 and 1 in the VQ-VAE paper).
    kl: weight of the VAE's KL, which is per sample.
    autoencode_steps: the first steps leave the latents unquantized; then the codebook starts from latents of a batch.
        Without it, a VQ that starts while the encoder still gives every image the same latents collapses.
    restart_every: steps between replacing the codes that nothing chose since the last log line by latents of a batch
        (random restarts, Dhariwal et al. 2020, arXiv:2005.00341, section 3.1); 0: never. A multiple of log_every.
    perceptual: an .npz that scripts/vgg16_features.py wrote, or None.
    perceptual_weight: its weight.
    """

    model: TiTokConfig | MaskGitVqganConfig
    family: str = "titok"
    pixel: Literal["l2", "l1"] = "l2"
    pixel_weight: float = 1.0
    commitment: float = 0.25
    codebook: float = 1.0
    kl: float = 1e-6
    autoencode_steps: int = 0
    restart_every: int = 0
    perceptual: str | None = None
    perceptual_weight: float = 0.1

    def build(self, *, dtype: Any, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {"tokenizer": self.model.build(dtype=dtype, rngs=rngs)}

    def losses(self, perceptual: Callable[[Array, Array], Array] | None = None) -> dict[str, Callable[..., Any]]:
        """One loss per net. `perceptual` (x, x_hat) -> scalar replaces the file's."""
        if perceptual is None and self.perceptual is not None:
            perceptual = vgg16_hed(self.perceptual)

        def loss(nets: dict[str, Any], batch: dict[str, Array], key: Array, step: Array) -> tuple[Array, Aux]:
            return self._loss(nets["tokenizer"], batch, key, step, perceptual)

        return {"tokenizer": loss}

    def _loss(self, module: Any, batch: dict[str, Array], key: Array, step: Array, perceptual: Any):
        x = as_input(batch["image"], module.spec.input_range)
        h = module.latents(x)
        quantized = module.quantize(h, key=key)
        z, warm = quantized.z, jnp.float32(1)
        if self.autoencode_steps:
            warm = (step >= self.autoencode_steps).astype(jnp.float32)
            z = jnp.where(step < self.autoencode_steps, module.quantize.continuous(h), z)
        x_hat = module.decode_latents(z)
        terms = {self.pixel: (self.pixel_weight, {"l1": l1, "l2": l2}[self.pixel](x, x_hat))}
        weights = {"commitment": self.commitment * warm, "codebook": self.codebook * warm, "kl": self.kl}
        terms |= {name: (weights[name], value) for name, value in quantized.losses.items()}
        if perceptual is not None:
            terms["perceptual"] = (self.perceptual_weight, perceptual(x, x_hat))
        total = sum((weight * value for weight, value in terms.values()), jnp.float32(0))
        metrics = {name: value for name, (_, value) in terms.items()}
        mse = jnp.mean((jnp.clip(x_hat, 0, 1) - x) ** 2)
        return total, Aux(metrics | {"psnr": -10 * jnp.log10(jnp.maximum(mse, 1e-10))}, quantized.stats)

    def prepare_at(self, step: int) -> bool:
        """True where `prepare` must run before this step."""
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


def as_input(image: Array, input_range: tuple[float, float]) -> Float[Array, "b h w 3"]:
    """uint8 to the module's own range."""
    low, high = input_range
    return image.astype(jnp.float32) / 255 * (high - low) + low
