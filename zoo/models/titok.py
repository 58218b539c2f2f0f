"""TiTok: an image as 32 to 256 tokens in a row, and TA-TiTok, its text-aware single-stage successor.

Yu et al. 2024, arXiv:2406.07550 (TiTok); Kim et al. 2025, arXiv:2501.07730 (TA-TiTok).

    image --patches--> [class | g*g patches | n latent tokens] --ViT--> last n --project--> z b n c --> ids b n 1
    ids --look up--> [class | g*g mask tokens | n latents (| text)] --ViT--> g*g patches --head--> image
      head "pixels": a patch of pixels per position, then a 3x3 convolution on the image
      head "codes":  tanh MLP to logits over MaskGIT-VQGAN codes; stage 2 decodes their softmax with its decoder

Facts that bite:
- Images are in [0, 1] both ways; the output is not clamped.
- legacy models (l32, b64, s128) RESHAPE the latents [n, d] to [d, n] before the projection, without transposing, so
  that each token mixes features of many positions. No permutation of weights undoes it. They also have the codes head.
- Stage 2 feeds soft codes, softmax(logits) @ codebook, to the pixel decoder, also at inference.
- The latents have positions of their own, different in encoder and decoder; so do the two class tokens.
- The class token is never read out. Text enters the decoder only, after the latents.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from zoo.errors import InputError
from zoo.models import maskgit_vqgan
from zoo.nn.attention import NORMAL, TORCH, Init, bias_init
from zoo.nn.stack import Stack
from zoo.nn.vit import Block, PatchEmbed, layer_norm, linear, unpatchify
from zoo.quantize.gaussian import DiagonalGaussian
from zoo.quantize.vq import VQ
from zoo.types import Codes, Quantized, Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """One of the two transformers.

    Attributes:
        width: channels.
        depth: blocks.
        heads: attention heads.
        patch: side of a patch in pixels.
    """

    width: int
    depth: int
    heads: int
    patch: int = 16


SMALL = ViTConfig(width=512, depth=8, heads=8)
BASE = ViTConfig(width=768, depth=12, heads=12)
LARGE = ViTConfig(width=1024, depth=24, heads=16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TiTokConfig:
    """Attributes:
    encoder, decoder: the two transformers.
    tokens: latent tokens n per image.
    code_dim: channels c of a token.
    vocab_size: codes; None: continuous tokens (VAE).
    l2_norm: unit-length codes.
    clustering: carry the usage estimate of clustering VQ.
    image_size: side in pixels, the only size that works.
    legacy: the reshape and the codes head of the first checkpoints.
    pixel_decoder: the VQGAN whose decoder ends stage 2; None: stage 1, or the pixels head.
    teacher_vocab_size: codes of the VQGAN that the codes head predicts.
    text: (length, channels) of the text embeddings that TA-TiTok's decoder takes.
    remat: recompute activations in the backward pass.
    narrow: start from the weights of `start_narrow`. For widths far below the published 512, where the published
        normal(0.02) passes almost no signal and the model stays at the mean image for long.
    """

    encoder: ViTConfig
    decoder: ViTConfig
    tokens: int
    code_dim: int
    vocab_size: int | None
    l2_norm: bool = False
    clustering: bool = False
    image_size: int = 256
    legacy: bool = False
    pixel_decoder: maskgit_vqgan.MaskGitVqganConfig | None = None
    teacher_vocab_size: int = 1024
    text: tuple[int, int] | None = None
    remat: bool = False
    narrow: bool = False

    def __post_init__(self):
        if self.narrow and self.legacy:
            raise InputError("narrow starts a pixels head and legacy has a codes head; set one of them to False")

    @property
    def spec(self) -> Spec:
        return Spec(
            modality="image",
            input_shape=(self.image_size, self.image_size, 3),
            input_range=(0.0, 1.0),
            tokens=self.tokens,
            vocab_size=self.vocab_size,
            latent_dim=self.code_dim if self.vocab_size is None else None,
            conditions=(("text", self.text),) if self.text else (),
        )

    @property
    def init(self) -> Init:
        """Of the encoder's kernels."""
        return nnx.initializers.lecun_normal() if self.narrow else NORMAL

    @property
    def decoder_init(self) -> Init:
        """TA-TiTok's decoder keeps torch's default: it is made after the other layers were drawn anew."""
        return TORCH if self.text and not self.narrow else self.init

    def table(self, *shape: int, rngs: nnx.Rngs) -> nnx.Param:
        """A learned table (class token, positions, latents): normal * width^-1/2 as published."""
        std = 0.5 if self.narrow else shape[-1] ** -0.5
        return nnx.Param(jax.random.normal(rngs.params(), shape) * std)

    def grid(self, vit: ViTConfig) -> int:
        return self.image_size // vit.patch

    def build(self, *, dtype=None, rngs: nnx.Rngs) -> TiTok:
        return TiTok(self, dtype=dtype, rngs=rngs)


