"""zoo.load: a preset or a release folder to a Tokenizer, on one device or a mesh.

A bundled preset is a release folder inside the package. A published one is downloaded once with huggingface_hub,
converted, and kept as a release in the cache ($ZOO_CACHE, else ~/.cache/tokenizer-zoo).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import zoo
from zoo import checkpoint, hub, presets, sharding
from zoo.config import from_json, to_json
from zoo.convert import from_config, read_weights
from zoo.errors import CheckpointError, PresetError, WeightsError
from zoo.presets import RELEASES, Preset
from zoo.tokenizer import Tokenizer
from zoo.torchfile import read_state_dict

TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
NON_COMMERCIAL = ("non-commercial", "research-only", "cc-by-nc")


def list_presets() -> list[str]:
    """The names of all presets."""
    return [preset.name for preset in presets.all_presets()]


def info(name: str | Path) -> dict[str, Any]:
    """What is known of a preset or a release folder: spec, size, licence, source, published or measured numbers.

    Raises:
        PresetError: unknown preset. CheckpointError: damaged release.
    """
    if not _is_folder(name):
        preset = presets.get(str(name))
        about = {
            "name": preset.name,
            "family": preset.family,
            "parameters": preset.parameters,
            "licence": preset.licence,
            "paper": f"arXiv:{preset.paper}",
            "weights": _whereabouts(preset),
            "published": preset.published,
            "citation": preset.citation,
        }
        if preset.bundled:
            release = checkpoint.read_release_config(RELEASES / preset.name)
            about |= {key: release[key] for key in ("steps", "metrics") if key in release}
        return about | {"spec": to_json(preset.config.spec), "code": f'zoo.load("{preset.name}")'}
    config = checkpoint.read_release_config(name)
    kept = ("name", "family", "preset", "parameters", "licence", "source", "steps", "metrics", "zoo_version")
    about = {key: config[key] for key in kept if config.get(key) is not None}
    return about | {"spec": config["spec"], "code": f'zoo.load("{name}")'}


def _whereabouts(preset: Preset) -> str:
    if preset.bundled:
        return "bundled with this package"
    other = " (the same as {}: {})".format(*preset.alternative) if preset.alternative else ""
    return f"{preset.repository}: {preset.file}{other}"


def load(name: str | Path, *, mesh: jax.sharding.Mesh | None = None, dtype: Any = None) -> Tokenizer:
    """Loads a tokenizer.

    Args:
        name: a preset such as "titok_tiny.photos", or a release folder.
        mesh: where the parameters live, sharded over its fsdp axis; None: the default device.
        dtype: of matmuls and convolutions, e.g. jnp.bfloat16; parameters stay float32.

    Raises:
        PresetError: unknown name. CheckpointError: damaged or newer release. WeightsError: no way to the weights.
    """
    if _is_folder(name):
        return _load_release(Path(name), mesh=mesh, dtype=dtype)
    preset = presets.get(str(name))
    if any(word in preset.licence.lower() for word in NON_COMMERCIAL):
        print(f"note: the weights of {preset.name} are under {preset.licence}", file=sys.stderr)
    if preset.bundled:
        return _load_release(RELEASES / preset.name, mesh=mesh, dtype=dtype)
    return _load_release(_fetch(preset), mesh=mesh, dtype=dtype)


def save(tokenizer: Tokenizer, folder: str | Path, *, storage: Any = None, **about: Any) -> None:
    """Writes a release folder that `load` reads.

    Args:
        tokenizer: what to save.
        folder: new, empty, or an older release.
        storage: dtype on disk of float arrays, e.g. float16; None: as they are.
        **about: further keys of config.json: preset, licence, source, metrics, steps.

    Raises:
        CheckpointError: the place is read-only or full, or holds something else.
    """
    arrays = nnx.to_pure_dict(nnx.state(tokenizer.module))
    if storage is not None:
        arrays = jax.tree.map(lambda a: np.asarray(a).astype(storage), arrays)
    config = {
        "name": tokenizer.name,
        "family": tokenizer.family,
        "config": to_json(tokenizer.module.config),
        "spec": to_json(tokenizer.spec),
        "parameters": parameters_of(tokenizer.module),
        "zoo_version": zoo.__version__,
    }
    checkpoint.save_release(folder, arrays, config | about)


def convert(preset_name: str, weights: str | Path, out: str | Path) -> Tokenizer:
    """A published file (.safetensors, .bin, .pth, .npz) to a release folder.

    A config.json beside a .safetensors file, as the hub has it, must be the preset's.

    Raises:
        PresetError: unknown preset.
        WeightsError: unreadable, of another config, or tensors that do not fit (all kinds listed).
    """
    preset, weights = presets.get(preset_name), Path(weights)
    digest = checkpoint.sha256_of(weights) if weights.is_file() else None
    if digest is not None and preset.sha256 not in (None, digest):
        raise WeightsError(f"{weights} has sha256 {digest}; {preset.name} was published with {preset.sha256}")
    return _convert(preset, weights, digest, out)


def _convert(preset: Preset, weights: Path, digest: str | None, out: str | Path) -> Tokenizer:
    _check_config(preset, weights)
    tensors = read_published(weights)
    tokenizer = from_config(preset.family, preset.config, tensors, name=preset.name)
    source = {"repository": preset.repository, "file": preset.file, "sha256": digest}
    save(tokenizer, out, preset=preset.name, licence=preset.licence, source=source, metrics=preset.published)
    return tokenizer


def _check_config(preset: Preset, weights: Path) -> None:
    """Names and shapes do not tell everything: code normalisation and the legacy layout are in the config alone."""
    file = weights.with_name(hub.CONFIG)
    if weights.suffix != ".safetensors" or not file.is_file():
        return
    try:
        config = presets.family(preset.family).config_from_reference(json.loads(file.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} is not a published config of {preset.family}; move {weights.name} away") from error
    if config != preset.config:
        raise WeightsError(f"{file} describes another model than {preset.name}; convert it as the preset that it is")


def read_published(path: str | Path) -> Mapping[str, np.ndarray]:
    """Any published weights file as name -> array.

    Files of torch before 1.6 are read without it, later ones through its weights_only loader.

    Raises:
        WeightsError: unreadable, or torch is needed and missing.
    """
    path = Path(path)
    if path.suffix not in TORCH_SUFFIXES or not path.is_file():
        return read_weights(path)
    with path.open("rb") as file:
        if file.read(2) != b"PK":  # no zip archive
            return _read_old(path)
    try:
        import torch  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError as error:
        raise WeightsError(f"{path} needs torch to be read: pip install 'tokenizer-zoo[torch]'") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch have each their own
        raise WeightsError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    state = state.get("state_dict", state)
    return {name: tensor.float().numpy() for name, tensor in state.items()}


def _read_old(path: Path) -> dict[str, np.ndarray]:
    try:
        return read_state_dict(path)
    except Exception as error:  # of a damaged pickle: nearly any
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"cannot read {path}: {reason}; the file is truncated or no state dict") from error


def parameters_of(module: nnx.Module) -> int:
    """How many numbers it has that are trained."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def cache_folder() -> Path:
    """Where this package keeps what it downloaded, converted or compiled: $ZOO_CACHE, or the user's cache."""
    return Path(os.environ.get("ZOO_CACHE", Path.home() / ".cache" / "tokenizer-zoo"))


