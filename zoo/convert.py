"""Between the reference's state dict and our modules: strict both ways, bit-equal, without torch.

    tokenizer = from_reference("titok", config, "model.safetensors")     # a reference config and its weights
    weights = to_reference(tokenizer)                                    # name -> array, for users of the original

Every tensor must be consumed and every leaf filled with the right shape; what does not fit is listed by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo import presets
from zoo.errors import WeightsError
from zoo.presets.rules import Entry, Rule, plan, reference_shapes
from zoo.tokenizer import Tokenizer

SHOWN = 5  # names listed per kind of mismatch


def from_reference(family: str, config: dict[str, Any], weights: Mapping[str, np.ndarray] | str | Path) -> Tokenizer:
    """Builds a tokenizer from the original's config and weights.

    Args:
        family: a name in zoo.presets.FAMILIES.
        config: the original's own config, as in a parity case's reference_config or a checkpoint's config.json.
        weights: reference name -> array, or the path of a .safetensors or .npz file.

    Returns:
        A tokenizer with float32 parameters, float64 under JAX_ENABLE_X64.

    Raises:
        PresetError: unknown family.
        WeightsError: unreadable file, or names and shapes that do not fit, listed both ways.
    """
    module = presets.family(family)
    return from_config(family, module.config_from_reference(config), weights)


def from_config(
    family: str, config: Any, weights: Mapping[str, np.ndarray] | str | Path, *, name: str | None = None
) -> Tokenizer:
    """As `from_reference`, with our own config dataclass."""
    module = filled(lambda: config.build(rngs=nnx.Rngs(0)), presets.family(family).rules(config), weights)
    return Tokenizer(module, name=name or family, family=family)


def filled(
    build: Callable[[], nnx.Module], rules: list[Rule], weights: Mapping[str, np.ndarray] | str | Path
) -> nnx.Module:
    """What `build` makes, with the reference's weights instead of its own.

    Raises:
        WeightsError: as `from_reference`.
    """
    if isinstance(weights, str | Path):
        weights = read_weights(weights)
    graph, state = nnx.split(nnx.eval_shape(build))
    leaves = shapes_of(state)
    entries = plan(rules, leaves)
    shapes = weights.shapes() if isinstance(weights, _Safetensors) else {n: np.shape(w) for n, w in weights.items()}
    check_names(reference_shapes(entries, leaves), shapes)
    dtype = jnp.result_type(float)
    arrays = {e.path: jnp.asarray(e.to_ours([np.asarray(weights[n]) for n in e.names]), dtype) for e in entries}
    return nnx.merge(graph, nested(arrays))


def to_reference(tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """The state dict under the reference's own names and axes; the inverse of `from_reference`, bit for bit."""
    module = tokenizer.module
    return state_to_reference(
        presets.family(tokenizer.family).rules(module.config), nnx.state(module), np.ascontiguousarray
    )


def state_to_reference(rules: list[Rule], state: nnx.State, convert: Any = lambda x: x) -> dict[str, Any]:
    """Leaves of a state (parameters, or gradients of some) as reference tensors."""
    flat = {path: variable[...] for path, variable in nnx.to_flat_state(state)}
    out = {}
    for entry in plan(rules, {path: value.shape for path, value in flat.items()}):
        leaf = flat[entry.path]
        out |= entry.to_reference(np.asarray(leaf) if convert is np.ascontiguousarray else leaf)
    return {name: convert(value) for name, value in out.items()}


def shapes_of(state: nnx.State) -> dict[tuple, tuple[int, ...]]:
    """Path -> shape of every leaf."""
    return {path: tuple(variable.shape) for path, variable in nnx.to_flat_state(state)}


def nested(flat: Mapping[tuple, Any]) -> dict[Any, Any]:
    """Path -> value as nested dicts."""
    root: dict[Any, Any] = {}
    for path, value in flat.items():
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return root


def check_names(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> None:
    """Raises WeightsError that lists missing, extra and wrongly shaped tensors, if there are any."""
    missing = [name for name in expected if name not in given]
    extra = [name for name in given if name not in expected]
    wrong = [
        f"{name} {tuple(given[name])} instead of {shape}"
        for name, shape in expected.items()
        if name in given and tuple(given[name]) != tuple(shape)
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}"
        for kind, names in (("missing", missing), ("not of this model", extra), ("wrongly shaped", wrong))
        if names
    ]
    if problems:
        raise WeightsError(f"the weights do not fit the model; tensors {'; '.join(problems)}")


class _Safetensors(Mapping[str, np.ndarray]):
    """Tensors that are read when they are asked for: a checkpoint and its conversion need not be in memory together."""

    def __init__(self, path: Path):
        from safetensors import safe_open

        self._file = safe_open(path, framework="numpy")
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape, without reading any tensor."""
        return {name: tuple(self._file.get_slice(name).get_shape()) for name in self._names}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_weights(path: str | Path) -> Mapping[str, np.ndarray]:
    """A .safetensors or .npz file as name -> array; no pickle is executed.

    Raises:
        WeightsError: missing, truncated or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}; give a .safetensors or .npz file")
    try:
        if path.suffix == ".safetensors":
            return _Safetensors(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
    except Exception as error:  # safetensors, zipfile and numpy have each their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"cannot read {path}: {reason}; the file is truncated or not {path.suffix}") from error
    raise WeightsError(f"cannot read {path}: accepted here are .safetensors and .npz")


__all__ = ["Entry", "filled", "from_config", "from_reference", "read_weights", "state_to_reference", "to_reference"]
