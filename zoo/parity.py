"""`zoo parity`: runs cases that the original implementations computed, and compares every output.

A case is a folder with case.json, weights.safetensors and io.npz. Each output of case.json but those marked "info" is
computed here by the family's adapter (`outputs` in zoo/presets/<family>.py) and compared by itself.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo import presets
from zoo.convert import from_reference, read_weights
from zoo.errors import DataError
from zoo.parity_blocks import BLOCKS, KINKED
from zoo.parity_quantizers import QUANTIZERS, UnknownArgument
from zoo.parity_training import TRAINING
from zoo.presets.outputs import Ids

# Error = max |a - b| / max(max |b|, 1e-6); gradients: |a - b| / |b| in L2. Never loosened for one test.
FLOAT = 1e-5
DEEP = 5e-5
GRADIENT = 1e-3
NOISE_FACTOR = 2.0  # float64: at most twice the original's own float32 noise
MARGIN = 2e-5  # ids must agree where the winner leads by more than this share of the score's scale
UNDECIDABLE = 1e-3  # at most max(2, this share) of the ids may be closer than that
UINT8 = 1  # grey levels

CASE_KEYS = ("family", "case", "kind", "reference_config", "input", "outputs")


@dataclasses.dataclass
class Result:
    """One compared output. `error` and `limit` are in the unit of its check."""

    case: str
    output: str
    check: str
    error: float
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.limit


def float64() -> bool:
    """Whether JAX_ENABLE_X64 is on."""
    return jnp.result_type(float) == jnp.float64


class UnknownKind(Exception):
    """A case whose kind or family has no adapter here."""


def compute(case: dict[str, Any], io: dict[str, np.ndarray], folder: Path) -> dict[str, Any]:
    """Every output that the zoo computes for the case.

    Raises:
        UnknownKind: no adapter.
    """
    if float64():
        io = _double(io)
    if block := (BLOCKS | TRAINING | QUANTIZERS).get(case["kind"]):
        weights = dict(read_weights(folder / "weights.safetensors"))
        try:
            with jax.default_matmul_precision("highest"):
                return block(case, io, weights) | _kinked_gradients(case, io, weights)
        except UnknownArgument as error:
            raise UnknownKind(f"no quantizer here for {error}") from error
    if case["kind"] != "tokenizer" or case["family"] not in presets.FAMILIES:
        raise UnknownKind(f"unknown kind '{case['kind']}' of family '{case['family']}'")
    tokenizer = from_reference(case["family"], case["reference_config"], folder / "weights.safetensors")
    adapter = presets.family(case["family"]).outputs
    graph, state = nnx.split(tokenizer.module)
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda state: adapter(nnx.merge(graph, state), case, io))(state)


def _double(io: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in io.items()}


def _kinked_gradients(case: dict[str, Any], io: dict[str, np.ndarray], weights: Any) -> dict[str, Any]:
    """Gradients through ReLUs and max pooling, in float64, as exact arithmetic has them.

    They jump where an activation is 0 within float32's rounding: one such activation moved a gradient by 6e-3.
    """
    gradients = [name for name, about in case["outputs"].items() if about["check"] == "grad"]
    if case["kind"] not in KINKED or not gradients:
        return {}
    with jax.enable_x64(True):
        ours = BLOCKS[case["kind"]](case, _double(io), weights)
        return {name: np.asarray(ours[name]) for name in gradients if name in ours}


def read_case(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """case.json and the arrays of io.npz.

    Raises:
        DataError: one of them is missing or damaged, or an array that case.json names is not in io.npz.
    """
    path, hint = folder / "case.json", "copy the case again"
    try:
        case = json.loads(path.read_text(encoding="utf-8"))
        path = folder / "io.npz"
        with np.load(path, allow_pickle=False) as file:
            io = dict(file)
    except Exception as error:  # json, zipfile, zlib and numpy have each their own
        reason = (isinstance(error, OSError) and error.strerror) or f"damaged, {type(error).__name__}"
        raise DataError(f"cannot read {path} ({reason}); {hint}") from error
    if missing := [key for key in CASE_KEYS if key not in case]:
        raise DataError(f"{folder / 'case.json'} lacks {', '.join(missing)}; {hint}")
    compared = [name for name, about in case["outputs"].items() if about["check"] != "info"]
    if missing := [name for name in (*case["input"], *compared) if name not in io]:
        raise DataError(f"{path} lacks {', '.join(missing)}; {hint}")
    return case, io


def run_case(folder: Path) -> list[Result]:
    """Computes and compares every output of one case.

    Raises:
        UnknownKind: no adapter for its kind. DataError, WeightsError: the case is damaged.
    """
    case, io = read_case(folder)
    return compare_all(case, compute(case, io, folder), io)


def compare_all(case: dict[str, Any], ours: dict[str, Any], io: dict[str, np.ndarray]) -> list[Result]:
    """Every output but those marked "info", each by itself. One that is not computed fails."""
    name, results = f"{case['family']}/{case['case']}", []
    for output, about in case["outputs"].items():
        if about["check"] == "info":
            continue
        if output in ours:
            results.append(compare(name, output, about, case, ours[output], io[output]))
        else:
            results.append(Result(name, output, about["check"], np.inf, 0.0, "not computed"))
    return results


def compare(name: str, output: str, about: dict, case: dict, ours: Any, theirs: np.ndarray) -> Result:
    """One output against the stored one, by its check."""
    check = about["check"]
    if isinstance(ours, Ids):
        return _compare_ids(name, output, np.asarray(ours.ids), np.asarray(ours.margin), theirs)
    ours = np.asarray(ours)
    if ours.shape != theirs.shape:
        return Result(name, output, check, np.inf, 0.0, f"shape {ours.shape} instead of {theirs.shape}")
    if check == "uint8":
        return Result(name, output, check, float(np.abs(ours.astype(int) - theirs.astype(int)).max()), UINT8)
    if np.issubdtype(theirs.dtype, np.integer) or theirs.dtype == bool:
        return Result(name, output, check, float(np.sum(ours != theirs)), 0.0)
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return Result(name, output, check, np.inf, 0.0, "NaN in other places")
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    largest = np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-6)
    noise = case.get("noise64", {}).get(output)
    if float64() and noise is not None:
        return Result(name, output, check, float(largest), NOISE_FACTOR * noise)
    if check == "grad":
        return Result(name, output, check, float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12)), GRADIENT)
    return Result(name, output, check, float(largest), DEEP if check == "deep" else FLOAT)


def _compare_ids(name: str, output: str, ids: np.ndarray, margin: np.ndarray, theirs: np.ndarray) -> Result:
    """The number of wrong ids whose decision was clear; too many unclear ones fail as well."""
    if ids.shape != theirs.shape:
        return Result(name, output, "ids", np.inf, 0.0, f"shape {ids.shape} instead of {theirs.shape}")
    unclear = margin <= MARGIN
    wrong = float(np.sum((ids != theirs) & ~unclear))
    if unclear.sum() > max(2, UNDECIDABLE * ids.size):
        return Result(name, output, "ids", np.inf, 0.0, f"{unclear.sum()} of {ids.size} undecidable")
    return Result(name, output, "ids", wrong, 0.0, f"{unclear.sum()} undecidable" if unclear.any() else "")


def find_cases(folders: list[Path]) -> list[Path]:
    """The case folders in `folders`, each a case, a family or a folder of families; manifest/ is skipped.

    Raises:
        DataError: a folder without cases.
    """
    cases = []
    for folder in folders:
        found = sorted(p.parent for p in folder.rglob("case.json") if "manifest" not in p.relative_to(folder).parts)
        if not found:
            raise DataError(f"no parity case in {folder}; a case is a folder with case.json, io.npz and weights")
        cases += found
    return cases
