"""`zoo bench quantize`: every row of zoo.quantize.table beside the same scheme of vector-quantize-pytorch (PyPI).

    forward       ids and quantized vectors; the peer in evaluation mode and without gradients
    step          what training does with them: the same, the gradients of sum(z * up) and of the sum of the losses with
                  respect to the vectors and to the parameters, and the EMA update; the peer in training mode
    memory        of such a step, in a process of its own

Vectors are normal random numbers [8, n / 8, d] in float32.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo import bench_rows
from zoo.bench_rows import Row, in_turns, paired, peak_memory, repeated, row, threads
from zoo.errors import InputError
from zoo.quantize.common import assign
from zoo.quantize.table import SCHEMES, Scheme, scheme

# pyright: reportMissingImports=false
# (torch and vector-quantize-pytorch are an extra)

PACKAGE = "vector-quantize-pytorch"
CODES = (2**10, 2**14, 2**18)
CENTRAL = ("vq", "vq_ema", "vq_ema_l2", "simvq", "ibq", "fsq", "lfq")  # are measured with all of them, others with 1k
MEMORY = ("vq", "vq_ema", "simvq", "ibq", "fsq", "lfq")  # of these, with all of them
VECTORS = 4096
# at 2^18 codes: as many as the peer can take in 6 GB, since its vectors x codes matrices have 0.5 GB per 512 vectors
FEWER = {"vq": 512, "vq_ema": 512, "vq_ema_l2": 512, "ibq": 512, "lfq": 512, "simvq": 2048}
CHANNELS_FIRST = ("LatentQuantize",)
Calls = tuple[Callable[[], Any], Callable[[], Any] | None]  # forward and step; no step where nothing is trained


def quantize() -> Iterator[Row]:
    """Rates of all schemes, of the central ones with larger codebooks too, and memory on Linux' CPUs.

    Raises:
        InputError: torch or its vector-quantize-pytorch is missing.
    """
    versions = start(threads())
    for codes in CODES:
        for entry in SCHEMES:
            if codes == CODES[0] or entry.name in CENTRAL:
                for measured in rates(entry, codes):
                    yield measured | {"versions": measured["versions"] | versions}
    if jax.default_backend() == "cpu" and sys.platform == "linux":
        for codes in CODES:
            for name in MEMORY:
                measured = memory(scheme(name), codes)
                yield measured | {"versions": measured["versions"] | versions}


def number_of(name: str, codes: int) -> int:
    """How many vectors are quantized."""
    return FEWER.get(name, VECTORS) if codes == CODES[-1] else VECTORS


def start(threads: int) -> dict[str, str]:
    """Makes torch use `threads` threads; returns the versions of the peer by package.

    Raises:
        InputError: it is not installed.
    """
    from importlib.metadata import version

    try:
        import torch
        import vector_quantize_pytorch  # noqa: F401
    except ImportError as error:
        text = f"the quantizers' peers need {error.name}, which is not installed: pip install 'tokenizer-zoo[torch]'"
        raise InputError(text) from error
    torch.set_num_threads(threads)
    return {"torch": torch.__version__, PACKAGE: version(PACKAGE)}


def rates(entry: Scheme, codes: int) -> Iterator[Row]:
    """Vectors/s of one scheme, in turns with its peer where it has one."""
    number = number_of(entry.name, codes)
    z = vectors(entry, codes)
    mine = ours(entry, codes, z)
    theirs = None if entry.peer is None else peer(entry, codes, z)
    for i, what in enumerate(("forward", "step")):
        call, other = mine[i], None if theirs is None else theirs[i]
        case = f"{entry.name} {what}, {codes:,} codes, {number:,} vectors"
        if call and other:
            times = in_turns(call, other, 3 if codes > CODES[0] else bench_rows.TURNS)
            yield paired("quantize", case, "vectors/s", number, times, peer_name(entry, codes))
        elif call:
            yield row("quantize", case, "vectors/s", [number / s for s in repeated(call)])


def peer_name(entry: Scheme, codes: int) -> str:
    return entry.peer(codes)[0] if entry.peer else ""


def vectors(entry: Scheme, codes: int) -> np.ndarray:
    shape = (8, number_of(entry.name, codes) // 8, entry.width(codes))
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def ours(entry: Scheme, codes: int, z: np.ndarray) -> Calls:
    """The scheme's forward and step, which carries its state on."""
    graph, params, state = nnx.split(entry.make(codes, nnx.Rngs(0)), nnx.Param, ...)
    x = jax.device_put(z)

    @jax.jit
    def forward(params: Any, state: Any, x: jax.Array) -> Any:
        out = nnx.merge(graph, params, state)(x)
        return out.z, out.ids

    @functools.partial(jax.jit, donate_argnums=1)  # as the train step does
    def step(params: Any, state: Any, x: jax.Array, up: jax.Array, key: jax.Array) -> Any:
        def loss(params: Any, x: jax.Array) -> Any:
            out = nnx.merge(graph, params, state)(x, key=key)
            return jnp.sum(out.z * up) + sum(out.losses.values()), out

        gradients, out = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        module: Any = nnx.merge(graph, params, state)
        assign(module, module.update(out.stats, out.samples))
        return nnx.state(module, nnx.Not(nnx.Param)), (gradients, out.z, out.ids)

    up = jnp.ones(jax.eval_shape(forward, params, state, x)[0].shape)
    key = jax.random.key(0)
    jax.block_until_ready((params, state, x, up, key))

    def train() -> Any:
        nonlocal state
        state, rest = step(params, state, x, up, key)
        return rest

    return lambda: forward(params, state, x), train if entry.trains else None


