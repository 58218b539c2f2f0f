"""Gradient estimators by their closed forms; soft assignment, entropies and search in blocks against dense ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import InputError
from zoo.quantize import (
    FSQ,
    LFQ,
    VQ,
    AdditiveVQ,
    CodeEntropy,
    DiVeQ,
    Entropy,
    Gumbel,
    IndexBackpropagation,
    Orthogonality,
    RotationTrick,
    StraightThrough,
    binary,
    soft,
)
from zoo.quantize.common import rows
from zoo.quantize.search import kmeans, nearest

RNG = np.random.default_rng(0)
N, K, D = 11, 7, 4
Z, CODES, UP = (RNG.normal(size=shape).astype(np.float32) for shape in ((N, D), (K, D), (N, D)))
IDS = ((Z[:, None] - CODES) ** 2).sum(-1).argmin(1)
Q = CODES[IDS]


@functools.partial(jax.jit, static_argnums=(0, 4))
def value_and_gradients(estimator, z, codes, key=None, dot=False):
    """(value, gradient of sum(value * UP) by z and by codes), of the chosen codes."""

    def output(z, codes):
        q = codes[estimator.choose(z, codes, dot=dot, key=key)]
        return estimator(z, q, codes, dot=dot, key=key)

    gradients = jax.grad(lambda *a: jnp.sum(output(*a) * UP), (0, 1))(z, codes)
    return output(z, codes), *gradients


# -- closed forms


@pytest.mark.parametrize("estimator", [StraightThrough(), RotationTrick(), DiVeQ(), IndexBackpropagation(), Gumbel()])
def test_without_a_key_the_value_is_the_code(estimator):
    np.testing.assert_array_equal(value_and_gradients(estimator, Z, CODES)[0], Q)


def test_straight_through():
    _, to_z, to_codes = value_and_gradients(StraightThrough(), Z, CODES)
    np.testing.assert_array_equal(to_z, UP)
    assert not np.any(to_codes)


def test_rotation_trick_is_a_rotation_and_a_stretch():
    """The transposed Jacobian |q|/|z| (I - 2 w w^T + 2 v u^T): it keeps the angle between gradient and code."""
    _, to_z, to_codes = value_and_gradients(RotationTrick(), Z, CODES)
    for z, q, up, got in zip(Z, Q, UP, to_z, strict=True):
        u, v = z / np.linalg.norm(z), q / np.linalg.norm(q)
        w = (u + v) / np.linalg.norm(u + v)
        jacobian = np.linalg.norm(q) / np.linalg.norm(z) * (np.eye(D) - 2 * np.outer(w, w) + 2 * np.outer(v, u))
        np.testing.assert_allclose(jacobian @ z, q, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got, jacobian.T @ up, rtol=1e-4, atol=1e-5)
        assert np.isclose(got @ z / np.linalg.norm(z) * np.linalg.norm(z), up @ q, rtol=1e-3, atol=1e-4)
    assert not np.any(to_codes)


def test_diveq_moves_along_the_error():
    _, to_z, to_codes = value_and_gradients(DiVeQ(), Z, CODES)
    direction = (Q - Z) / np.linalg.norm(Q - Z, axis=-1, keepdims=True)
    along = np.sum(direction * UP, -1, keepdims=True) * direction
    np.testing.assert_allclose(to_z, UP - along, rtol=1e-4, atol=1e-5)
    expected = np.zeros_like(CODES)
    np.add.at(expected, IDS, along)
    np.testing.assert_allclose(to_codes, expected, rtol=1e-4, atol=1e-5)


def test_diveq_with_a_key_lands_near_the_code():
    value = np.asarray(value_and_gradients(DiVeQ(variance=1e-4), Z, CODES, jax.random.key(0))[0])
    np.testing.assert_allclose(np.linalg.norm(value - Z, axis=-1), np.linalg.norm(Q - Z, axis=-1), rtol=1e-4)
    assert 0 < np.abs(value - Q).max() < 0.1


def dense(z, codes, dot, temperature, noise=0.0):
    """The softmax estimators as their papers write them, with all probabilities."""
    logits = z @ codes.T if dot else -jnp.sum((z[:, None] - codes) ** 2, -1)
    p = jax.nn.softmax((logits + noise) / temperature, -1)
    hard = jax.nn.one_hot(jnp.argmax(logits + noise, -1), len(codes))
    return (hard + p - jax.lax.stop_gradient(p)) @ codes


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("estimator", [IndexBackpropagation(), IndexBackpropagation(0.3), Gumbel(0.7)])
def test_softmax_estimators(estimator, dot):
    got = value_and_gradients(estimator, Z, CODES, None, dot)
    value = jax.jit(lambda z, codes: dense(z, codes, dot, estimator.temperature))
    gradients = jax.jit(jax.grad(lambda *a: jnp.sum(dense(*a, dot, estimator.temperature) * UP), (0, 1)))(Z, CODES)
    np.testing.assert_allclose(got[0], value(Z, CODES), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(got[1:], gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_gumbel_with_a_key_is_dense_gumbel_softmax():
    key = jax.random.key(3)
    noise = jax.random.gumbel(jax.random.fold_in(key, 0), (N, K))
    got = value_and_gradients(Gumbel(0.7), Z, CODES, key)
    gradients = jax.jit(jax.grad(lambda *a: jnp.sum(dense(*a, False, 0.7, noise) * UP), (0, 1)))(Z, CODES)
    for mine, theirs in zip(got[1:], gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_gumbel_samples_the_softmax():
    one = np.broadcast_to(Z[:1], (20_000, D))
    ids = np.asarray(jax.jit(lambda z, key: Gumbel().choose(z, CODES, key=key))(one, jax.random.key(0)))
    p = np.exp(-((Z[0] - CODES) ** 2).sum(-1))
    np.testing.assert_allclose(np.bincount(ids, minlength=K) / len(ids), p / p.sum(), atol=0.015)


def test_estimators_with_a_softmax_need_a_codebook():
    with pytest.raises(InputError, match="no codebook: give it StraightThrough"):
        FSQ([5, 5], estimator=IndexBackpropagation(), rngs=nnx.Rngs(0))(np.zeros((3, 2), np.float32))


@pytest.mark.parametrize("estimator", [RotationTrick(), DiVeQ()])
def test_other_estimators_go_with_any_quantizer(estimator):
    options = {"estimator": estimator, "rngs": nnx.Rngs(0)}
    for quantizer in (FSQ([5, 4], **options), LFQ(1, 2, **options)):
        run = jax.jit(lambda z, q=quantizer: (q(z).z, q.lookup(q(z).ids), jax.grad(lambda z: q(z).z.sum())(z)))
        value, looked_up, gradient = run(Z[:, :2])
        np.testing.assert_array_equal(value, looked_up)
        assert np.isfinite(gradient).all() and np.any(gradient)


# -- blocks


@pytest.mark.parametrize("block", [1, 3, 7, 50])
def test_soft_assignment_in_any_blocks(block):
    bias = RNG.normal(size=K).astype(np.float32)
    values = RNG.normal(size=(K, 3)).astype(np.float32)
    up = RNG.normal(size=(N, 3)).astype(np.float32)

    def blocked(z, codes, bias, values):
        args = (z, codes, bias, values, None, 0.5, block)
        return jax.lax.stop_gradient(soft.assigned(*args)[0]) + soft.gradient_only(*args)

    def whole(z, codes, bias, values):
        return jax.nn.softmax((z @ codes.T + bias) / 0.5, -1) @ values

    args = (Z, CODES, bias, values)
    for f in (lambda g: g, lambda g: jax.grad(lambda *a: jnp.sum(g(*a) * up), (0, 1, 2, 3))):
        mine, theirs = jax.jit(f(blocked))(*args), jax.jit(f(whole))(*args)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), mine, theirs)


@pytest.mark.parametrize("block", [3, 7])
def test_code_entropies_in_any_blocks(block):
    weights = np.where(np.arange(N) < 8, 1 / 8, 0).astype(np.float32)

    def blocked(z, codes):
        sample, mean = soft.entropy_sums(z, codes, jnp.zeros(K), weights, 0.2, block)
        return sample, binary.plogp(mean)

    def whole(z, codes):
        p = jax.nn.softmax(z @ codes.T / 0.2, -1)
        return weights @ -jnp.sum(jax.scipy.special.xlogy(p, p), -1), binary.plogp(weights @ p)

    def both(f):
        return jax.jit(lambda *a: (f(*a), jax.jacrev(f, (0, 1))(*a)))(Z, CODES)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), both(blocked), both(whole))


@pytest.mark.parametrize("bits", [1, 5, 13])
@pytest.mark.parametrize("pooling", ["per group", "pooled"])
def test_binary_entropies_are_those_of_all_codes(bits, pooling):
    """Against the softmax over all 2^b codes, materialised, and its gradient."""
    z = (0.05 * RNG.normal(size=(6, 2, bits))).astype(np.float32)
    mask = np.arange(6) < 5
    codes = 2.0 * ((np.arange(2**bits)[:, None] >> np.arange(bits)) & 1) - 1

    def ours(z):
        return [jnp.sum(x) for x in Entropy(0.1, pooling=pooling, epsilon=1e-5)(z, 1.0, mask)]

    def dense(z):
        log_p = jax.nn.log_softmax(2 * z[:5] @ codes.T / 0.1, -1)
        p = jnp.exp(log_p)
        mean = jnp.mean(p, (0, 1)) if pooling == "pooled" else jnp.mean(p, 0)
        return [jnp.sum(jnp.mean(-jnp.sum(p * log_p, -1), 0)), -jnp.sum(mean * jnp.log(mean + 1e-5))]

    def both(f):
        return jax.jit(lambda z: (f(z), jax.grad(lambda z: f(z)[0] - 0.7 * f(z)[1])(z)))(z)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), both(ours), both(dense))


def test_saturated_bits_have_no_entropy_and_a_finite_gradient():
    z = np.full((3, 1, 8), 50.0, np.float32) * np.where(np.arange(8) % 2, 1, -1)
    run = jax.jit(jax.value_and_grad(lambda z: sum(jnp.sum(x) for x in Entropy(0.01)(z, 1.0))))
    value, gradient = run(z)
    assert abs(value) < 1e-5 and np.isfinite(gradient).all()


# -- memory


def bytes_of(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def test_memory_of_entropies_of_18_bits():
    """4,096 vectors x 2^18 codes would be 4.3 GB; forward and backward stay below 100 numbers per vector and bit."""
    f = jax.grad(lambda z: sum(jnp.sum(x) for x in Entropy()(z, 1.0)))
    assert bytes_of(f, (4096, 1, 18)) < 4 * 4096 * 18 * 100


@pytest.mark.parametrize("kind", ["ibq", "entropy"])
def test_memory_of_large_soft_codebooks(kind):
    """512 vectors x 2^18 codes would be 537 MB for each of several intermediates."""
    codes = 2**18

    def loss(z, codebook):
        if kind == "entropy":
            return sum(CodeEntropy(dot=True)(z, None, codebook, None).values())
        return jnp.sum(IndexBackpropagation()(z, codebook[:512], codebook, dot=True) * z)

    assert bytes_of(jax.grad(loss, (0, 1)), (512, 8), (codes, 8)) < 12 * 4 * codes * 8


# -- regularizers and search


def test_orthogonality_is_the_mean_squared_cosine():
    unit = CODES / np.linalg.norm(CODES, axis=-1, keepdims=True)
    expected = np.mean((unit @ unit.T) ** 2) - 1 / K
    np.testing.assert_allclose(Orthogonality()(Z, IDS, CODES, None)["orthogonality"], expected, rtol=1e-5)
    used = np.unique(IDS[:4])
    expected = np.mean((unit[used] @ unit[used].T) ** 2) - 1 / len(used)
    mask = np.arange(N) < 4
    np.testing.assert_allclose(Orthogonality(active=True)(Z, IDS, CODES, mask)["orthogonality"], expected, rtol=1e-5)


def test_largest_dot_product():
    run = jax.jit(functools.partial(nearest, dot=True, block=3))
    np.testing.assert_array_equal(run(Z, CODES), (Z @ CODES.T).argmax(1))


def test_kmeans_is_lloyds_algorithm():
    means = CODES.astype(np.float64)
    for _ in range(5):
        ids = ((Z[:, None] - means) ** 2).sum(-1).argmin(1)
        means = np.stack([Z[ids == k].mean(0) if (ids == k).any() else means[k] for k in range(K)])
    got, sizes = jax.jit(lambda z, means: kmeans(z, means, 5))(Z, CODES)
    np.testing.assert_allclose(got, means, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(sizes, np.bincount(ids, minlength=K))


def test_rows_are_different_ones_that_count():
    mask = np.arange(N) % 2 == 0
    valid = {tuple(row) for row in Z[mask]}
    for key in (None, jax.random.key(0)):
        chosen = [tuple(row) for row in np.asarray(rows(Z, 5, mask=mask, key=key))]
        assert len(chosen) == len(set(chosen)) == 5 and set(chosen) <= valid
    np.testing.assert_array_equal(rows(Z, 5), Z[:5])
    np.testing.assert_array_equal(rows(Z, 4, mask=np.zeros(N, bool)), 0)
    few = np.asarray(rows(Z, N, mask=np.arange(N) < 3))
    np.testing.assert_array_equal(few, Z[np.arange(N) % 3])


# -- ids of scalars and signs, for any levels and groups


@settings(max_examples=15, deadline=None)
@given(st.data(), st.sampled_from([1, 3]), st.sampled_from([1, 2]), st.booleans())
def test_every_fsq_id_has_its_own_code(data, channels, groups, symmetric):
    levels = data.draw(st.lists(st.integers(2, 99), min_size=channels, max_size=channels))
    if not symmetric and 2 in levels:
        with pytest.raises(InputError, match="2 only if symmetric"):
            FSQ(levels, groups=groups, rngs=nnx.Rngs(0))
        return
    quantizer = FSQ(levels, groups=groups, symmetric=symmetric, rngs=nnx.Rngs(0))
    assert quantizer.vocab_sizes == (int(np.prod(levels)),) * groups
    seed = data.draw(st.integers(0, 2**32 - 1))
    ids = np.random.default_rng(seed).integers(0, quantizer.vocab_size, (64, groups), np.int32)
    ids[:2] = [[0], [quantizer.vocab_size - 1]]
    codes = np.asarray(quantizer.lookup(ids))
    assert np.abs(codes).max() <= 1
    inverse = np.arctanh(np.clip(codes, -1 + 1e-6, 1 - 1e-6)) if symmetric else _inverse(codes, np.tile(levels, groups))
    np.testing.assert_array_equal(quantizer(inverse.astype(np.float32)).ids, ids)
    channel = np.asarray(quantizer.levels_of(ids))[:, 0]
    np.testing.assert_array_equal(channel @ np.cumprod([1, *levels[:-1]]), ids[:, 0])  # the first is the fastest


def _inverse(codes, levels):
    """z in the middle of each code's interval, of the paper's formula."""
    half, offset = (levels - 1) * 1.001 / 2, np.where(levels % 2 == 0, 0.5, 0.0)
    return np.arctanh((codes * (levels // 2) + offset) / half) - np.arctanh(offset / half)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 8, 31]), st.sampled_from([1, 3]), st.booleans(), st.integers(0, 2**32 - 1))
def test_bits_and_ids_are_inverse(bits, groups, big_endian, seed):
    z = np.random.default_rng(seed).normal(size=(5, groups * bits)).astype(np.float32)
    signs = z.reshape(5, groups, bits) > 0
    ids = binary.to_ids(signs, big_endian)
    place = [1 << i for i in range(bits)][:: -1 if big_endian else 1]
    np.testing.assert_array_equal(ids, [[sum(p for p, s in zip(place, g, strict=True) if s) for g in v] for v in signs])
    np.testing.assert_array_equal(binary.to_bits(ids, bits, big_endian), signs)
    factors = [min(31, bits)] * groups
    np.testing.assert_array_equal(binary.regroup(ids, bits, factors, big_endian=big_endian), ids)


def test_regrouped_ids_hold_the_same_bits():
    ids = np.array([[0b101101, 0b110001]], np.int32)
    np.testing.assert_array_equal(binary.regroup(ids, 6, (4, 8)), [[0b1101, 0b11000110]])
    with pytest.raises(InputError, match=r"have 11 bits, the ids 2 x 6"):
        binary.regroup(ids, 6, (4, 7))


def test_too_many_bits_for_an_id():
    with pytest.raises(InputError, match="32 bits in one id.*use more groups"):
        LFQ(1, 32, rngs=nnx.Rngs(0))
    assert LFQ(2, 31, entropy=None, rngs=nnx.Rngs(0)).vocab_sizes == (2**31,) * 2


def test_direction_searches_by_angle_and_returns_the_code_as_it_is():
    vq = VQ(K, D, distance="direction", rngs=nnx.Rngs(0))
    vq.codebook[...] = CODES
    out = jax.jit(lambda z: vq(z))(Z)
    ids = (Z @ (CODES / np.linalg.norm(CODES, axis=-1, keepdims=True)).T).argmax(1)
    np.testing.assert_array_equal(out.ids[:, 0], ids)
    np.testing.assert_array_equal(out.z, CODES[ids])


def test_additive_search_with_a_full_beam_is_exhaustive():
    """Two books of 16 codes: the best of all 256 sums; beam 1 is the search of a residual quantizer, and worse."""
    z = RNG.normal(size=(200, D)).astype(np.float32)
    books = RNG.normal(size=(2, 16, D)).astype(np.float32)
    sums = (books[0][:, None] + books[1]).reshape(-1, D)
    nearest_sum = ((z[:, None].astype(np.float64) - sums) ** 2).sum(-1).argmin(1)

    @functools.partial(jax.jit, static_argnums=2)
    def search(z, books, beam):
        quantizer = AdditiveVQ(16, D, books=2, beam=beam, rngs=nnx.Rngs(0))
        quantizer.codebooks[...] = books
        return quantizer(z)

    full = search(z, books, 16)
    np.testing.assert_array_equal(np.asarray(full.ids) @ [16, 1], nearest_sum)
    np.testing.assert_array_equal(full.z, books[0][full.ids[:, 0]] + books[1][full.ids[:, 1]])
    greedy = ((z[:, None] - books[0]) ** 2).sum(-1).argmin(1)
    one = search(z, books, 1)
    np.testing.assert_array_equal(one.ids[:, 0], greedy)
    assert one.losses["commitment"] > 1.1 * full.losses["commitment"]