def _blocks(config: TiTokConfig, vit: ViTConfig, init: Init, *, dtype, rngs: nnx.Rngs) -> Stack:
    def make(rngs):
        return Block(vit.width, vit.heads, init=init, dtype=dtype, rngs=rngs)

    return Stack(make, vit.depth, remat=config.remat, rngs=rngs)


class Encoder(nnx.Module):
    """Image and latent tokens to n vectors."""

    def __init__(self, config: TiTokConfig, *, dtype=None, rngs: nnx.Rngs):
        vit = config.encoder
        channels = config.code_dim * (2 if config.vocab_size is None else 1)
        self.patch_embed = PatchEmbed(vit.patch, vit.width, init=config.init, dtype=dtype, rngs=rngs)
        self.class_token = config.table(1, vit.width, rngs=rngs)
        self.positions = config.table(config.grid(vit) ** 2 + 1, vit.width, rngs=rngs)
        self.latent_positions = config.table(config.tokens, vit.width, rngs=rngs)
        self.ln_pre = layer_norm(vit.width, rngs=rngs)
        self.blocks = _blocks(config, vit, config.init, dtype=dtype, rngs=rngs)
        self.ln_post = layer_norm(vit.width, rngs=rngs)
        self.project = linear(vit.width, channels, init=config.init, dtype=dtype, rngs=rngs)
        self.tokens = config.tokens
        self.legacy = config.legacy

    def embed(self, x: Float[Array, "b h w 3"], latents: Float[Array, "n d"]) -> Float[Array, "b t d"]:
        """[class | patches | latents] with their positions, normalised."""
        patches = self.patch_embed(x)
        b = x.shape[0]
        image = jnp.concatenate([repeat(self.class_token[...], "1 d -> b 1 d", b=b), patches], 1)
        latents = repeat(latents + self.latent_positions[...], "n d -> b n d", b=b)
        return self.ln_pre(jnp.concatenate([image + self.positions[...], latents], 1))

    def read_out(self, h: Float[Array, "b t d"]) -> Float[Array, "b n d"]:
        """The normalised latent positions."""
        return self.ln_post(h[:, -self.tokens :])

    def __call__(self, x: Float[Array, "b h w 3"], latents: Float[Array, "n d"]) -> Float[Array, "b n c"]:
        h = self.read_out(self.blocks(self.embed(x, latents)))
        if self.legacy:
            h = h.reshape(h.shape[0], h.shape[2], h.shape[1]).swapaxes(1, 2)
        return self.project(h)


class CodesHead(nnx.Module):
    """Logits over the teacher's codes: Linear to twice the width, tanh, Linear."""

    def __init__(self, width: int, vocab_size: int, *, init: Init, dtype=None, rngs: nnx.Rngs):
        self.up = linear(width, 2 * width, init=init, dtype=dtype, rngs=rngs)
        self.out = linear(2 * width, vocab_size, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, h: Float[Array, "b n d"], grid: int) -> Float[Array, "b g g k"]:
        return rearrange(self.out(jnp.tanh(self.up(h))), "b (h w) k -> b h w k", h=grid)


