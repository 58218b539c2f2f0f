"""Published and bundled checkpoints as data, one file per family.

A family file has PRESETS, CONFIG (the model's config class), config_from_reference, RULES, and the parity adapter
`outputs`. Adding a tokenizer is one such file, one model file, and its name in FAMILIES.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from zoo.errors import PresetError, did_you_mean

FAMILIES = ("maskgit_vqgan", "titok", "tatitok")
RELEASES = Path(__file__).parent.parent / "releases"  # bundled weights, trained by this project


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """One checkpoint.

    Attributes:
        name: "architecture.training set".
        family: a name in FAMILIES.
        config: the model's config dataclass.
        parameters: number of parameters.
        licence: of the WEIGHTS (SPDX where there is one).
        paper: arXiv id.
        repository, file, revision: where the weights are published; None for bundled ones.
        alternative: (repository, file) of the same weights in another format.
        sha256: of the file; None: unknown, the computed one is stored with the converted release.
        reference_config: the published config, so that a file converts without it.
        published: metric -> number, as printed by its authors.
        citation: where those numbers stand.
        bundled: the release ships with this package.
    """

    name: str
    family: str
    config: Any
    parameters: int
    licence: str
    paper: str
    repository: str | None = None
    file: str | None = None
    revision: str | None = None
    alternative: tuple[str, str] | None = None
    sha256: str | None = None
    published: dict[str, float] = dataclasses.field(default_factory=dict)
    citation: str = ""
    bundled: bool = False


def family(name: str) -> ModuleType:
    """The preset file of a family.

    Raises:
        PresetError: unknown family.
    """
    if name not in FAMILIES:
        raise PresetError(f"unknown family '{name}'{did_you_mean(name, list(FAMILIES))} (known: {', '.join(FAMILIES)})")
    return importlib.import_module(f"zoo.presets.{name}")


def all_presets() -> list[Preset]:
    """Every preset of every family."""
    return [preset for name in FAMILIES for preset in family(name).PRESETS]


def get(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        PresetError: unknown name, with the closest one.
    """
    presets = {preset.name: preset for preset in all_presets()}
    if name not in presets:
        hint = did_you_mean(name, list(presets)) or "; `zoo list` shows all"
        raise PresetError(f"unknown preset '{name}'{hint}")
    return presets[name]
