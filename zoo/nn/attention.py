"""The only attention of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

Init = Callable[..., Any]  # (key, shape, dtype) -> array
NORMAL = nnx.initializers.normal(0.02)
TORCH = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's default: U(+-1/sqrt(fan in))


def bias_init(init: Init, fan_in: int) -> Init:
    """The initial biases that go with a kernel's: torch's default draws them like the weights, all others are 0."""
    if init is not TORCH:
        return nnx.initializers.zeros_init()
    return lambda key, shape, dtype=jnp.float32, **_: jax.random.uniform(key, shape, dtype, -1, 1) * fan_in**-0.5


def attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h d"],
    mask: Bool[Array, "#b #h #t #s"] | None = None,
) -> Float[Array, "b t h d"]:
    """softmax(q k^T / sqrt(d)) v; `mask` is True where a query may look.

    bfloat16 and float16 on a GPU go through cuDNN where it takes the shape. Elsewhere scores and softmax are at least
    float32, and written out: the library's own is slower on a CPU and its float64 only good to 1.5e-7.
    """
    fits_cudnn = q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
    if fits_cudnn and q.dtype in (jnp.bfloat16, jnp.float16) and jax.default_backend() == "gpu":
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(wide).min / 2)  # finite: a row without any True stays so
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, -1).astype(q.dtype), v)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with packed q, k, v (rows in that order) and biases, as nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int, *, init: Init = NORMAL, dtype=None, rngs: nnx.Rngs):
        self.heads = heads
        xavier = nnx.initializers.xavier_uniform()
        self.qkv = nnx.Linear(width, 3 * width, kernel_init=xavier, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], mask: Bool[Array, "b 1 t t"] | None = None) -> Float[Array, "b t d"]:
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b t h d", three=3, h=self.heads)
        return self.out(rearrange(attention(q, k, v, mask), "b t h d -> b t (h d)"))
