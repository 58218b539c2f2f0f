"""Vision transformer parts: pre-norm residual blocks and the way between pixels and patches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from zoo.nn.attention import NORMAL, Init, SelfAttention, bias_init

LAYER_NORM_EPS = 1e-5  # torch's default, which every model here was trained with


def layer_norm(width: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm in float32 with a two-pass variance."""
    return nnx.LayerNorm(width, epsilon=LAYER_NORM_EPS, use_fast_variance=False, rngs=rngs)


def linear(d_in: int, d_out: int, *, init: Init = NORMAL, dtype=None, rngs: nnx.Rngs) -> nnx.Linear:
    """Linear with weights normal(0.02) and zero biases by default, as ViT-type tokenizers have it."""
    return nnx.Linear(d_in, d_out, kernel_init=init, bias_init=bias_init(init, d_in), dtype=dtype, rngs=rngs)


def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Exact GELU, x/2 (1 + erf(x / sqrt 2)), at least in float32 as torch computes it.

    jax.nn.gelu goes through erfc, which takes 2.7 times as long on a CPU.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


class Mlp(nnx.Module):
    """Linear, exact (erf) GELU, Linear."""

    def __init__(self, width: int, hidden: int, *, init: Init = NORMAL, dtype=None, rngs: nnx.Rngs):
        self.up = linear(width, hidden, init=init, dtype=dtype, rngs=rngs)
        self.down = linear(hidden, width, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return self.down(gelu(self.up(x)))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, *, init: Init = NORMAL, dtype=None, rngs: nnx.Rngs):
        self.ln1 = layer_norm(width, rngs=rngs)
        self.attn = SelfAttention(width, heads, init=init, dtype=dtype, rngs=rngs)
        self.ln2 = layer_norm(width, rngs=rngs)
        self.mlp = Mlp(width, 4 * width, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], mask: Bool[Array, "b 1 t t"] | None = None) -> Float[Array, "b t d"]:
        x = x + self.attn(self.ln1(x), mask)
        return x + self.mlp(self.ln2(x))


class PatchEmbed(nnx.Module):
    """A convolution with kernel = stride = patch, written as one matmul over flattened (row, column, channel)."""

    def __init__(self, patch: int, width: int, *, init: Init = NORMAL, dtype=None, rngs: nnx.Rngs):
        self.patch = patch
        self.proj = linear(3 * patch * patch, width, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b (h w) d"]:
        p = self.patch
        return self.proj(rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p))


def unpatchify(x: Float[Array, "b n e"], patch: int, grid: tuple[int, int]) -> Float[Array, "b h w c"]:
    """Patches of (row, column, channel), row-major, back to an image."""
    return rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", h=grid[0], w=grid[1], p=patch, q=patch)