class PixelsHead(nnx.Module):
    """A patch of pixels per position, then a 3x3 convolution on the image."""

    def __init__(self, width: int, patch: int, *, init: Init, dtype=None, rngs: nnx.Rngs):
        self.patch = patch
        self.out = linear(width, 3 * patch * patch, init=init, dtype=dtype, rngs=rngs)
        self.conv = nnx.Conv(3, 3, (3, 3), kernel_init=init, bias_init=bias_init(init, 27), dtype=dtype, rngs=rngs)

    def patches(self, h: Float[Array, "b n d"], grid: int) -> Float[Array, "b h w 3"]:
        return unpatchify(self.out(h), self.patch, (grid, grid))

    def __call__(self, h: Float[Array, "b n d"], grid: int) -> Float[Array, "b h w 3"]:
        return self.conv(self.patches(h, grid))


class Decoder(nnx.Module):
    """n quantized vectors (and text) to an image, or to logits over the teacher's codes."""

    def __init__(self, config: TiTokConfig, *, dtype=None, rngs: nnx.Rngs):
        vit, init = config.decoder, config.decoder_init
        self.grid = config.grid(vit)
        self.embed_latents = linear(config.code_dim, vit.width, init=init, dtype=dtype, rngs=rngs)
        self.class_token = config.table(1, vit.width, rngs=rngs)
        self.mask_token = config.table(1, vit.width, rngs=rngs)
        self.positions = config.table(self.grid**2 + 1, vit.width, rngs=rngs)
        self.latent_positions = config.table(config.tokens, vit.width, rngs=rngs)
        if config.text:
            self.project_text = linear(config.text[1], vit.width, init=init, dtype=dtype, rngs=rngs)
            self.text_positions = config.table(config.text[0], vit.width, rngs=rngs)
        self.ln_pre = layer_norm(vit.width, rngs=rngs)
        self.blocks = _blocks(config, vit, init, dtype=dtype, rngs=rngs)
        self.ln_post = layer_norm(vit.width, rngs=rngs)
        if config.legacy:
            self.head = CodesHead(vit.width, config.teacher_vocab_size, init=init, dtype=dtype, rngs=rngs)
        else:
            self.head = PixelsHead(vit.width, vit.patch, init=init, dtype=dtype, rngs=rngs)

    def embed(self, z: Float[Array, "b n c"], text: Float[Array, "b l e"] | None) -> Float[Array, "b t d"]:
        """[class | mask tokens | latents (| text)] with their positions, normalised."""
        masks = repeat(self.mask_token[...], "1 d -> n d", n=self.grid**2)
        image = jnp.concatenate([self.class_token[...], masks]) + self.positions[...]
        parts = [
            repeat(image, "n d -> b n d", b=z.shape[0]),
            self.embed_latents(z) + self.latent_positions[...],
        ]
        if text is not None:
            parts.append(self.project_text(text) + self.text_positions[...])
        return self.ln_pre(jnp.concatenate(parts, 1))

    def read_out(self, h: Float[Array, "b t d"]) -> Float[Array, "b n d"]:
        """The normalised mask positions."""
        return self.ln_post(h[:, 1 : 1 + self.grid**2])

    def __call__(self, z: Float[Array, "b n c"], text: Float[Array, "b l e"] | None = None) -> Array:
        return self.head(self.read_out(self.blocks(self.embed(z, text))), self.grid)


class PixelDecoder(nnx.Module):
    """Stage 2: a MaskGIT-VQGAN codebook and decoder, fed with expected code vectors."""

    def __init__(self, config: maskgit_vqgan.MaskGitVqganConfig, *, dtype=None, rngs: nnx.Rngs):
        codes = jax.random.normal(rngs.params(), (config.vocab_size, config.code_dim))
        self.codebook = nnx.Param(codes)
        self.decoder = maskgit_vqgan.Decoder(config, dtype=dtype, rngs=rngs)

    def soft_codes(self, logits: Float[Array, "b g g k"]) -> Float[Array, "b g g d"]:
        return jax.nn.softmax(logits.astype(self.codebook.dtype), -1) @ self.codebook[...]

    def __call__(self, logits: Float[Array, "b g g k"]) -> Float[Array, "b h w 3"]:
        return self.decoder(self.soft_codes(logits))


