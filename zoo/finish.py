"""The end of a run: the averaged tokenizer is measured on held-out images and becomes workdir/release."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from zoo.config import to_json
from zoo.data.sources import Source
from zoo.evaluate import evaluate
from zoo.pretrained import info, save
from zoo.tokenizer import Tokenizer


def finish(tokenizer: Tokenizer, config: Any, heldout: Source, workdir: Path) -> dict[str, Any]:
    """Writes workdir/eval (metrics.json, items.csv, worst.png) and workdir/release, and returns the metrics.

    Several processes call it together: process 0 measures, and the others get no metrics.
    A release is meant for others: of paths it keeps the last part, and a fine-tuned one keeps its first licence.
    """
    first = jax.process_index() == 0
    metrics = evaluate(tokenizer, heldout, workdir / "eval", batch_size=8) if first else {}
    eval_path = config.data.eval_path and Path(config.data.eval_path).name
    data = dataclasses.replace(config.data, path=Path(config.data.path).name, eval_path=eval_path)
    init = config.init and Path(config.init).name
    about: dict[str, Any] = {"steps": config.steps, "metrics": metrics, "source": {"init": init, "data": data.path}}
    about["train"] = to_json(dataclasses.replace(config, data=data, init=init))
    if config.init and (licence := info(config.init).get("licence")):
        about["licence"] = licence
    save(tokenizer, workdir / "release", **about)
    return metrics
