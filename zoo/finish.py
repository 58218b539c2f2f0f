"""The end of a run: the averaged tokenizer is measured on held-out images and becomes workdir/release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.config import to_json
from zoo.data.sources import Source
from zoo.evaluate import evaluate
from zoo.pretrained import save
from zoo.tokenizer import Tokenizer


def finish(tokenizer: Tokenizer, config: Any, heldout: Source, workdir: Path) -> dict[str, Any]:
    """Writes workdir/eval (metrics.json, items.csv, worst.png) and workdir/release, and returns the metrics."""
    metrics = evaluate(tokenizer, heldout, workdir / "eval", batch_size=8)
    about: dict[str, Any] = {"steps": config.steps, "metrics": metrics, "train": to_json(config)}
    about["source"] = {"init": config.init, "data": Path(config.data.path).name}
    save(tokenizer, workdir / "release", **about)
    return metrics
