"""The end of a run: the averaged tokenizer is measured on held-out images and becomes workdir/release."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from zoo.config import to_json
from zoo.data.sources import Source
from zoo.evaluate import evaluate
from zoo.pretrained import info, save
from zoo.tokenizer import Tokenizer


def finish(tokenizer: Tokenizer, view: Tokenizer, config: Any, heldout: Source, workdir: Path) -> dict[str, Any]:
    """Writes workdir/eval (metrics.json, items.csv, worst.png) and workdir/release, and returns the metrics.

    `view` is what is measured: the tokenizer itself where it turns images into images. Several processes call this
    together: process 0 measures, and the others get no metrics. A release is meant for others: of paths it keeps the
    last part, and a fine-tuned one keeps its first licence.
    """
    first = jax.process_index() == 0
    metrics = evaluate(view, heldout, workdir / "eval", batch_size=8) if first else {}
    about: dict[str, Any] = {"steps": config.steps, "metrics": metrics, "train": _without_folders(to_json(config))}
    about["source"] = {"init": about["train"]["init"], "data": about["train"]["data"]["path"]}
    if config.init and (licence := info(config.init).get("licence")):
        about["licence"] = licence
    save(tokenizer, workdir / "release", **about)
    return metrics


def _without_folders(tree: Any) -> Any:
    """Paths to files and folders become their last part."""
    if isinstance(tree, dict):
        return {key: _without_folders(value) for key, value in tree.items()}
    return Path(tree).name if isinstance(tree, str) and os.sep in tree else tree
