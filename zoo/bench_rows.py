"""How `zoo bench` measures, and the rows that it writes.

A measurement runs once to warm up, then at least `RUNS` times and until `SECONDS` have passed; the median counts.
Inputs are on the device before, and results are waited for. A pair takes turns.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

Row = dict[str, Any]  # see `row`
SECONDS, RUNS, TURNS = 3.0, 3, 7
PACKAGES = ("tokenizer-zoo", "jax", "jaxlib", "flax", "numpy")


def repeated(call: Callable[[], Any]) -> list[float]:
    """Seconds of each call after one that does not count."""
    jax.block_until_ready(call())
    times: list[float] = []
    while len(times) < RUNS or sum(times) < SECONDS:
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return times


def in_turns(ours: Callable[[], Any], theirs: Callable[[], Any], turns: int) -> np.ndarray:
    """Seconds [2, turns] of ours, theirs, ours, theirs, ... after one turn that does not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns + 1):
        for call, column in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            column.append(time.perf_counter() - start)
    return np.array(times)[:, 1:]


def peak_memory(call: Callable[[], Any]) -> float:
    """MiB of resident memory that a call takes at its peak beyond what the process has before it; on Linux."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free but still resident goes, or the call would take it unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    jax.block_until_ready(call())
    return _status("VmHWM") - before


def _status(field: str) -> float:
    """MiB, of Linux' account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 2**10


def row(
    what: str,
    case: str,
    unit: str,
    ours: Sequence[float],
    *,
    peer: float | None = None,
    peer_name: str | None = None,
    ratios: Sequence[float] = (),
) -> Row:
    """One measurement from its runs.

    A row has what ("models", ...), case, unit, ours, peer, peer_name, ratio (above 1: ours is better; None without a
    peer), spread (lowest and highest of the runs: of ratio where there is a peer, else of ours), device, threads, load
    (programs that ran or waited to run in the last minute, ours included) and versions.
    """
    runs = ratios or ours
    return {
        "what": what,
        "case": case,
        "unit": unit,
        "ours": statistics.median(ours),
        "peer": peer,
        "peer_name": peer_name,
        "ratio": statistics.median(ratios) if ratios else None,
        "spread": [min(runs), max(runs)],
        "device": device(),
        "threads": threads(),
        "load": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
    }


def paired(what: str, case: str, unit: str, items: float, times: np.ndarray, peer_name: str) -> Row:
    """Rates from the seconds of `in_turns` for `items` items."""
    ours, theirs = times.tolist()
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    peer = items / statistics.median(theirs)
    return row(what, case, unit, [items / s for s in ours], peer=peer, peer_name=peer_name, ratios=ratios)


def device() -> str:
    """The device by its maker's name."""
    kind = jax.devices()[0].device_kind
    info = Path("/proc/cpuinfo")
    if kind != "cpu" or not info.is_file():
        return kind
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"cpu ({names[0]})" if names else kind


def threads() -> int:
    """Of XLA on a CPU, which takes every core that this process may use; torch is told the same number."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def line(row: Row) -> str:
    """A row for people."""
    peer = "" if row["peer"] is None else f"  {row['ratio']:.3g} x {row['peer_name']} ({row['peer']:,.4g})"
    return f"{row['case']}: {row['ours']:,.4g} {row['unit']}{peer}"