def start_narrow(model: TiTok) -> None:
    """Start of a narrow model with a pixels head, on top of fan-in weights and tables of std 0.5; not published.

    Images are centred, and the head starts at grey without mixing colours. Keys start as queries, and the position of a
    latent is near that of a patch and weighs more than the content, so that the two first look at each other.
    """
    for vit, side in ((model.config.encoder, model.encoder), (model.config.decoder, model.decoder)):
        block = side.blocks.block
        assert isinstance(block, Block)
        qkv = block.attn.qkv.kernel
        qkv[...] = qkv.at[..., vit.width : 2 * vit.width].set(qkv[..., : vit.width])
        patch = jnp.arange(model.config.tokens) * model.config.grid(vit) ** 2 // model.config.tokens
        side.positions[...] *= 2
        side.latent_positions[...] = side.positions[1 + patch] + side.latent_positions[...]
    embed, head = model.encoder.patch_embed.proj, model.decoder.head
    assert isinstance(head, PixelsHead) and embed.bias is not None and head.out.bias is not None
    embed.kernel[...] *= 4
    embed.bias[...] = -0.5 * embed.kernel.sum(0)
    head.out.kernel[...] *= 0.2
    head.out.bias[...] += 0.5
    head.conv.kernel[...] = jnp.zeros((3, 3, 3, 3)).at[1, 1].set(jnp.eye(3))


class TiTok(nnx.Module):
    """TiTok and TA-TiTok. Images in [0, 1], square, of exactly `config.image_size`."""

    def __init__(self, config: TiTokConfig, *, dtype=None, rngs: nnx.Rngs):
        self.latent_tokens = config.table(config.tokens, config.encoder.width, rngs=rngs)
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        if config.vocab_size is None:
            self.quantize = DiagonalGaussian()
        else:
            self.quantize = VQ(
                config.vocab_size, config.code_dim, l2_norm=config.l2_norm, clustering=config.clustering, rngs=rngs
            )
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)
        if config.pixel_decoder:
            self.pixel_decoder = PixelDecoder(config.pixel_decoder, dtype=dtype, rngs=rngs)
        self.config = config
        self.spec = config.spec
        if config.narrow:
            start_narrow(self)

    def latents(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b n c"]:
        """What the quantizer gets: z, or [mean | logvar] for a VAE."""
        return self.encoder(x, self.latent_tokens[...])

    def decode_latents(self, z: Float[Array, "b n c"], text: Float[Array, "b l e"] | None = None) -> Array:
        """Image b h w 3; for stage 1 logits b g g k over the teacher's codes."""
        out = self.decoder(z, text)
        return self.pixel_decoder(out) if self.config.pixel_decoder else out

    def encode(
        self,
        x: Float[Array, "b h w 3"],
        *,
        mask: Bool[Array, "b t"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Codes:
        """Ids b n 1, or latents b n c of a VAE (the mean without a key)."""
        quantized = self.quantize(self.latents(x), key=key)
        b = x.shape[0]
        size = jnp.full((b, 2), self.config.image_size, jnp.int32)
        mask = jnp.ones((b, self.config.tokens), bool)
        if self.spec.continuous:
            return Codes(latents=quantized.z, mask=mask, size=size)
        return Codes(ids=quantized.ids, mask=mask, size=size)

    def decode(
        self, codes: Codes, *, text: Float[Array, "b l e"] | None = None, key: PRNGKeyArray | None = None
    ) -> Float[Array, "b h w 3"]:
        """Image of the codes.

        Raises:
            InputError: for a stage-1 model, whose output are logits over a teacher's codes.
        """
        if self.config.legacy and not self.config.pixel_decoder:
            raise InputError(
                "this is a stage-1 TiTok without a pixel decoder; use decode_latents for its logits over "
                "MaskGIT-VQGAN codes, or load a stage-2 checkpoint"
            )
        if isinstance(self.quantize, DiagonalGaussian):
            assert codes.latents is not None
            return self.decode_latents(codes.latents, text)
        assert codes.ids is not None
        return self.decode_latents(self.quantize.lookup(codes.ids), text)

    def __call__(
        self,
        x: Float[Array, "b h w 3"],
        *,
        key: PRNGKeyArray | None = None,
        text: Float[Array, "b l e"] | None = None,
    ) -> tuple[Array, Quantized]:
        quantized = self.quantize(self.latents(x), key=key)
        return self.decode_latents(quantized.z, text), quantized
