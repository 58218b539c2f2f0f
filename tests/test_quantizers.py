"""Every scheme of zoo/quantize/table.py: exact codes, gradients, masks, precision, devices, accumulation, purity."""

import functools
import importlib
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import schemes
from flax import nnx

from zoo import quantize, sharding, types
from zoo.errors import InputError
from zoo.quantize import table
from zoo.quantize.common import Module, assigned_copy
from zoo.quantize.estimators import Estimator
from zoo.quantize.gaussian import Continuous
from zoo.quantize.projected import Wrapper

CODES, BATCH, TOKENS = 16, 8, 8
BASES = {Continuous, Wrapper}  # that nobody makes
NAMES = [scheme.name for scheme in table.SCHEMES]
ON_DEVICES = ("vq_ema", "ibq", "lfq", "residual")  # the others are slow tests


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, rtol=2e-5, atol=1e-7):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@functools.cache
def built(name):
    """(scheme, graph, state, z, mask), the codes spread as z is."""
    scheme = table.scheme(name)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: scheme.make(CODES, nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    fixed = {"cluster_size": 1.0, "batch_seen": 0.0, "codebook_seen": 0.0, "batch_mean": 0.0, "codebook_mean": 0.0}

    def fill(path, leaf):
        value = fixed.get(next((str(key.key) for key in reversed(path) if str(getattr(key, "key", "")) in fixed), ""))
        return jnp.asarray(rng.normal(size=leaf.shape) if value is None else np.full(leaf.shape, value), leaf.dtype)

    state = jax.tree_util.tree_map_with_path(fill, shapes)
    z = rng.normal(size=(BATCH, TOKENS, scheme.width(CODES))).astype(np.float32)
    mask = rng.random((BATCH, TOKENS)) < 0.7
    return scheme, graph, state, z, mask


def forward(graph, state, z, mask=None, key=None):
    quantizer = nnx.merge(graph, state)
    out = quantizer(z, mask=mask, key=key)
    new = quantizer.update(out.stats, out.samples)
    return out, new


@functools.cache
def compiled(name):
    """Everything of a scheme in one program: (state, z, mask) -> results."""
    scheme, graph, _, _, _ = built(name)

    def run(state, z, mask):
        quantizer = nnx.merge(graph, state)

        def loss(z):
            out, new = forward(graph, state, z, mask)
            total = jnp.sum(out.z * jnp.cos(jnp.arange(out.z.size).reshape(out.z.shape)))
            return total + sum(weight * out.losses.get(k, 0.0) for k, weight in scheme.weights.items()), (out, new)

        (_, (out, new)), gradient = jax.value_and_grad(loss, has_aux=True)(z)
        half = z.astype(jnp.bfloat16)
        results = {"out": out, "new": new, "gradient": gradient, "half": quantizer(half, mask=mask).ids}
        results["same"] = quantizer(half.astype(jnp.float32), mask=mask).ids
        if out.ids is not None:
            results["looked_up"] = quantizer.lookup(out.ids)
        return results

    return jax.jit(run)


@pytest.fixture(scope="module", params=schemes.rows())
def scheme(request):
    """(name, results for all of z)."""
    _, _, state, z, mask = built(request.param)
    return request.param, compiled(request.param)(state, z, mask)


# -- the table


def test_every_quantizer_estimator_and_regularizer_is_in_the_table():
    """A new quantizer is one file and one row: this fails without the row."""
    exported = {value for name in quantize.__all__ if inspect.isclass(value := getattr(quantize, name))}
    kinds = (Module, Estimator)
    in_files = set()
    for path in Path(quantize.__file__).parent.glob("*.py"):
        module = importlib.import_module(f"zoo.quantize.{path.stem}")
        own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
        in_files |= {c for c in own if issubclass(c, kinds) and c not in kinds}
    assert in_files - exported <= BASES, "not exported by zoo/quantize/__init__.py"
    used = set()
    for name in NAMES:
        for _, node in nnx.iter_graph(nnx.merge(*built(name)[1:3])):
            used |= {type(node), type(getattr(node, "estimator", None))}
            used |= {type(regularizer) for regularizer in getattr(node, "regularizers", ())}
    assert {c for c in exported if issubclass(c, kinds)} <= used
    assert len(set(NAMES)) == len(NAMES)


def test_rows_hold_about_the_codes_that_are_asked_for():
    for row in table.SCHEMES:
        for codes in (64, 4096):
            sizes = nnx.eval_shape(lambda row=row, codes=codes: row.make(codes, nnx.Rngs(0))).vocab_sizes
            if sizes and row.name != "binary":
                assert all(codes / 1.5 < size < codes * 1.5 for size in sizes), (row.name, sizes)


# -- what every scheme holds


def test_codes(scheme):
    name, results = scheme
    out, quantizer = results["out"], nnx.merge(*built(name)[1:3])
    assert isinstance(quantizer, types.Quantizer)
    assert out.z.dtype == jnp.float32 and np.isfinite(out.z).all()
    assert all(loss.shape == () and np.isfinite(loss) for loss in out.losses.values())
    assert set(table.scheme(name).weights) <= set(out.losses) or "commitment" in table.scheme(name).weights
    if out.ids is None:
        assert quantizer.vocab_sizes == ()
        return
    assert out.ids.dtype == jnp.int32 and out.ids.shape == (BATCH, TOKENS, len(quantizer.vocab_sizes))
    assert (out.ids >= 0).all() and (out.ids < np.array(quantizer.vocab_sizes)).all()
    np.testing.assert_array_equal(out.z, results["looked_up"])


def test_gradient_is_finite_and_not_zero(scheme):
    name, results = scheme
    gradient = results["gradient"]
    assert np.isfinite(gradient).all()
    assert np.any(gradient != 0) or name == "random_projection"


def test_bfloat16_gives_the_ids_of_the_same_values(scheme):
    results = scheme[1]
    assert_equal(results["half"], results["same"])


def test_masked_items_change_nothing(scheme):
    name, results = scheme
    _, _, state, z, mask = built(name)
    if name == "multiscale":  # a pooled vector would average other positions
        mask = np.repeat(mask[:, ::4], 4, 1)
        results = compiled(name)(state, z, mask)
    other = compiled(name)(state, np.where(mask[..., None], z, z[::-1] + 3), mask)
    assert_close(results["out"].losses, other["out"].losses, rtol=1e-6)
    assert_close(results["new"], other["new"], rtol=1e-6, atol=1e-7)
    for key in ("counts", "sums"):
        if key in results["out"].stats:
            assert_close(results["out"].stats[key], other["out"].stats[key])
    nothing = compiled(name)(state, z, np.zeros_like(mask))
    assert all(np.isfinite(value) for value in nothing["out"].losses.values())
    kept = nnx.state(assigned_copy(nnx.merge(*built(name)[1:3]), nothing["new"]))
    assert_equal(leaves(kept), leaves(state))


def test_one_by_one_equals_the_batch(scheme):
    name, results = scheme
    _, _, state, z, mask = built(name)
    if results["out"].ids is None:
        return
    single = compiled(name)(state, np.repeat(z[3:4], BATCH, 0), np.repeat(mask[3:4], BATCH, 0))
    np.testing.assert_array_equal(single["out"].ids[0], results["out"].ids[3])
    assert_close(single["out"].z[0], results["out"].z[3], rtol=1e-6)


def test_nan_and_inf_give_ids_in_range(scheme):
    name, results = scheme
    _, _, state, z, mask = built(name)
    if results["out"].ids is None:
        return
    bad = z.copy()
    bad[0, 0], bad[1, 1, 0], bad[2, 2, 0], bad[3, 3, 0] = np.nan, np.nan, np.inf, -np.inf
    out = compiled(name)(state, bad, mask)["out"]
    sizes = np.array(nnx.merge(*built(name)[1:3]).vocab_sizes)
    assert (out.ids >= 0).all() and (out.ids < sizes).all()
    if name != "random_projection":  # its z takes no gradient path through the input
        assert np.isnan(out.z[0, 0]).any()
    good = np.ones((BATCH, TOKENS), bool)
    good[[0, 1, 2, 3], [0, 1, 2, 3]] = False
    if name != "multiscale":
        np.testing.assert_array_equal(out.ids[good], results["out"].ids[good])


def test_update_and_initialize_are_pure(scheme):
    name, results = scheme
    _, graph, state, z, _ = built(name)
    before = [leaf.copy() for leaf in leaves(state)]
    quantizer = nnx.merge(graph, jax.tree.map(jnp.copy, state))
    mine = [leaf.copy() for leaf in leaves(nnx.state(quantizer))]
    jax.eval_shape(quantizer.update, results["out"].stats, results["out"].samples)
    jax.eval_shape(quantizer.initialize, z)
    for a, b in zip(mine, leaves(nnx.state(quantizer)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert_equal(before, leaves(state))
    if results["new"]:
        moved = assigned_copy(quantizer, results["new"])
        assert jax.tree.structure(nnx.state(moved)) == jax.tree.structure(nnx.state(quantizer))


# -- the state


STATEFUL = ("vq_ema", "product", "residual", "vq_ema_l2", "vq_affine", "vq_mimi", "residual_shared", "split")


@pytest.mark.parametrize("name", schemes.rows(STATEFUL))
def test_accumulation_steps_equal_the_batch(name):
    """Stats of parts add up to those of the whole; so does the state they lead to."""
    _, graph, state, z, mask = built(name)
    whole = compiled(name)(state, z, mask)
    first, second = (compiled(name)(state, np.concatenate([part, part]), np.concatenate([m, 0 * m]).astype(bool))
                     for part, m in zip(np.split(z, 2), np.split(mask, 2), strict=True))  # fmt: skip
    total = jax.tree.map(np.add, first["out"].stats, second["out"].stats)
    assert_close(total, whole["out"].stats, rtol=1e-5, atol=1e-5)
    quantizer = nnx.merge(graph, state)
    assert_close(quantizer.update(total, whole["out"].samples), whole["new"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", schemes.rows(quick=ON_DEVICES))
def test_eight_devices_equal_one(name):
    _, _, state, z, mask = built(name)
    one = compiled(name)(state, z, mask)
    mesh = sharding.make_mesh(8)
    replicated = jax.device_put(state, sharding.replicate(mesh, state))
    many = compiled(name)(replicated, *sharding.put_batch(mesh, (z, mask)))
    assert len(many["gradient"].sharding.device_set) == 8
    assert_equal(one["out"].ids, many["out"].ids)
    for key in ("out", "new", "gradient"):
        assert_close(one[key], many[key], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ("vq_ema", "simvq", "lfq", "fsq", "residual_fsq"))
def test_vmap_equals_the_batch(name):
    _, graph, state, z, _ = built(name)
    quantizer = nnx.merge(graph, state)
    run = jax.jit(lambda z: (quantizer(z).ids, jax.vmap(lambda one: quantizer(one).ids)(z)))
    assert_equal(*run(z))


def test_initialize_starts_from_k_means():
    """Codes at the means of separate clusters, whatever the first vectors are, and both layers of a residual."""
    rng = np.random.default_rng(0)
    centres = 10 * rng.normal(size=(8, 16))
    z = (centres[rng.integers(0, 8, 400)] + 0.1 * rng.normal(size=(400, 16))).astype(np.float32)
    for make in (quantize.VQ, quantize.EMAVQ, quantize.MimiVQ):

        @jax.jit
        def start(z, key, make=make):
            vq = make(32, 16, rngs=nnx.Rngs(0))
            return assigned_copy(vq, vq.initialize(z, key=key)).codes()

        distance = np.linalg.norm(np.asarray(start(z, jax.random.key(1)))[:, None] - centres, axis=-1)
        assert distance.min(0).max() < 0.2, make.__name__  # each centre has a code


def test_dead_codes_become_vectors_of_the_batch():
    vq = quantize.EMAVQ(64, 4, dead_below=0.75, decay=0.5, rngs=nnx.Rngs(0))
    graph, state = nnx.split(vq)
    z = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)

    @jax.jit
    def step(state, key):
        vq = nnx.merge(graph, state)
        out = vq(z, key=key)
        return vq.update(out.stats, out.samples), out.stats["counts"][0]

    new, counts = step(state, jax.random.key(0))
    dead = np.asarray(counts) == 0  # their average is 0.5, that of the others at least 1
    assert dead.sum() > 20
    codebook, rows = np.asarray(new["codebook"]), {tuple(row) for row in z}
    assert [tuple(code) in rows for code in codebook] == dead.tolist()
    assert len({tuple(code) for code in codebook[dead]}) == min(dead.sum(), len(z))  # without repetition
    np.testing.assert_array_equal(np.asarray(new["cluster_size"])[dead], 0.75)
    np.testing.assert_allclose(np.asarray(new["embed_sum"])[dead], 0.75 * codebook[dead], rtol=1e-6)
    assert not np.array_equal(step(state, jax.random.key(1))[0]["codebook"], codebook)


# -- residual quantizers


def residual_of(layers, **options):
    rngs = nnx.Rngs(0)
    return quantize.Residual([quantize.EMAVQ(16, 4, rngs=rngs) for _ in range(layers)], **options)


def test_dropped_layers_are_zeros_and_leave_their_state():
    residual = residual_of(4, dropout=quantize.QuantizerDropout(least=1, multiple_of=2))
    z = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    numbers = set()

    @jax.jit
    def run(key):
        out = residual(z, key=key)
        new = residual.update(out.stats, out.samples)["quantizers"]
        moved = [jnp.any(new[i]["codebook"] != q.codebook[...]) for i, q in enumerate(residual.quantizers)]
        return out, moved, residual.lookup(out.ids), [residual.lookup(out.ids[..., :n]) for n in (2, 4)]

    for seed in range(6):
        out, moved, looked_up, prefixes = run(jax.random.key(seed))
        ids = np.asarray(out.ids)
        number = int((ids[0, 0] >= 0).sum())
        numbers.add(number)
        assert (ids[..., number:] == -1).all() and (ids[..., :number] >= 0).all()
        np.testing.assert_array_equal(out.z, looked_up)
        np.testing.assert_array_equal(out.z, prefixes[number // 2 - 1])  # a prefix decodes
        assert [bool(m) for m in moved] == [i < number for i in range(4)]
    assert numbers == {2, 4}


def test_without_a_key_no_layer_is_dropped():
    _, graph, state, z, mask = built("residual")
    assert nnx.merge(graph, state).dropout
    assert (np.asarray(compiled("residual")(state, z, mask)["out"].ids) >= 0).all()


def test_per_item_dropout_draws_a_number_for_each():
    dropout = quantize.QuantizerDropout(per_item=True, share=0.5)
    number = np.asarray(jax.jit(lambda key: dropout.draw(key, 4000, 8))(jax.random.key(0)))
    assert set(np.unique(number)) == set(range(1, 9))
    assert abs((number == 8).mean() - (0.5 + 0.5 / 8)) < 0.03
    residual, z = residual_of(3), np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    run = jax.jit(lambda n: residual.collect(z, residual.each(z, number=n), n).ids)
    kept = np.asarray(run(jnp.array([1, 2, 3]))) >= 0
    assert [kept[i].sum(-1).tolist() for i in range(3)] == [[1] * 5, [2] * 5, [3] * 5]


def test_each_layer_lowers_the_error():
    z = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)

    @jax.jit
    def errors(z):
        fitted = residual_of(4)
        fitted = assigned_copy(fitted, fitted.initialize(z))
        ids = fitted(z).ids
        return [jnp.mean((z - fitted.lookup(ids[..., :n])) ** 2) for n in range(1, 5)]

    values = [float(error) for error in errors(z)]
    assert all(b < 0.6 * a for a, b in zip(values, values[1:], strict=False))


def test_multiscale_ids_are_compact_and_spread():
    quantizer = nnx.merge(*built("multiscale")[1:3])
    ids = jnp.arange(2 * 8 * 3).reshape(2, 8, 3)
    compact = quantizer.compact(ids)
    assert [part.shape for part in compact] == [(2, 2, 1), (2, 4, 1), (2, 8, 1)]
    again = quantizer.spread(compact)
    assert_equal(quantizer.compact(again), compact)
    np.testing.assert_array_equal(again[..., 2], ids[..., 2])
    np.testing.assert_array_equal(again[0, :, 0], [0, 0, 0, 0, 12, 12, 12, 12])
    with pytest.raises(InputError, match="no multiple of the stride 4"):
        quantizer(np.zeros((2, 6, 16), np.float32))
