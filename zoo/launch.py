"""`zoo train`: finds a config, applies overrides, trains, reports."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from zoo.errors import PresetError, did_you_mean

HOMES = [Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs"]  # wheel, checkout


def config_names() -> list[str]:
    """The names that `zoo train` takes, e.g. "smoke/titok"."""
    return sorted(
        {p.relative_to(home).with_suffix("").as_posix() for home in HOMES for p in home.rglob("*.py") if home.is_dir()}
    )


def find_config(name: str) -> Path:
    """A config file by path, or by its name in configs/.

    Raises:
        PresetError: neither is there.
    """
    for path in [Path(name), *(home / f"{name.removesuffix('.py')}.py" for home in HOMES)]:
        if path.is_file() and path.suffix == ".py":
            return path
    names = config_names()
    hint = did_you_mean(name, names) or f" (known: {', '.join(names)})"
    raise PresetError(f"unknown config '{name}'{hint}; give a name in configs/ or the path of a .py file")


def read_config(name: str) -> Any:
    """The TrainConfig that get_config() of a config file returns."""
    path = find_config(name)
    spec = importlib.util.spec_from_file_location(f"zoo_config_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise PresetError(f"{path} has no get_config(); a config file defines get_config() -> TrainConfig")
    return module.get_config()


def main(args: list[str]) -> int:
    """`zoo train CONFIG [--workdir DIR] [--any.field VALUE]`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="zoo train", add_help=False)
    parser.add_argument("config", nargs="?", metavar="CONFIG")
    parser.add_argument("--workdir", type=Path)
    given, overrides = parser.parse_known_args(args)
    if given.config is None:
        asked = bool({"-h", "--help"} & set(args))
        print(
            "usage: zoo train CONFIG [--workdir DIR] [--any.field VALUE]\n"
            f"CONFIG: {', '.join(config_names())}, or a file",
            file=sys.stdout if asked else sys.stderr,
        )
        return 0 if asked else 2
    import tyro

    from zoo import sharding
    from zoo.train import TrainConfig, train

    config = tyro.cli(
        TrainConfig,
        default=read_config(given.config),
        args=overrides,
        prog=f"zoo train {given.config}",
        config=(tyro.conf.AvoidSubcommands,),
    )
    workdir = given.workdir or Path("runs") / Path(given.config).stem
    if done := finished(workdir, config):
        print(f"{workdir} is finished: {done}", file=sys.stderr)
        report(json.loads((workdir / "eval" / "metrics.json").read_text()), workdir)
        return 0
    with sharding.processes():
        if metrics := train(config, workdir):  # of several processes, one reports
            report(metrics, workdir)
    return 0


def finished(workdir: Path, config: Any) -> str:
    """How far the release of a workdir was trained, if that is as far as the config goes; else an empty string."""
    from zoo.checkpoint import read_release_config
    from zoo.errors import CheckpointError

    try:
        steps = read_release_config(workdir / "release").get("steps", 0)
    except CheckpointError:
        return ""
    whole = steps >= config.steps and (workdir / "eval" / "metrics.json").is_file()
    return f"{steps} of {config.steps} steps" if whole else ""


def report(metrics: dict[str, Any], workdir: Path) -> None:
    """The held-out numbers and where things are, on stdout."""
    print(f"held out: {metrics['n']} images of {metrics['image_size']} px")
    for name in ("psnr", "ssim", "thumbnail_psnr", "psnr_gain", "usage", "perplexity", "bits_per_item"):
        if name in metrics:
            print(f"  {name:15s} {metrics[name]:.4g}")
    print(f"release: {workdir / 'release'}\npicture: {workdir / 'eval' / 'worst.png'}")
