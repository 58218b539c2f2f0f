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

from zoo import bench, bench_report, flops, presets
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
    monkeypatch.setattr(bench, "SECONDS", 0.01)
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
    monkeypatch.setattr(bench, "parts", lambda what: [bench.pairs, lambda: iter([bench.row("data", "c", "s", [1.0])])])
    status, out, err = run(capsys, "bench")
    assert (status, out, len(err)) == (0, "c: 1 s\n", 1), "the rest is measured"


def test_unknown_words_are_refused(capsys):
    status, _, err = run(capsys, "bench", "pair")
    assert status == 2 and "did you mean 'pairs'?" in err[0]


def test_turns_alternate():
    calls = []
    times = bench.in_turns(lambda: calls.append("a"), lambda: calls.append("b"))
    assert calls == ["a", "b"] * (bench.TURNS + 1)
    assert times.shape == (2, bench.TURNS) and (np.array(times) >= 0).all()


def test_report_says_what_was_missed_and_what_was_not_run():
    what, case, *_ = bench_report.GOALS[0]
    fast, slow = (bench.row(what, case, "images/s", [3.0], peer=1.0, peer_name="peer", ratios=[r]) for r in (1.5, 1.17))
    assert "| met |" in bench_report.markdown([fast]) and "missed" not in bench_report.markdown([fast])
    assert "| missed by 10% |" in bench_report.markdown([slow])
    cold = bench.row("cold", bench_report.GOALS[3][1], "s", [12.0, 11.0, 13.0])
    assert "| 12 (11 to 13) | missed by 20% |" in bench_report.markdown([cold])
    assert bench_report.markdown([]).count("| not run |") == len(bench_report.GOALS)


@pytest.mark.slow
def test_pairs(monkeypatch):
    """The peers are of our size, and each pair runs."""
    pytest.importorskip("diffusers")
    monkeypatch.setattr(bench, "PAIRED", dict.fromkeys(bench.PAIRED, 1))
    monkeypatch.setattr(bench, "TURNS", 1)
    rows = list(bench.pairs())
    assert [row["unit"] for row in rows] == (["parameters"] + 3 * ["images/s"]) * 2
    sizes = {row["case"].split()[0]: row["ratio"] for row in rows if row["unit"] == "parameters"}
    assert abs(sizes[bench.TITOK] - 1) < 0.001 and abs(sizes[bench.VQGAN] - 1) < 0.1, sizes
