"""Published weights from the Hugging Face hub: one file, checked against its hash before anything reads it."""

from __future__ import annotations

from pathlib import Path

from zoo.checkpoint import sha256_of
from zoo.errors import WeightsError
from zoo.presets import Preset

CONFIG = "config.json"  # beside a .safetensors file; the .bin files have none


def download(preset: Preset) -> tuple[Path, str]:
    """The published file in the hub client's cache and its SHA-256, downloaded if it is not there.

    A cut transfer is taken up again.

    Raises:
        WeightsError: unreachable, missing or damaged, with what to do.
    """
    import huggingface_hub
    from huggingface_hub import errors

    repository, name = preset.repository, preset.file
    assert repository and name
    try:
        if name.endswith(".safetensors"):
            huggingface_hub.hf_hub_download(repository, CONFIG, revision=preset.revision)
        file = Path(huggingface_hub.hf_hub_download(repository, name, revision=preset.revision))
    except errors.RemoteEntryNotFoundError as error:
        raise _failure(preset, "the repository has no such file") from error
    except errors.RevisionNotFoundError as error:
        raise _failure(preset, f"the repository has no revision {preset.revision}") from error
    except errors.RepositoryNotFoundError as error:
        raise _failure(preset, "there is no such repository, or it is private") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _failure(preset, "the hub cannot be reached") from error
    except Exception as error:  # the transport's own errors, a full disk
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _failure(preset, reason) from error
    return file, _checked_hash(preset, file)


def _checked_hash(preset: Preset, file: Path) -> str:
    """The client checks sizes only. It calls large files by their SHA-256, the name that the hub gave."""
    blob = file.resolve()
    expected = preset.sha256 or (blob.name if len(blob.name) == 64 else None)
    digest = sha256_of(file)
    if expected not in (None, digest):
        file.unlink()
        blob.unlink(missing_ok=True)
        raise WeightsError(
            f"{preset.file} of {preset.repository} came with sha256 {digest} instead of {expected}; "
            "it was removed, load it again"
        )
    return digest


def _failure(preset: Preset, reason: str) -> WeightsError:
    other = " or {1} of {0}".format(*preset.alternative) if preset.alternative else ""
    return WeightsError(
        f"cannot download {preset.file} of {preset.repository}: {reason}; get that file{other} elsewhere and run: "
        f"zoo convert {preset.name} FILE OUT, then load OUT"
    )