def peer(entry: Scheme, codes: int, z: np.ndarray) -> Calls:
    """The peer's forward and step."""
    import torch
    import vector_quantize_pytorch

    assert entry.peer
    name, options = entry.peer(codes)
    torch.manual_seed(0)
    module = getattr(vector_quantize_pytorch, name)(**options)
    x = torch.from_numpy(z)
    x = (x.transpose(1, 2).contiguous() if name in CHANNELS_FIRST else x).requires_grad_()
    up = torch.ones_like(x)

    def forward() -> Any:
        module.eval()
        with torch.inference_mode():
            return module(x)

    def step() -> Any:
        module.train()
        module.zero_grad()
        x.grad = None
        out = module(x)
        loss = (out[0] * up).sum()
        for term in out[2:]:
            loss = loss + term.sum()
        loss.backward()
        return out

    return forward, step if entry.trains else None


# -- memory


def memory(entry: Scheme, codes: int) -> Row:
    """MiB that a step takes beyond imports, vectors and the quantizer itself; the ratio is the peer's to ours."""
    case = f"{entry.name} memory of a step, {codes:,} codes, {number_of(entry.name, codes):,} vectors"
    mine = [_apart(entry.name, codes, "ours")]
    if entry.peer is None:
        return row("quantize", case, "MiB", mine)
    theirs = _apart(entry.name, codes, "peer")
    extra = {"peer": theirs, "peer_name": peer_name(entry, codes), "ratios": [theirs / mine[0]]}
    return row("quantize", case, "MiB", mine, **extra)


def _apart(name: str, codes: int, whose: str) -> float:
    """`peak` in a process of its own, whose program is compiled already: ours runs twice with one compilation cache."""
    call = f"from zoo.bench_quantize import peak; print(peak({name!r}, {codes}, {whose!r}))"
    with tempfile.TemporaryDirectory() as folder:
        always = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}
        environment = os.environ | always | {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PLATFORMS": "cpu"}
        for _ in range(2 if whose == "ours" else 1):
            done = subprocess.run([sys.executable, "-c", call], env=environment, check=True, capture_output=True)
    return json.loads(done.stdout)


def peak(name: str, codes: int, whose: str) -> float:
    """MiB of resident memory that a first step takes beyond what the process holds before it."""
    entry = scheme(name)
    z = vectors(entry, codes)
    if whose == "peer":
        start(threads())
    step = (ours if whose == "ours" else peer)(entry, codes, z)[1]
    assert step
    return peak_memory(step)
