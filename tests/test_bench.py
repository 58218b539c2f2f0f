"""`zoo bench`: FLOPs are counted through scans, rows have the promised form, a missing torch is one line."""

import dataclasses
import json
import math
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from fixtures import run
from flax import nnx

from zoo import bench, bench_quantize, bench_report, bench_rows, flops, presets
from zoo.nn.stack import Stack
from zoo.nn.vit import Block
from zoo.quantize.vq import nearest

KEYS = ["what", "case", "unit", "ours", "peer", "peer_name", "ratio", "spread", "device", "threads", "load", "versions"]
QUICK = bench.Plan(models=("a.b",), batches=(2,), trained={"a.b": 2}, batch=2, dtype="float32")


@pytest.fixture
def quick(monkeypatch):
    """Bench of one tiny model, each measurement as short as it gets."""
    preset = dataclasses.replace(presets.get(bench.TINY), name="a.b", config=tiny.CONFIGS["titok_vq"])
    monkeypatch.setattr(presets, "get", lambda name: preset)
    monkeypatch.setattr(bench, "CPU", QUICK)
    monkeypatch.setattr(bench_rows, "SECONDS", 0.01)
    return monkeypatch


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: jax.grad(f, (0, 1))], ids=["forward", "gradient"])
def test_flops_of_a_scanned_stack_are_those_of_its_blocks(wrap):
    depth, x = 3, jax.ShapeDtypeStruct((2, 5, 16), jnp.float32)
    stack = nnx.eval_shape(lambda: Stack(lambda rngs: Block(16, 2, rngs=rngs), depth, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(stack)
    inner, _ = nnx.split(stack.block)

    def scanned(state, x):
        return jnp.sum(nnx.merge(graph, state)(x))

    def unrolled(state, x):
        for i in range(depth):
            x = nnx.merge(inner, jax.tree.map(lambda p: p[i], state["block"]))(x)  # noqa: B023
        return jnp.sum(x)

    ours, expected = (flops.count(wrap(function), state, x) for function in (scanned, unrolled))
    assert abs(ours / expected - 1) < 0.03, (ours, expected)  # gradients of slices are padded and added
    once = jax.jit(wrap(scanned)).lower(state, x).cost_analysis()["flops"]
    assert once < 0.6 * ours, "XLA alone counts one block"


def test_flops_of_nested_scans_and_of_blocks_of_codes():
    w = jnp.ones((8, 8))

    def nested(x):
        def inner(x, _):
            return x @ w, None

        def outer(x, _):
            return jax.lax.scan(inner, x, length=5)[0], None

        return jax.lax.scan(outer, x, length=7)[0]

    x = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    matmuls = 35 * 2 * 4 * 8 * 8
    assert matmuls <= flops.count(nested, x) < 1.01 * matmuls + 100  # the loops' own counters
    z, codes = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((256, 32), jnp.float32)
    whole, parts = (flops.count(lambda z, c, n=n: nearest(z, c, block=n), z, codes) for n in (256, 32))
    assert abs(parts / whole - 1) < 0.05
    assert whole > 2 * 64 * 32 * 256


@pytest.mark.parametrize(
    "what, count", [("models", 1 + 2 * 4), ("data", 2), pytest.param("train", 5, marks=pytest.mark.slow)]
)
def test_rows(quick, what, count, tmp_path, capsys):
    """Of a tiny model, through the command."""
    if what == "data":  # the train step takes long to compile
        quick.setattr(bench, "_step", lambda *_: (lambda: time.sleep(0.001), [], 0.0))
    file = tmp_path / "new" / "bench.json"
    status, out, _ = run(capsys, "bench", what, "--json", str(file))
    rows = json.loads(file.read_text())
    assert status == 0 and len(rows) == count == len(out.splitlines())
    for row in rows:
        assert list(row) == KEYS and row["what"] == what and "a.b" in row["case"] + (row["peer_name"] or "")
        assert row["ours"] > 0 and math.isfinite(row["ours"]) and row["threads"] >= 1
        assert row["spread"][0] <= (row["ratio"] or row["ours"]) <= row["spread"][1]
        assert (row["peer"] is None) == (row["peer_name"] is None) == (row["ratio"] is None)
        assert {"python", "jax", "tokenizer-zoo"} <= set(row["versions"])
    if what == "models":
        weights = nnx.state(tiny.random_module(tiny.CONFIGS["titok_vq"]), nnx.Param)
        assert rows[0]["ours"] == sum(leaf.size for leaf in jax.tree.leaves(weights))


def test_without_torch_the_pairs_are_one_line(quick, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    status, out, err = run(capsys, "bench", "pairs")
    assert (status, out, len(err)) == (1, "", 1) and "pip install 'tokenizer-zoo[torch]'" in err[0]
    monkeypatch.setattr(
        bench, "parts", lambda what: [bench.pairs, lambda: iter([bench_rows.row("data", "c", "s", [1.0])])]
    )
    status, out, err = run(capsys, "bench")
    assert (status, out, len(err)) == (0, "c: 1 s\n", 1), "the rest is measured"


def test_unknown_words_are_refused(capsys):
    status, _, err = run(capsys, "bench", "pair")
    assert status == 2 and "did you mean 'pairs'?" in err[0]


def test_turns_alternate():
    calls = []
    times = bench_rows.in_turns(lambda: calls.append("a"), lambda: calls.append("b"), 4)
    assert calls == ["a", "b"] * 5
    assert times.shape == (2, 4) and (np.array(times) >= 0).all()


def test_report_says_what_was_missed_and_what_was_not_run():
    what, case, *_ = bench_report.GOALS[0]
    fast, slow = (
        bench_rows.row(what, case, "images/s", [3.0], peer=1.0, peer_name="peer", ratios=[r]) for r in (1.5, 1.17)
    )
    assert "| met |" in bench_report.markdown([fast]) and "missed" not in bench_report.markdown([fast])
    assert "| missed by 10% |" in bench_report.markdown([slow])
    cold = bench_rows.row("cold", bench_report.GOALS[3][1], "s", [12.0, 11.0, 13.0])
    assert "| 12 (11 to 13) | missed by 20% |" in bench_report.markdown([cold])
    assert bench_report.markdown([]).count("| not run |") == len(bench_report.GOALS) + 5  # of the quantizers


def test_report_of_quantizers():
    """The median of the schemes, the slowest of all rows, and the memory of those that compare with codes."""

    def pair(case, ratio, unit="vectors/s"):
        return bench_rows.row("quantize", case, unit, [1.0], peer=1.0, peer_name="P", ratios=[ratio])

    steps = [pair(f"{name} step, 1,024 codes, 4,096 vectors", r) for name, r in (("a", 1.2), ("b", 1.8), ("c", 3.0))]
    slow = pair("a step, 262,144 codes, 512 vectors", 0.9)
    memory = [
        pair(f"{n} memory of a step, 262,144 codes, 512 vectors", r, "MiB") for n, r in (("a", 21.0), ("fsq", 1.0))
    ]
    alone = bench_rows.row("quantize", "d step, 1,024 codes, 4,096 vectors", "vectors/s", [5.0])
    page = bench_report.markdown([*steps, slow, *memory, alone])
    goals = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "| quantizers," in line]
    assert [cells[2:] for cells in goals] == [
        ["not run", ""],
        ["1.8 (3 rows)", "met"],
        ["not run", ""],
        ["0.9 (4 rows)", "missed by 10%"],
        ["21 (1 rows)", "met"],
    ]
    assert page.count("## Quantizers") == 1 and "| d step, 1,024 codes, 4,096 vectors | 5 vectors/s |  |  |" in page


@pytest.fixture
def small(monkeypatch):
    for name, value in {"VECTORS": 64, "FEWER": {}, "CODES": (16, 64), "CENTRAL": (), "MEMORY": ()}.items():
        monkeypatch.setattr(bench_quantize, name, value)
    monkeypatch.setattr(bench_rows, "SECONDS", 0.01)
    monkeypatch.setattr(bench_rows, "TURNS", 1)
    return monkeypatch


def test_quantizer_rows(small, capsys, tmp_path):
    """Of a scheme that is learned by averages and of one that is not trained and has no peer, through the command."""
    nothing = lambda *_: None  # noqa: E731
    small.setattr(bench_quantize, "peer", lambda *_: (nothing, nothing))
    small.setattr(bench_quantize, "start", lambda threads: {"vector-quantize-pytorch": "0"})
    small.setattr(bench_quantize, "SCHEMES", [bench_quantize.scheme(name) for name in ("vq_ema", "standardized")])
    status, _, _ = run(capsys, "bench", "quantize", "--json", str(tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert status == 0 and all(list(row) == KEYS for row in rows)
    assert [(row["case"], row["peer_name"]) for row in rows] == [
        ("vq_ema forward, 16 codes, 64 vectors", "VectorQuantize"),
        ("vq_ema step, 16 codes, 64 vectors", "VectorQuantize"),
        ("standardized forward, 16 codes, 64 vectors", None),
    ]
    assert "vector-quantize-pytorch" in rows[0]["versions"]


def test_a_step_gives_gradients_and_moves_the_averages(small):
    entry = bench_quantize.scheme("vq_ema")
    forward, step = bench_quantize.ours(entry, 16, bench_quantize.vectors(entry, 16))
    before = np.asarray(forward()[0])
    (_, gradient), z, ids = step()
    assert step and (np.asarray(gradient) != 0).any() and z.shape == gradient.shape and ids.shape == (8, 8, 1)
    assert not np.array_equal(before, forward()[0]), "the codebook has moved"


@pytest.mark.slow
def test_memory_of_both():
    """In processes of their own: the peer's matrix of vectors x codes, and nothing like it here."""
    pytest.importorskip("vector_quantize_pytorch")
    row = bench_quantize.memory(bench_quantize.scheme("vq"), 2**14)  # 4,096 x 16,384 x 4 bytes are 256 MiB
    assert row["unit"] == "MiB" and 0 < row["ours"] < 256 < row["peer"]


@pytest.mark.slow
def test_every_peer_has_the_sizes_of_its_scheme():
    """As many ids for each vector, of codebooks of the same size; and its step gives the vectors a gradient."""
    pytest.importorskip("vector_quantize_pytorch")
    for entry in bench_quantize.SCHEMES:
        if entry.peer:
            z = np.random.default_rng(0).standard_normal((2, 8, entry.width(16)), np.float32)
            forward, step = bench_quantize.peer(entry, 16, z)
            out = forward()
            assert step is None or step()[0].requires_grad, entry.name
            ids = out[1] if isinstance(out, tuple) else out
            quantizer = nnx.eval_shape(lambda: entry.make(16, nnx.Rngs(0)))  # noqa: B023
            assert ids.numel() == 16 * len(quantizer.vocab_sizes), entry.name
            assert int(ids.max()) < max(quantizer.vocab_sizes), entry.name


@pytest.mark.slow
def test_pairs(monkeypatch):
    """The peers are of our size, and each pair runs."""
    pytest.importorskip("diffusers")
    monkeypatch.setattr(bench, "PAIRED", dict.fromkeys(bench.PAIRED, 1))
    monkeypatch.setattr(bench_rows, "TURNS", 1)
    rows = list(bench.pairs())
    assert [row["unit"] for row in rows] == (["parameters"] + 3 * ["images/s"]) * 2
    sizes = {row["case"].split()[0]: row["ratio"] for row in rows if row["unit"] == "parameters"}
    assert abs(sizes[bench.TITOK] - 1) < 0.001 and abs(sizes[bench.VQGAN] - 1) < 0.1, sizes
