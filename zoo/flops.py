"""FLOPs of a jax function, by XLA's count with every scan's body counted as often as it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun


def count(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of one call; a multiply-add is two. exp, erf and the like are not counted.

    Nothing is compiled or computed. Loops other than scans count once: their length is not known. With recomputation
    (remat) a gradient counts what is recomputed, and a few percent that XLA then finds not to be needed.

    Args:
        function: anything that jax.jit takes.
        *args: arrays, or jax.ShapeDtypeStruct in their place.
    """
    return _with_trips(jax.make_jaxpr(function)(*args))


def _with_trips(jaxpr: ClosedJaxpr) -> float:
    total = _once(jaxpr)
    for scan in _scans(jaxpr.jaxpr):
        body = scan.params["jaxpr"]
        total += scan.params["length"] * _with_trips(body) - _once(body)
    return total


def _once(jaxpr: ClosedJaxpr) -> float:
    """XLA's own count, before its optimizations."""
    args = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in jaxpr.in_avals]
    cost: Any = jax.jit(jaxpr_as_fun(jaxpr)).lower(*args).cost_analysis()
    return cost.get("flops", 0.0)


def _scans(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """The scans of a program, in the functions that it calls too, but not those inside other scans."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield eqn
            continue
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: isinstance(p, Jaxpr | ClosedJaxpr)):
            if isinstance(inner, ClosedJaxpr):
                yield from _scans(inner.jaxpr)
            elif isinstance(inner, Jaxpr):
                yield from _scans(inner)
