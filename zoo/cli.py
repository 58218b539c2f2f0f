"""The `zoo` command.

Results go to stdout, progress and warnings to stderr. A failure is one line, "zoo: ...". Exit status:

    0    done
    1    failed: a damaged release, an unreadable image, a folder that cannot be written, a parity mismatch
    2    wrong usage: an unknown option, command, preset or config; a parity case of an unknown kind
    130  interrupted

Only errors of zoo/errors.py become one line; any other is a bug and keeps its traceback. Everything heavy is
imported inside the commands, so that `zoo --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from zoo import commands
from zoo.commands import complain, table
from zoo.errors import DataError, PresetError, ZooError

if TYPE_CHECKING:
    from zoo.parity import Result

ABOUT = "Verified tokenizers in JAX. MODEL is a preset of `zoo list`, or a release folder."
Model = Annotated[str, Positional, arg(metavar="MODEL")]
ModelOption = Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")]
Folder = Annotated[str, arg(metavar="DIR")]
FolderOption = Annotated[str | None, arg(metavar="DIR", help_behavior_hint="")]
FileOption = Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")]
Flag = Annotated[bool, FlagCreatePairsOff]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    Args:
        argv: the words after `zoo`; None: those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except SystemExit as stop:  # tyro: --help is 0, its usage box 2
        return stop.code if isinstance(stop.code, int) else 1
    except ZooError as error:
        complain(error)
        return 2 if isinstance(error, PresetError) else 1
    except KeyboardInterrupt:
        print("zoo: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `zoo list | head -1`; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # what a shell reports of a program ended by SIGPIPE


def _run(words: list[str]) -> int:
    if words[:1] == ["train"]:  # its options are the fields of the config that it names
        return train(*words[1:])
    return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="zoo", description=ABOUT, args=words) or 0


def _need(values: Sequence[str], command: str, what: str) -> None:
    if not values:
        raise PresetError(f"zoo {command} needs at least one {what}; see `zoo {command.split()[0]} --help`")


def quickstart(*, out: Folder = "quickstart") -> None:
    """Photos to tokens and back in a minute: quickstart.png, quickstart.html, and what to do next.

    Args:
        out: where they go.
    """
    from zoo.quickstart import quickstart as run

    commands.use_compilation_cache()
    run(Path(out))


def list_(*, json: Flag = False) -> None:
    """Every preset: family, modality, tokens, vocabulary, parameters, licence, what is verified.

    Args:
        json: for programs.
    """
    from zoo import tables

    rows = tables.rows()
    if json:
        print(_json(rows))
        return
    head = ["preset", "family", "modality", "tokens", "vocabulary", "parameters", "licence", "verified"]
    print(table([head, *(_list_cells(row) for row in rows)]))


def _list_cells(row: dict[str, Any]) -> list[str]:
    vocabulary = row["vocab_size"]
    return [
        row["name"],
        row["family"],
        row["modality"],
        str(row["tokens"]),
        "continuous" if vocabulary is None else f"{vocabulary}",
        f"{row['parameters'] / 1e6:.1f} M",
        row["licence"],
        ", ".join(what for what, done in row["verified"].items() if done) or "not run",
    ]


def info(model: Model) -> None:
    """Spec, size, licence and source of a model, and the code to load it.

    Args:
        model: a preset or a release folder.
    """
    from zoo import config, pretrained
    from zoo.types import Spec

    about = pretrained.info(model)
    bits = config.from_json(Spec, about["spec"]).bits_per_item()
    spec = {key: value for key, value in about["spec"].items() if value not in (None, [], (), False)}
    about["spec"] = spec | {"bits_per_item": "continuous" if bits is None else bits}
    rows = []
    for key, value in about.items():
        if isinstance(value, dict):
            rows += [[f"{key}.{name}", _plain(item)] for name, item in value.items()]
        elif value:
            rows.append([key, _plain(value)])
    print(table(rows))


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return (" x " if isinstance(value[0], int) else " to ").join(map(str, value))
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def encode(
    files: Annotated[tuple[str, ...], Positional, arg(metavar="FILES...", help_behavior_hint="")],
    *,
    model: ModelOption = None,
    out: Annotated[str, arg(metavar="FILE.npz")] = "codes.npz",
) -> int:
    """Images to tokens: ids int32 [n, t, q], length, size, file, model and spec in one .npz.

    Args:
        files: images of any size, and folders of them.
        model: a preset or a release folder; without it the bundled preset for that kind of file.
        out: where the tokens go.
    """
    _need(files, "encode", "image file or folder")
    return commands.encode(files, model, out)


def decode(
    file: Annotated[str, Positional, arg(metavar="FILE.npz")],
    *,
    model: ModelOption = None,
    out: Folder = "decoded",
) -> None:
    """Tokens of `zoo encode` to images, one PNG per item, named after its source.

    Args:
        file: what `zoo encode` wrote.
        model: a preset or a release folder; without it the one that encoded.
        out: where the images go.
    """
    commands.decode(file, model, out)


def eval_(
    model: Model,
    data: Annotated[str, Positional, arg(metavar="DATA")],
    *,
    out: FolderOption = None,
    lpips: Annotated[FileOption, arg(name="metrics.lpips")] = None,
    inception: Annotated[FileOption, arg(name="metrics.inception")] = None,
    effnet: Annotated[FileOption, arg(name="metrics.effnet")] = None,
) -> None:
    """PSNR, SSIM, codebook usage, LPIPS, rFID, Inception Score and KID(EffNet-Lite0) of a model on images.

    Those that need the weights of a network that is not at hand are "not run". A thumbnail of equally many bits stands
    beside PSNR and SSIM.

    Args:
        model: a preset or a release folder.
        data: a folder of images, 'bundled', a tensorflow-datasets folder, or ArrayRecord files.
        out: gets metrics.json, items.csv and worst.png; without it the numbers are only printed.
        lpips: vgg16-397923af.pth of torchvision and vgg.pth of LPIPS 0.1, joined by a comma, or one file with both.
        inception: pt_inception-2015-12-05-6726825d.pth of pytorch-fid.
        effnet: efficientnet-lite0-57934424.pth; without it that of the extra [metrics].
    """
    commands.evaluate(model, data, out, lpips=lpips, inception=inception, effnet=effnet)


def compare(
    models: Annotated[tuple[str, ...], Positional, arg(metavar="MODEL...", help_behavior_hint="")],
    *,
    data: Annotated[tuple[str, ...], arg(metavar="FILES...")],
    out: Folder = "compare",
) -> int:
    """Models side by side: compare.png, rate_distortion.png and compare.json.

    Args:
        models: presets and release folders.
        data: images, and folders of them.
        out: where the pictures go.
    """
    _need(models, "compare", "MODEL")
    _need(data, "compare --data", "image file or folder")
    return commands.compare(models, data, out)


def train(*words: str) -> int:
    """Trains CONFIG, or fine-tunes with --init MODEL: `zoo train CONFIG --help` shows its options."""
    from zoo.launch import main as launch

    commands.use_compilation_cache()
    return launch(list(words))


def convert(
    preset: Annotated[str, Positional, arg(metavar="PRESET")],
    weights: Annotated[str, Positional, arg(metavar="WEIGHTS")],
    out: Annotated[str, Positional, arg(metavar="OUT")],
) -> None:
    """A published weights file to a release folder.

    Args:
        preset: whose weights they are; see `zoo list`.
        weights: .safetensors or .npz; with the extra [torch] also .bin, .pt, .pth, .ckpt.
        out: the release folder.
    """
    from zoo import checkpoint, pretrained

    tokenizer = pretrained.convert(preset, weights, out)
    release = checkpoint.read_release_config(out)
    print(tokenizer)
    print(f"parameters  {release['parameters']:,}")
    print(f"sha256      {release['source']['sha256']}  {weights}")
    print(f"load        zoo.load({str(Path(out).resolve())!r})")


def parity(
    folders: Annotated[tuple[str, ...], Positional, arg(metavar="DIR...", help_behavior_hint="")],
    *,
    float64: Flag = False,
    json: FileOption = None,
) -> int:
    """Compares the models with outputs of the original implementations, case by case.

    Args:
        folders: cases, or folders of cases.
        float64: in double precision, where each output may differ by twice the original's own noise.
        json: also writes every comparison to this file.
    """
    import jax
    from tqdm import tqdm

    from zoo.parity import UnknownKind, find_cases, run_case

    _need(folders, "parity", "folder with cases")
    if json:
        commands.check_writable(Path(json).parent)
    if float64:
        jax.config.update("jax_enable_x64", True)
    commands.use_compilation_cache()
    results: list[Result] = []
    unknown = broken = 0
    for case in tqdm(find_cases([_existing(folder) for folder in folders]), desc="parity", disable=None):
        try:
            results += run_case(case)
        except UnknownKind as error:
            complain(f"{case}: {error}")
            unknown += 1
        except ZooError as error:
            complain(error if str(case) in str(error) else f"{case}: {error}")
            broken += 1
    if json:
        Path(json).write_text(_json([_parity_row(result) for result in results]) + "\n")
    differ = _print_parity(results)
    print(f"{len(results)} outputs, {differ} differ; cases: {unknown} of unknown kind, {broken} unreadable")
    return 1 if differ or broken else 2 if unknown else 0


def bench(
    what: Annotated[str, Positional, arg(metavar="WHAT", help_behavior_hint="")] = "all",
    *,
    json: FileOption = None,
) -> int:
    """How fast the models are here, and beside PyTorch; all of it takes long on a CPU.

    Args:
        what: models, train, data, pairs, quantize, text, cold (`zoo encode` from start to end), all, or a preset.
        json: also writes every row to this file, as it goes.
    """
    return commands.bench(what, json)


def _existing(folder: str) -> Path:
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is no folder; give parity cases, or folders of them")
    return Path(folder)


def _print_parity(results: list[Result]) -> int:
    """A line per case and one per difference; returns the number of differences."""
    cases: dict[str, list[Result]] = {}
    for result in results:
        cases.setdefault(result.case, []).append(result)
    rows = [["case", "outputs", "differ", "worst error / limit", "of"]]
    for case, part in cases.items():
        worst = max(part, key=_share)
        differ = sum(not result.passed for result in part)
        rows.append([case, str(len(part)), str(differ), f"{_share(worst):.3g}", worst.output])
    print(table(rows))
    failed = [result for result in results if not result.passed]
    for r in failed:
        note = f" ({r.note})" if r.note else ""
        print(f"DIFFERS {r.case} {r.output} [{r.check}]: {r.error:.3g} > {r.limit:.3g}{note}")
    return len(failed)


def _share(result: Result) -> float:
    """The error as a share of its limit; above 1 it fails."""
    if result.error == 0:
        return 0.0
    return result.error / result.limit if result.limit else math.inf


def _parity_row(result: Result) -> dict[str, Any]:
    row = dataclasses.asdict(result) | {"passed": bool(result.passed)}
    return row | {"error": result.error if math.isfinite(result.error) else None}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False)


COMMANDS: dict[str, Callable[..., int | None]] = {
    "quickstart": quickstart,
    "list": list_,
    "info": info,
    "encode": encode,
    "decode": decode,
    "eval": eval_,
    "compare": compare,
    "train": train,
    "convert": convert,
    "parity": parity,
    "bench": bench,
}

if __name__ == "__main__":
    sys.exit(main())
