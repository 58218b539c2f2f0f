"""The errors of this package. Each message is one line: what was given, what is accepted, what to do."""


class ZooError(Exception):
    """Base of every error that a user can cause and mend. The command line catches only these."""


class InputError(ZooError, ValueError):
    """An image, audio, id array or option that the tokenizer does not accept."""


class PresetError(ZooError, LookupError):
    """An unknown preset, family, config or command value."""


class WeightsError(ZooError):
    """Weights that are missing, truncated, or do not fit the model."""


class CheckpointError(ZooError):
    """A checkpoint or release that is damaged, of another family, or of a newer format."""


class DataError(ZooError):
    """A data set that is empty, unreadable, or has too many corrupt items."""


class TrainingError(ZooError):
    """A run that cannot go on: a loss became NaN or infinite."""


def did_you_mean(name: str, known: list[str]) -> str:
    """Returns ", did you mean 'x'?" for the closest of `known`, or an empty string."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""
