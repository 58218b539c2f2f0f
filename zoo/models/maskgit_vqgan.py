"""MaskGIT-VQGAN: an image as a grid of 1024 codes (Chang et al. 2022, arXiv:2202.04200; 54.5 M parameters).

    image b h w 3 --conv--> levels of residual blocks, each but the last halved --> middle --1x1--> b h/16 w/16 256
    nearest of 1024 codes, row-major ids b (h/16 w/16) 1
    codes --3x3--> middle --> levels of residual blocks, each but the finest doubled --> norm, SiLU, 3x3 --> image

Facts that bite:
- Images are in [0, 1] both ways; the decoder is linear at the end, so clamp afterwards.
- Where the channels change, the 1x1 shortcut takes the OUTPUT of the second convolution, not the block's input:
  y = h + W h. The block's input does not reach the output there.
- Residual convolutions and the encoder's first one have no bias; all others have.
- GroupNorm eps is 1e-6. `decoder.up[0]` is the finest level and runs last.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from zoo.errors import InputError
from zoo.quantize.vq import VQ
from zoo.types import Codes, Quantized, Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskGitVqganConfig:
    """The defaults are the published checkpoint's.

    Attributes:
        image_size: the training size in pixels; every multiple of the stride works.
        width: channels of the finest level.
        multipliers: channels of each level as multiples of `width`, finest first.
        blocks: residual blocks per level, and in the middle.
        code_dim: channels of a code.
        vocab_size: codes.
        norm_groups: groups of every GroupNorm.
    """

    image_size: int = 256
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    code_dim: int = 256
    vocab_size: int = 1024
    norm_groups: int = 32

    @property
    def stride(self) -> int:
        """Pixels per code along one side."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def spec(self) -> Spec:
        return Spec(
            modality="image",
            input_shape=(self.image_size, self.image_size, 3),
            input_range=(0.0, 1.0),
            tokens=(self.image_size // self.stride) ** 2,
            vocab_size=self.vocab_size,
            size_multiple=self.stride,
        )

    def build(self, *, dtype=None, rngs: nnx.Rngs) -> MaskGitVqgan:
        return MaskGitVqgan(self, dtype=dtype, rngs=rngs)


def _conv(d_in: int, d_out: int, kernel: int, *, bias: bool, dtype, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(d_in, d_out, (kernel, kernel), use_bias=bias, dtype=dtype, rngs=rngs)


def _norm(width: int, groups: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(width, groups, epsilon=1e-6, use_fast_variance=False, rngs=rngs)


class ResBlock(nnx.Module):
    """norm, SiLU, 3x3, norm, SiLU, 3x3, plus the input or (where channels change) the output's own 1x1."""

    def __init__(self, d_in: int, d_out: int, groups: int, *, dtype, rngs: nnx.Rngs):
        self.norm1 = _norm(d_in, groups, rngs=rngs)
        self.conv1 = _conv(d_in, d_out, 3, bias=False, dtype=dtype, rngs=rngs)
        self.norm2 = _norm(d_out, groups, rngs=rngs)
        self.conv2 = _conv(d_out, d_out, 3, bias=False, dtype=dtype, rngs=rngs)
        if d_in != d_out:
            self.nin_shortcut = _conv(d_out, d_out, 1, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else x)


class EncoderLevel(nnx.Module):
    """Residual blocks, then a 2x2 average; an odd last row or column is dropped."""

    def __init__(self, d_in: int, d_out: int, config: MaskGitVqganConfig, *, halve: bool, dtype, rngs: nnx.Rngs):
        widths = [d_in] + [d_out] * config.blocks
        self.block = nnx.List(
            [ResBlock(a, b, config.norm_groups, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(widths)]
        )
        self.halve = halve

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        for block in self.block:
            x = block(x)
        if not self.halve:
            return x
        x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
        return reduce(x, "b (h p) (w q) c -> b h w c", "mean", p=2, q=2)


class Encoder(nnx.Module):
    """Image to code vectors."""

    def __init__(self, config: MaskGitVqganConfig, *, dtype=None, rngs: nnx.Rngs):
        widths = [config.width * m for m in (1, *config.multipliers)]
        last = len(config.multipliers) - 1
        self.conv_in = _conv(3, config.width, 3, bias=False, dtype=dtype, rngs=rngs)
        self.down = nnx.List(
            [
                EncoderLevel(widths[i], widths[i + 1], config, halve=i < last, dtype=dtype, rngs=rngs)
                for i in range(last + 1)
            ]
        )
        self.mid = nnx.List(
            [ResBlock(widths[-1], widths[-1], config.norm_groups, dtype=dtype, rngs=rngs) for _ in range(config.blocks)]
        )
        self.norm_out = _norm(widths[-1], config.norm_groups, rngs=rngs)
        self.conv_out = _conv(widths[-1], config.code_dim, 1, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 d"]:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class DecoderLevel(nnx.Module):
    """Residual blocks, then nearest x2 and a 3x3 convolution."""

    def __init__(self, d_in: int, d_out: int, config: MaskGitVqganConfig, *, double: bool, dtype, rngs: nnx.Rngs):
        widths = [d_in] + [d_out] * config.blocks
        self.block = nnx.List(
            [ResBlock(a, b, config.norm_groups, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(widths)]
        )
        if double:
            self.upsample_conv = _conv(d_out, d_out, 3, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        for block in self.block:
            x = block(x)
        if hasattr(self, "upsample_conv"):
            x = self.upsample_conv(repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2))
        return x


class Decoder(nnx.Module):
    """Code vectors to image. `up` is stored finest first, as in the original."""

    def __init__(self, config: MaskGitVqganConfig, *, dtype=None, rngs: nnx.Rngs):
        widths = [config.width * m for m in config.multipliers]
        self.conv_in = _conv(config.code_dim, widths[-1], 3, bias=True, dtype=dtype, rngs=rngs)
        self.mid = nnx.List(
            [ResBlock(widths[-1], widths[-1], config.norm_groups, dtype=dtype, rngs=rngs) for _ in range(config.blocks)]
        )
        inputs = [*widths[1:], widths[-1]]
        self.up = nnx.List(
            [
                DecoderLevel(inputs[i], widths[i], config, double=i > 0, dtype=dtype, rngs=rngs)
                for i in range(len(widths))
            ]
        )
        self.norm_out = _norm(widths[0], config.norm_groups, rngs=rngs)
        self.conv_out = _conv(widths[0], 3, 3, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, z: Float[Array, "b h2 w2 d"]) -> Float[Array, "b h w 3"]:
        x = self.conv_in(z)
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class MaskGitVqgan(nnx.Module):
    """The tokenizer of MaskGIT and RAR, and the teacher of TiTok's first stage. Images in [0, 1]."""

    def __init__(self, config: MaskGitVqganConfig, *, dtype=None, rngs: nnx.Rngs):
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.quantize = VQ(config.vocab_size, config.code_dim, rngs=rngs)
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)
        self.config = config
        self.spec = config.spec

    def latents(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 d"]:
        """What the quantizer gets."""
        return self.encoder(x)

    def decode_latents(self, z: Float[Array, "b h2 w2 d"]) -> Float[Array, "b h w 3"]:
        return self.decoder(z)

    def encode(self, x: Float[Array, "b h w 3"], *, mask: Bool[Array, "b t"] | None = None, key=None) -> Codes:
        """Ids in row-major order. h and w are multiples of the stride."""
        z = rearrange(self.encoder(x), "b h w d -> b (h w) d")
        ids = self.quantize(z).ids
        assert ids is not None
        size = jnp.broadcast_to(jnp.array(x.shape[1:3], jnp.int32), (x.shape[0], 2))
        return Codes(ids=ids, mask=jnp.ones(ids.shape[:2], bool), size=size)

    def decode(
        self, codes: Codes, *, size: tuple[int, int] | None = None, key: PRNGKeyArray | None = None
    ) -> Float[Array, "b h w 3"]:
        """`size` is the static (height, width) in pixels; square if None.

        Raises:
            InputError: the number of tokens is not that of the size, or not a square.
        """
        assert codes.ids is not None
        t, stride = codes.ids.shape[1], self.config.stride
        h, w = (s // stride for s in size) if size else (math.isqrt(t),) * 2
        if h * w != t:
            needed = f"{size[0]}x{size[1]} pixels are {h * w}" if size else "without a size, the image is square"
            raise InputError(f"{t} tokens; {needed}: give size=(height, width) with height * width = {t * stride**2}")
        return self.decoder(rearrange(self.quantize.lookup(codes.ids), "b (h w) d -> b h w d", h=h, w=w))

    def __call__(
        self, x: Float[Array, "b h w 3"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "b h w 3"], Quantized]:
        quantized = self.quantize(self.latents(x), key=key)
        return self.decode_latents(quantized.z), quantized

    def soft_codes(self, z: Float[Array, "b t d"], temperature: float = 1.0) -> Float[Array, "b t k"]:
        """softmax(-|z - e|^2 / temperature): soft targets for a student."""
        codebook = self.quantize.codebook[...]
        distances = jnp.sum(z**2, -1, keepdims=True) + jnp.sum(codebook**2, -1) - 2 * z @ codebook.T
        return jax.nn.softmax(-distances / temperature, -1)
