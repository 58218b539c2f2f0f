"""Soft assignment to a codebook, block by block: memory is n x block forward and backward, whatever k is.

    logits_nk = z_n . e_k + b_k [+ Gumbel noise]        p_n = softmax(logits_n / temperature)

The online softmax of FlashAttention (Dao et al. 2022, arXiv:2205.14135, algorithm 1), over codes.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from zoo.quantize.search import block_of, first_minimum


def _logits(z: Array, codes: Array, bias: Array, key: PRNGKeyArray | None, index: Array) -> Array:
    logits = z @ codes.T + bias
    if key is None:
        return logits
    return logits + jax.random.gumbel(jax.random.fold_in(key, index), logits.shape, logits.dtype)


def _blocks(n: int, codes: Array, bias: Array, values: Array | None, block: int | None) -> tuple[Any, Any]:
    """Codes, biases and values as [blocks, block, ...], padded by codes of bias -inf. And the blocks' numbers.

    A block holds `block_of(n)` codes for n vectors, if it is None.
    """
    k = codes.shape[0]
    block = min(block or block_of(n), k)
    pad = -k % block

    def cut(x: Array, fill: float) -> Array:
        x = jnp.pad(x, ((0, pad), *((0, 0),) * (x.ndim - 1)), constant_values=fill)
        return x.reshape(-1, block, *x.shape[1:])

    parts = cut(codes, 0), cut(bias, -jnp.inf), None if values is None else cut(values, 0)
    return parts, jnp.arange((k + pad) // block)


def assigned(
    z: Float[Array, "n d"],
    codes: Float[Array, "k d"],
    bias: Float[Array, " k"],
    values: Float[Array, "k v"],
    key: PRNGKeyArray | None = None,
    temperature: float = 1.0,
    block: int | None = None,
) -> tuple[Float[Array, "n v"], Float[Array, " n"]]:
    """The mean of the values under softmax(logits / temperature), with Gumbel noise on the logits if there is a key.
    And the logarithm of the softmax's normaliser."""

    def body(state: Any, item: Any) -> tuple[Any, None]:
        highest, total, mean = state
        (codes, bias, values), index = item
        logits = _logits(z, codes, bias, key, index) / temperature
        new = jnp.maximum(highest, jnp.max(logits, -1))
        weights, shrink = jnp.exp(logits - new[:, None]), jnp.exp(highest - new)
        return (new, total * shrink + jnp.sum(weights, -1), mean * shrink[:, None] + weights @ values), None

    n = z.shape[0]
    start = (jnp.full(n, -jnp.inf, z.dtype), jnp.zeros(n, z.dtype), jnp.zeros((n, values.shape[1]), z.dtype))
    (highest, total, mean), _ = jax.lax.scan(body, start, _blocks(len(z), codes, bias, values, block))
    return mean / total[:, None], highest + jnp.log(total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def gradient_only(
    z: Float[Array, "n d"],
    codes: Float[Array, "k d"],
    bias: Float[Array, " k"],
    values: Float[Array, "k v"],
    key: PRNGKeyArray | None = None,
    temperature: float = 1.0,
    block: int | None = None,
) -> Float[Array, "n v"]:
    """Zeros with the gradient of `assigned`, which is only computed where one is taken."""
    return jnp.zeros((len(z), values.shape[1]), z.dtype)


def _forward(
    z: Array, codes: Array, bias: Array, values: Array, key: Any, temperature: float, block: int | None
) -> tuple[Array, Any]:
    out, log_total = assigned(z, codes, bias, values, key, temperature, block)
    return jnp.zeros_like(out), (z, codes, bias, values, key, out, log_total)


def _backward(temperature: float, block: int | None, saved: Any, gradient: Array) -> tuple[Any, ...]:
    z, codes, bias, values, key, out, log_total = saved
    along = jnp.sum(gradient * out, -1, keepdims=True)

    def body(grad_z: Array, item: Any) -> tuple[Array, Any]:
        (codes, bias, values), index = item
        p = jnp.exp(_logits(z, codes, bias, key, index) / temperature - log_total[:, None])
        to_logits = p * (gradient @ values.T - along) / temperature
        return grad_z + to_logits @ codes, (to_logits.T @ z, jnp.sum(to_logits, 0), p.T @ gradient)

    grad_z, grads = jax.lax.scan(body, jnp.zeros_like(z), _blocks(len(z), codes, bias, values, block))
    return (grad_z, *(g.reshape(-1, *g.shape[2:])[: len(codes)] for g in grads), None)


gradient_only.defvjp(_forward, _backward)


def sampled(
    z: Float[Array, "n d"],
    codes: Float[Array, "k d"],
    bias: Float[Array, " k"],
    key: PRNGKeyArray,
    block: int | None = None,
) -> Int[Array, " n"]:
    """A code of softmax(logits) for each vector: the largest logit with the noise that `assigned` adds with the key."""

    def body(best: Any, item: Any) -> tuple[Any, None]:
        (codes, bias, _), index = item
        least, winner = first_minimum(-_logits(z, codes, bias, key, index))
        better = least < best[0]
        winner += index.astype(jnp.int32) * len(codes)
        return (jnp.where(better, least, best[0]), jnp.where(better, winner, best[1])), None

    start = (jnp.full(z.shape[0], jnp.inf, z.dtype), jnp.zeros(z.shape[0], jnp.int32))
    return jax.lax.scan(body, start, _blocks(len(z), codes, bias, None, block))[0][1]


def entropy_sums(
    z: Float[Array, "n d"],
    codes: Float[Array, "k d"],
    bias: Float[Array, " k"],
    weights: Float[Array, " n"],
    temperature: float = 1.0,
    block: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, " k"]]:
    """Of p = softmax(logits / temperature), weighted sums over n: of each row's entropy in nats, and of p itself."""
    parts = _blocks(len(z), codes / temperature, bias / temperature, None, block)

    @jax.checkpoint
    def normalize(total: Array, item: Any) -> tuple[Array, None]:
        (codes, bias, _), index = item
        return jnp.logaddexp(total, jax.nn.logsumexp(_logits(z, codes, bias, None, index), -1)), None

    log_total = jax.lax.scan(normalize, jnp.full(z.shape[0], -1e30, z.dtype), parts)[0]

    @jax.checkpoint
    def body(entropy: Array, item: Any) -> tuple[Array, Array]:
        (codes, bias, _), index = item
        log_p = jnp.maximum(_logits(z, codes, bias, None, index) - log_total[:, None], -1e4)  # exp of it is 0
        p = jnp.exp(log_p)
        return entropy - weights @ jnp.sum(p * log_p, -1), weights @ p

    entropy, sums = jax.lax.scan(body, jnp.zeros((), z.dtype), parts)
    return entropy, sums.reshape(-1)[: len(codes)]