def _is_folder(name: str | Path) -> bool:
    """Release folders are told from presets by being there, or by looking like a path."""
    return isinstance(name, Path) or Path(name).is_dir() or os.sep in str(name)


def config_of(name: str | Path) -> tuple[str, Any]:
    """Family and model config of a preset or a release folder, without its weights.

    Raises:
        PresetError: unknown name. CheckpointError: damaged or newer release.
    """
    if not _is_folder(name):
        preset = presets.get(str(name))
        return preset.family, preset.config
    about, config = _read_config(Path(name))
    return about["family"], config


def _read_config(folder: Path) -> tuple[dict[str, Any], Any]:
    """What a release says of itself, and its model config."""
    about = checkpoint.read_release_config(folder)
    try:
        return about, from_json(presets.family(about["family"]).CONFIG, about["config"])
    except (PresetError, TypeError) as error:
        raise CheckpointError(f"release {folder} is of family '{about['family']}', unknown here: {error}") from error


def _load_release(folder: Path, *, mesh: jax.sharding.Mesh | None, dtype: Any) -> Tokenizer:
    about, config = _read_config(folder)
    graph, state = nnx.split(nnx.eval_shape(lambda: config.build(dtype=dtype, rngs=nnx.Rngs(0))))
    abstract = nnx.to_pure_dict(state)
    where = sharding.fsdp(mesh or sharding.own_device(), abstract)
    arrays = checkpoint.load_release(folder, sharding.with_shardings(abstract, where))
    if mesh is None:  # plain single-device arrays, so that users may mix them with their own
        arrays = jax.device_put(arrays, jax.local_devices()[0])
    module = nnx.merge(graph, arrays)
    return Tokenizer(module, name=about.get("preset") or about["name"], family=about["family"], mesh=mesh)


def _fetch(preset: Preset) -> Path:
    """The converted release of a published preset, from the cache or downloaded into it."""
    cache = cache_folder() / preset.name
    if (cache / "config.json").is_file():
        return cache
    _convert(preset, *hub.download(preset), cache)
    return cache
