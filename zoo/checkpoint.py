"""Training checkpoints and releases on disk. All orbax calls of the project live here.

    FOLDER/STEP/     config.json  sha256.json  state/...        one training step, `Checkpoints`
    FOLDER/rejected/STEP.N/                                     damaged steps whose number was saved again
    FOLDER/tmp.*                                                half-written or half-deleted, never read
    RELEASE/         config.json  arrays/...                    one release, `save_release`

The arrays of a release need orbax alone (JSON lists become dicts with the keys "0", "1", ...):

    from orbax.checkpoint import v1 as ocp
    arrays = ocp.load("RELEASE/arrays")          # nested dict of numpy arrays

Orbax does not notice an altered byte, so every file is listed with its SHA-256: in `sha256.json` of a step
and under "sha256" in the `config.json` of a release. A step becomes visible by one rename, after its hashes
are written: a process killed at any moment leaves whole steps and `tmp.*` folders, nothing in between.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from zoo.errors import CheckpointError, WeightsError

RELEASE_FORMAT = 1
RELEASE_KEYS = ("format", "family", "config", "sha256", "sha256_config")
_SHOWN = 4  # names listed in an error before "and N more"


def sha256_of(path: str | Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's bytes; OSError if it is not readable."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | Path, obj: Any) -> None:
    """Writes `obj` as JSON: readers see the old file or the whole new one. OSError if it fails."""
    temp = Path(path).with_name(f".{Path(path).name}.tmp")
    temp.write_text(json.dumps(obj, indent=2) + "\n", encoding="utf-8")
    os.replace(temp, path)


class Checkpoints:
    """The training checkpoints of one run: asynchronous, atomic, hashed, kept to the newest `keep`.

    Several processes call every method together, on one shared folder; process 0 hashes and deletes.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._current: int | None = None  # the step that the caller's state is known to be saved as
        self._pending: concurrent.futures.Future | None = None
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def steps(self) -> list[int]:
        """Returns the numbers of all step folders, damaged ones included, in increasing order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal() and path.is_dir())

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts saving `state` and returns once it is copied: it may be donated right after.

        Waits for the save before it; call `wait()` before the process ends. Saving the step just saved or
        restored again does nothing. A damaged folder of this number moves to `rejected/`. Undamaged steps
        beyond the newest `keep` are deleted, damaged ones never.

        Args:
            step: number of the step.
            state: pytree of jax arrays, sharded in any way.
            meta: JSON values (the resolved config, versions), stored as STEP/config.json.

        Raises:
            CheckpointError: this save or the one before it failed (full disk, read-only folder), or an
                undamaged step of another run has this number. Older steps are untouched.
        """
        self.wait()
        if step == self._current:
            return
        temp = self.folder / f"tmp.{step}"
        try:
            if jax.process_index() == 0:
                self._clear_the_way(step)
            multihost_utils.sync_global_devices(f"checkpoint {step}")
            with _orbax_context():
                response = ocp.save_checkpointables_async(str(temp), {"state": state})
        except OSError as error:
            raise _not_saved(f"checkpoint {step}", self.folder, error) from error
        self._current = step
        self._pending = self._executor.submit(self._finish, step, temp, meta, response)

    def wait(self) -> None:
        """Blocks until what was saved is committed, hashed and visible.

        Raises:
            CheckpointError: the save failed. The error is raised once; a later save may succeed.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:  # tensorstore reports a full disk as ValueError
            step, self._current = self._current, None
            if jax.process_index() == 0:
                self._sweep()
            raise _not_saved(f"checkpoint {step}", self.folder, error) from error

    def restore_latest(self, target: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Restores the newest undamaged step. Damaged newer ones are named on stderr and left in place.

        Args:
            target: pytree of jax.ShapeDtypeStruct with shardings, on any devices; its dtypes win.

        Returns:
            (step, state, meta), or None where there is no step at all.

        Raises:
            CheckpointError: no step is undamaged, or its arrays do not fit `target`.
        """
        self.wait()
        step, problems = self._newest_undamaged() if jax.process_index() == 0 else (-1, [])
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step == -1:
            return None
        if step == -2:
            hint = "move the folder away to start anew"
            raise CheckpointError(f"no usable checkpoint in {self.folder}: {_some(problems)}; {hint}")
        for problem in problems:
            text = f"skipped checkpoint {problem} in {self.folder}: step {step} is used instead"
            print(f"warning: {text}", file=sys.stderr)
        path = self.folder / str(step)
        misfit = _misfit(ocp.checkpointables_metadata(str(path)).metadata["state"], target)
        if misfit:
            hint = f"resume with the config in {path}/config.json or choose another folder"
            raise CheckpointError(f"checkpoint {path} does not fit this model: {misfit}; {hint}")
        state = ocp.load_checkpointables(str(path), {"state": target})["state"]
        self._current = step
        return step, state, _read_object(path / "config.json")

    def _clear_the_way(self, step: int) -> None:
        """Makes the folder, sweeps it, and frees the step's number."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        path = self.folder / str(step)
        if not path.exists():
            return
        if _step_damage(path) is None:
            hint = "restore it or choose another folder"
            raise CheckpointError(f"checkpoint {step} is already in {self.folder}, by another run: {hint}")
        rejected = self.folder / "rejected"
        rejected.mkdir(exist_ok=True)
        number = sum(1 for _ in rejected.glob(f"{step}.*"))
        os.rename(path, rejected / f"{step}.{number}")

    def _sweep(self) -> None:
        """Deletes what failed or killed saves left half-written."""
        for leftover in self.folder.glob("tmp.*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _finish(self, step: int, temp: Path, meta: dict[str, Any], response: Any) -> None:
        """Runs in the background thread: waits for orbax, hashes, makes the step visible, prunes."""
        response.result()
        if jax.process_index() != 0:
            return
        write_json(temp / "config.json", meta)
        write_json(temp / "sha256.json", _hashes(temp, temp))
        os.rename(temp, self.folder / str(step))
        self._prune(step)

    def _prune(self, saved: int) -> None:
        """Deletes undamaged steps beyond the newest `keep`; `saved` is one of these, its hashes are fresh."""
        older = [step for step in self.steps() if step != saved]
        if len(older) < self.keep:
            return
        good = [step for step in older if _step_damage(self.folder / str(step)) is None]
        for step in good[: max(0, len(good) + 1 - self.keep)]:  # renamed first: a kill leaves no half-deleted step
            os.rename(self.folder / str(step), self.folder / f"tmp.{step}")
        self._sweep()

    def _newest_undamaged(self) -> tuple[int, list[str]]:
        """Returns the newest undamaged step (-1: no step, -2: all damaged), "STEP (damage)" of newer ones."""
        problems = []
        for step in reversed(self.steps()):
            damage = _step_damage(self.folder / str(step))
            if damage is None:
                return step, problems
            problems.append(f"{step} ({damage})")
        return -2 if problems else -1, problems


def save_release(folder: str | Path, arrays: dict[Any, Any], config: dict[str, Any]) -> None:
    """Writes a release whole or not at all, in place of an older one. Several processes call it together.

    Args:
        folder: the release folder; other files in it (pictures, notes) are kept.
        arrays: nested dict of numpy or jax arrays, keys strings or ints. Dtypes are kept, shardings are not.
        config: JSON values, with at least "family" and "config"; "format", "sha256" (of each file) and
            "sha256_config" (of all other values) are added.

    Raises:
        CheckpointError: the place is read-only or full, or `folder` holds something that is no release.
    """
    folder = Path(folder).resolve()
    temp = folder.with_name(f".{folder.name}.tmp")
    first = jax.process_index() == 0
    arrays = jax.tree.map(to_host, arrays)  # numpy: loads without targets on any number of devices
    try:
        if first:
            names = {path.name for path in folder.iterdir()} if folder.exists() else set()
            if names and not names >= {"config.json", "arrays"}:
                raise CheckpointError(f"{folder} exists and is no release: give a new or an empty folder")
            shutil.rmtree(temp, ignore_errors=True)
            temp.mkdir(parents=True)
        multihost_utils.sync_global_devices("release begins")
        with _orbax_context():
            ocp.save(str(temp / "arrays"), arrays)
        if first:
            if (mark := temp / "arrays" / "commit_success.txt").exists():
                mark.write_text("committed\n")  # orbax writes the path of this machine into it
            config = {**config, "format": RELEASE_FORMAT, "sha256": _hashes(temp, temp / "arrays")}
            write_json(temp / "config.json", {**config, "sha256_config": _sha256_of_config(config)})
            _swap(temp, folder)
        multihost_utils.sync_global_devices("release ends")
    except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
        if first:
            shutil.rmtree(temp, ignore_errors=True)
        raise _not_saved("the release", folder, error) from error


def read_release_config(folder: str | Path) -> dict[str, Any]:
    """Returns the config.json of a release.

    Raises:
        CheckpointError: no such folder, no or an invalid config.json, keys missing, or a newer format.
    """
    path = Path(folder) / "config.json"
    hint = "give a folder that `zoo train` or `zoo convert` wrote"
    try:
        config = _read_object(path)
    except FileNotFoundError as error:
        what = "has no config.json" if Path(folder).is_dir() else "does not exist"
        raise CheckpointError(f"release folder {folder} {what}: {hint}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable JSON object ({_one_line(error)}): {hint}") from error
    found = config.get("format")
    if isinstance(found, int) and found > RELEASE_FORMAT:
        hint = f"this version reads up to {RELEASE_FORMAT}, upgrade with `pip install -U tokenizer-zoo`"
        raise CheckpointError(f"release {folder} has format {found}: {hint}")
    if missing := [key for key in RELEASE_KEYS if key not in config]:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: {hint}")
    if found != RELEASE_FORMAT or not isinstance(config["sha256"], dict):
        raise CheckpointError(f"{path} has an invalid format or sha256: {hint}")
    return config


def load_release(folder: str | Path, target: dict[Any, Any]) -> dict[Any, Any]:
    """Verifies every hash of a release, then returns its arrays in the structure of `target`.

    Args:
        folder: a release folder.
        target: nested dict of jax.ShapeDtypeStruct with shardings; keys as given to `save_release`. Stored
            arrays are cast to its dtypes, e.g. float16 to float32.

    Raises:
        CheckpointError: as `read_release_config`, or a file is altered, missing or not listed (it is named).
        WeightsError: names or shapes differ from `target`; both ways are listed.
    """
    folder = Path(folder).absolute()
    config = read_release_config(folder)
    intact = config["sha256_config"] == _sha256_of_config(config)
    damage = _damage(folder, folder / "arrays", config["sha256"]) if intact else "config.json is altered"
    if damage:
        raise CheckpointError(f"release {folder} is damaged: {damage}; fetch or write it again")
    misfit = _misfit(ocp.metadata(str(folder / "arrays")).metadata, target)
    if misfit:
        hint = "use the family and config of its config.json"
        raise WeightsError(f"release {folder} does not fit this model: {misfit}; {hint}")
    return ocp.load(str(folder / "arrays"), target)


def _sha256_of_config(config: dict[str, Any]) -> str:
    values = {key: value for key, value in config.items() if key != "sha256_config"}
    values = json.loads(json.dumps(values))  # as they are read back: tuples are lists, keys strings
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _is_news(record: logging.LogRecord) -> bool:
    return "_SignalingThread" not in str(record.msg)


def _orbax_context() -> ocp.Context:
    """Returns orbax's settings for saving: errors are raised, at once where possible, and not logged too."""
    logging.getLogger("absl").addFilter(_is_news)
    context = ocp.Context()
    context.asynchronous.create_directories_asynchronously = False
    return context


