"""Quantizers: exact search, exact forward values, gradients and losses by their formulas, and any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo import quantize as zq
from zoo import sharding
from zoo.quantize.common import CodebookState, count, masked_mean, rows
from zoo.quantize.gaussian import DiagonalGaussian, kl_divergence, split_moments
from zoo.quantize.vq import VQ, l2_normalize, nearest

K, D = 12, 4
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(3, 5, D)).astype(np.float32)
CODES = RNG.normal(size=(K, D)).astype(np.float32)
MASK = np.arange(5) < np.array([[5], [2], [0]])


def make(codebook=CODES, **options):
    graph, _ = nnx.split(nnx.eval_shape(lambda: VQ(*codebook.shape, **options, rngs=nnx.Rngs(0))))
    arrays = {"codebook": jnp.asarray(codebook)}
    if options.get("clustering"):
        arrays["embed_prob"] = jnp.zeros(len(codebook))
    return nnx.merge(graph, arrays)


@functools.partial(jax.jit, static_argnames="l2_norm")
def quantize(codebook, z, mask=None, *, l2_norm=False):
    vq = make(codebook, l2_norm=l2_norm)
    out = vq(z, mask=mask)
    return out, vq.lookup(out.ids)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def brute_force(z, codes):
    return ((z[..., None, :].astype(np.float64) - codes) ** 2).sum(-1).argmin(-1)


# -- the search


@pytest.mark.parametrize("k", [1, 6, 7, 8, 50])
def test_nearest_is_brute_force_in_any_blocks(k):
    z, codes = RNG.normal(size=(200, 3)).astype(np.float32), RNG.normal(size=(k, 3)).astype(np.float32)
    ids = jax.jit(functools.partial(nearest, block=7))(z, codes)
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, brute_force(z, codes))


@pytest.mark.parametrize("block", [3, 4, 64])
def test_the_first_of_equal_codes_wins(block):
    """Within a block, across blocks, and where the last block overlaps the one before."""
    codes = np.array([[9.0, 9], [1, 2], [5, 5], [1, 2], [1, 2], [5, 5], [1, 2], [5, 5]], np.float32)
    ids = jax.jit(functools.partial(nearest, block=block))(codes, codes)
    np.testing.assert_array_equal(ids, [0, 1, 2, 1, 1, 2, 1, 2])


def test_memory_does_not_grow_with_the_codebook():
    """8,192 vectors and 262,144 codes: all distances at once would be 8.6 GB."""
    f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    memory = jax.jit(nearest).lower(f32((8192, 16)), f32((262_144, 16))).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 300e6


def test_bfloat16_gives_the_ids_of_the_same_values_in_float32():
    z = jnp.asarray(RNG.normal(size=(4, 500, D)), jnp.bfloat16)
    half, full = quantize(CODES, z)[0], quantize(CODES, z.astype(jnp.float32))[0]
    np.testing.assert_array_equal(half.ids, full.ids)
    np.testing.assert_array_equal(half.z, full.z)
    assert half.z.dtype == jnp.float32


def test_nan_gives_id_zero_and_stays_visible():
    z = Z.copy()
    z[1, 2, 0] = np.nan
    out, _ = quantize(CODES, z)
    good = quantize(CODES, Z)[0]
    assert out.ids[1, 2, 0] == 0 and np.isnan(out.z[1, 2, 0])
    assert np.isnan(out.losses["commitment"]) and np.isnan(out.losses["codebook"])
    others = np.arange(15) != 7
    np.testing.assert_array_equal(np.ravel(out.ids)[others], np.ravel(good.ids)[others])


# -- VQ


@pytest.mark.parametrize("l2_norm", [False, True])
def test_forward_is_the_code_bit_for_bit(l2_norm):
    z = RNG.normal(size=(64, 50, D)).astype(np.float32)  # the usual z + sg(q - z) fails on a third of these
    out, looked_up = quantize(CODES, z, l2_norm=l2_norm)
    codes = unit(CODES) if l2_norm else CODES
    np.testing.assert_array_equal(out.z, looked_up)
    np.testing.assert_array_equal(out.ids[..., 0], brute_force(unit(z) if l2_norm else z, codes))
    np.testing.assert_allclose(out.z, codes[out.ids[..., 0]], rtol=1e-6)


def test_l2_codes_are_unit_and_stored_as_they_are():
    out, looked_up = quantize(5 * CODES, Z, l2_norm=True)
    np.testing.assert_allclose(np.linalg.norm(looked_up, axis=-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(make(5 * CODES, l2_norm=True).codebook[...], 5 * CODES)
    same, _ = quantize(CODES, 3 * Z, l2_norm=True)  # neither length matters
    np.testing.assert_array_equal(same.ids, out.ids)
    np.testing.assert_allclose(same.losses["commitment"], out.losses["commitment"], rtol=1e-5)


def test_losses_and_their_gradients_are_the_formulas():
    target = RNG.normal(size=Z.shape).astype(np.float32)

    @jax.jit
    def gradients(codebook, z):
        def term(name):
            def f(codebook, z):
                out = make(codebook)(z)
                return jnp.sum(out.z * target) if name == "z" else out.losses[name]

            return jax.value_and_grad(f, (0, 1))(codebook, z)

        return {name: term(name) for name in ("z", "commitment", "codebook")}

    ids = brute_force(Z, CODES)
    difference = Z - CODES[ids]
    to_codes = np.zeros_like(CODES)
    np.add.at(to_codes, ids, 2 * -difference / Z.size)
    zero_codes, zero_z = np.zeros_like(CODES), np.zeros_like(Z)
    expected = {
        "z": (
            np.sum(CODES[ids] * target),
            (zero_codes, target),
        ),  # straight through: identity to z, nothing to the codes
        "commitment": (np.mean(difference**2), (zero_codes, 2 * difference / Z.size)),
        "codebook": (np.mean(difference**2), (to_codes, zero_z)),
    }
    computed = gradients(CODES, Z)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), computed, expected)


def test_l2_gradient_at_zero_is_finite():
    grad = jax.jit(jax.grad(lambda x: jnp.sum(l2_normalize(x) * jnp.arange(1.0, 5))))
    assert np.isfinite(grad(jnp.zeros((2, D)))).all()
    x = Z[0, 0]
    n = np.linalg.norm(x)
    projected = (np.eye(D) - np.outer(x, x) / n**2) / n @ np.arange(1.0, 5)
    np.testing.assert_allclose(grad(x), projected, rtol=1e-5)
    np.testing.assert_array_equal(jax.jit(l2_normalize)(np.zeros(3, np.float32)), 0)


def test_masked_positions_count_nowhere():
    out, _ = quantize(CODES, Z, MASK)
    changed, _ = quantize(CODES, np.where(MASK[..., None], Z, 100), MASK)
    alone, _ = quantize(CODES, Z[MASK])
    for name in ("commitment", "codebook"):
        np.testing.assert_allclose(out.losses[name], alone.losses[name], rtol=1e-6)
        np.testing.assert_array_equal(out.losses[name], changed.losses[name])
    np.testing.assert_array_equal(out.stats["counts"], alone.stats["counts"])
    np.testing.assert_array_equal(changed.stats["counts"], alone.stats["counts"])
    nothing, _ = quantize(CODES, Z, np.zeros_like(MASK))
    assert nothing.losses["commitment"] == 0 and nothing.stats["counts"].sum() == 0


def test_counts():
    out, _ = quantize(CODES, Z)
    counts = out.stats["counts"]
    assert counts.shape == (1, K) and counts.dtype == jnp.int32 and counts.sum() == Z[..., 0].size
    np.testing.assert_array_equal(counts[0], np.bincount(np.ravel(out.ids), minlength=K))
    np.testing.assert_array_equal(
        count(jnp.array([[0, 2], [2, 2]]), 3, jnp.array([[True, True], [False, True]])), [1, 0, 2]
    )
    x = jnp.arange(6.0).reshape(1, 3, 2)
    assert (
        masked_mean(x, None) == 2.5 and masked_mean(x, jnp.array([[True, False, True]])) == 2.5 == (0 + 1 + 4 + 5) / 4
    )


@pytest.mark.parametrize("l2_norm", [False, True])
def test_a_codebook_from_data_holds_different_rows_of_it(l2_norm):
    draw = jax.jit(lambda z, key: make(l2_norm=l2_norm).codebook_from(z, key))
    rows = {tuple(row) for row in np.asarray(l2_normalize(Z) if l2_norm else Z).reshape(-1, D).round(5).tolist()}
    for seed in (0, 1):
        codes = [tuple(row) for row in np.asarray(draw(Z, jax.random.key(seed))).round(5).tolist()]
        assert len(codes) == len(set(codes)) == K and set(codes) <= rows
    few = np.asarray(draw(Z[0], jax.random.key(0)))  # 5 vectors for 12 codes: each two or three times
    _, times = np.unique(few.round(5), axis=0, return_counts=True)
    assert sorted(times) == [2, 2, 2, 3, 3]
    assert not np.array_equal(draw(Z, jax.random.key(0)), draw(Z, jax.random.key(1)))


def test_the_usage_estimate_is_no_parameter():
    vq = make(clustering=True)
    assert isinstance(vq.embed_prob, CodebookState)
    assert list(nnx.to_pure_dict(nnx.state(vq, nnx.Param))) == ["codebook"]


@pytest.mark.parametrize("l2_norm", [False, True])
def test_eight_devices_equal_one(l2_norm):
    z = RNG.normal(size=(8, 6, D)).astype(np.float32)
    mask = RNG.random((8, 6)) < 0.7

    def loss(codebook, z, mask):
        out = make(codebook, l2_norm=l2_norm)(z, mask=mask)
        total = out.losses["codebook"] + 0.25 * out.losses["commitment"] + jnp.mean(jnp.sin(out.z))
        return total, (out.losses, out.stats, out.ids)

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    one = step(CODES, z, mask)
    mesh = sharding.make_mesh(8)
    codes = jax.device_put(CODES, sharding.replicate(mesh, CODES))
    many = step(codes, *sharding.put_batch(mesh, (z, mask)))
    assert len(many[1][1].sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-8), one, many)
    np.testing.assert_array_equal(one[0][1][1]["counts"], many[0][1][1]["counts"])


# -- Gaussian


H = RNG.normal(size=(2, 5, 2 * D)).astype(np.float32)
MEAN, LOGVAR = np.split(H, 2, -1)
gaussian = jax.jit(lambda h, key=None, mask=None: DiagonalGaussian()(h, key=key, mask=mask))


def test_gaussian_without_a_key_is_the_mean():
    out = gaussian(H)
    np.testing.assert_array_equal(out.z, MEAN)
    np.testing.assert_array_equal(DiagonalGaussian().continuous(H), MEAN)
    assert out.ids is None and not out.stats


def test_gaussian_samples_have_the_mean_and_deviation():
    many = np.broadcast_to(H[:1, :1], (1, 20_000, 2 * D))
    z = np.asarray(gaussian(many, jax.random.key(0)).z)[0]
    deviation = np.exp(LOGVAR[0, 0] / 2)
    np.testing.assert_allclose(z.mean(0), MEAN[0, 0], atol=5 * deviation.max() / 20_000**0.5)
    np.testing.assert_allclose(z.std(0), deviation, rtol=0.03)
    noise = RNG.normal(size=MEAN.shape).astype(np.float32)
    np.testing.assert_allclose(DiagonalGaussian().sample(H, noise), MEAN + np.exp(LOGVAR / 2) * noise, rtol=1e-5)


def test_kl_is_the_formula_summed_per_sample():
    kl = 0.5 * (MEAN**2 + np.exp(LOGVAR) - 1 - LOGVAR)
    np.testing.assert_allclose(kl_divergence(MEAN, LOGVAR), kl.sum(-1), rtol=1e-5)
    np.testing.assert_allclose(gaussian(H).losses["kl"], kl.sum() / 2, rtol=1e-5)  # a batch of 2
    mask = np.arange(5) < np.array([[3], [1]])
    np.testing.assert_allclose(gaussian(H, None, mask).losses["kl"], kl[mask].sum() / 2, rtol=1e-5)
    assert gaussian(np.zeros_like(H)).losses["kl"] == 0


def test_logvar_is_clamped():
    extreme = np.array([0, 0, -1e4, 1e4], np.float32)
    np.testing.assert_array_equal(split_moments(extreme)[1], [-30, 20])
    out = gaussian(np.broadcast_to(extreme, (1, 3, 4)), jax.random.key(0))
    assert np.isfinite(out.z).all() and np.isfinite(out.losses["kl"])
    half = split_moments(jnp.asarray(H, jnp.bfloat16))
    assert half[0].dtype == half[1].dtype == jnp.float32


def test_rotation_of_nearly_opposite_vectors_has_a_bounded_axis():
    z, q = jnp.array([[1.0, 0.0]]), jnp.array([[-1.0, 2e-7]])
    gradient = jax.grad(lambda z: jnp.sum(zq.RotationTrick()(z, q) * jnp.array([1.0, 0.0])))(z)
    u, v = z, q / jnp.linalg.norm(q)
    w = (u + v) / 1e-6  # its norm is below 1e-6, the least that is divided by
    np.testing.assert_allclose(gradient, jnp.array([[1, 0]]) - 2 * w[0, 0] * w + 2 * v[0, 0] * u, rtol=1e-4, atol=1e-6)


def test_rotated_fsq_of_unequal_scales_scales_first():
    scale = [1.0, 0.25, 0.5]
    plain = zq.FSQ([5, 5, 5], symmetric=True, rotate=True, rngs=nnx.Rngs(0))
    scaled = zq.FSQ([5, 5, 5], symmetric=True, rotate=True, scale=scale, rngs=nnx.Rngs(0))
    z = jax.random.normal(jax.random.key(0), (20, 3))
    out, expected = scaled(z * jnp.array(scale)), plain(z)
    np.testing.assert_array_equal(out.ids, expected.ids)
    np.testing.assert_allclose(out.z, expected.z * jnp.array(scale), rtol=1e-6)


def test_few_valid_vectors_replace_many_dead_codes_in_turn():
    z, mask = jnp.arange(8.0)[:, None], jnp.arange(8) < 3
    np.testing.assert_array_equal(rows(z, 10, mask=mask)[:, 0], np.arange(10) % 3)