def to_host(x: Any) -> np.ndarray:
    """The whole of an array of any processes, on each of them; they call it together."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def _swap(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`; files of the folder before that belong to no release move along."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    if old.exists():
        for path in old.iterdir():
            if path.name not in ("config.json", "arrays"):
                os.rename(path, folder / path.name)
        shutil.rmtree(old)


def _hashes(root: Path, below: Path) -> dict[str, str]:
    """Returns {path relative to root: SHA-256} of every file below a folder."""
    files = sorted(path for path in below.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): sha256_of(path) for path in files}


def _damage(root: Path, below: Path, expected: dict[str, str]) -> str | None:
    """Returns what first differs between the files below a folder and their recorded hashes, or None."""
    try:
        actual = _hashes(root, below)
    except OSError as error:
        return _one_line(error)
    actual.pop("sha256.json", None)
    if lost := sorted(expected.keys() - actual.keys()):
        return f"{lost[0]} is missing"
    if added := sorted(actual.keys() - expected.keys()):
        return f"{added[0]} is not listed in its hashes"
    altered = sorted(name for name in expected if actual[name] != expected[name])
    return f"{altered[0]} is altered or truncated" if altered else None


def _step_damage(path: Path) -> str | None:
    try:
        expected = _read_object(path / "sha256.json")
    except (OSError, ValueError) as error:
        return f"sha256.json is missing or unreadable: {_one_line(error)}"
    return _damage(path, path, expected)


def _misfit(stored: Any, target: Any) -> str:
    """Returns which leaves `stored` has in another shape, lacks, or has too many; empty if it fits."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    has, wants = (
        {name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (stored, target)
    )
    shapes = [f"{k} is {has[k]}, expected {wants[k]}" for k in wants if k in has and has[k] != wants[k]]
    missing = [name for name in wants if name not in has]
    unexpected = [name for name in has if name not in wants]
    parts = [("wrong shape: ", shapes), ("missing: ", missing), ("unexpected: ", unexpected)]
    return "; ".join(title + _some(names) for title, names in parts if names)


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; ValueError for anything else."""
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}")
    return value


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:140]} ... {text[-140:]}"  # the cause stands at the end


def _not_saved(what: str, folder: Path, error: BaseException) -> CheckpointError:
    hint = "free some space or choose a writable folder; what was saved before is untouched"
    return CheckpointError(f"{what} was not saved in {folder} ({_one_line(error)}): {hint}")
