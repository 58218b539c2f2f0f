"""The registry as tables: the rows of `zoo list`, and the two tables of the README.

What was verified stands in zoo/presets/verification.json, which scripts/render_docs.py writes from the
goldens and manifests of the test suite; a test fails when the two differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo import presets
from zoo.errors import InputError
from zoo.presets import Preset

VERIFICATION = Path(presets.__file__).with_name("verification.json")
NOT_RUN, NOT_APPLICABLE = "not run", "-"


def verification() -> dict[str, Any]:
    """What is verified, by column.

    Keys: "code", family -> names of its parity cases; "rules", preset -> the manifest whose tensors its name
    rules consume; "weights", preset -> SHA-256 of the published file that was converted.
    """
    return json.loads(VERIFICATION.read_text(encoding="utf-8"))


def rows() -> list[dict[str, Any]]:
    """One dict per preset, ready for JSON.

    Keys: name, family, modality, input_shape, tokens, vocab_size and bits (None where continuous),
    parameters, licence, source, and verified: code (number of parity cases), rules, weights, trained (bool;
    None where the question does not arise).
    """
    facts = verification()
    return [_row(preset, facts) for preset in presets.all_presets()]


def _row(preset: Preset, facts: dict[str, Any]) -> dict[str, Any]:
    spec = preset.config.spec
    return {
        "name": preset.name,
        "family": preset.family,
        "modality": spec.modality,
        "input_shape": list(spec.input_shape),
        "tokens": spec.tokens,
        "vocab_size": spec.vocab_size,
        "bits": spec.bits_per_item(),
        "parameters": preset.parameters,
        "licence": preset.licence,
        "source": "this package" if preset.bundled else f"{preset.repository}: {preset.file}",
        "verified": {
            "code": len(facts["code"].get(preset.family, [])),
            "rules": None if preset.bundled else preset.name in facts["rules"],
            "weights": None if preset.bundled else preset.name in facts["weights"],
            "trained": preset.bundled,
        },
    }


def models_table() -> str:
    """The README's table of models, as Markdown."""
    columns = "preset, family, input, tokens, vocabulary, bits, parameters, licence (weights), source".split(", ")
    return markdown(columns, [_model_cells(row) for row in rows()])


def _model_cells(row: dict[str, Any]) -> list[str]:
    vocabulary, bits = row["vocab_size"], row["bits"]
    return [
        f"`{row['name']}`",
        row["family"],
        " x ".join(map(str, row["input_shape"])),
        f"{row['tokens']:,}",
        "continuous" if vocabulary is None else _size(vocabulary),
        NOT_APPLICABLE if bits is None else f"{bits:,.0f}",
        f"{row['parameters'] / 1e6:,.1f} M",
        row["licence"],
        row["source"],
    ]


def verification_table() -> str:
    """The README's table of what was verified, as Markdown."""
    columns = ("preset", "code verified", "rules verified at full size", "weights converted", "trained here")
    return markdown(columns, [_verification_cells(row) for row in rows()])


def _verification_cells(row: dict[str, Any]) -> list[str]:
    verified = row["verified"]
    count = verified["code"]
    cases = f"{count} parity case{'s' if count > 1 else ''}" if count else NOT_RUN
    words = {True: "yes", False: NOT_RUN, None: NOT_APPLICABLE}
    return [f"`{row['name']}`", cases, *(words[verified[key]] for key in ("rules", "weights", "trained"))]


def render(text: str) -> str:
    """`text` with both tables renewed, each between its markers <!-- models --> and <!-- /models -->.

    Raises:
        InputError: a marker is missing.
    """
    for name, table in (("models", models_table()), ("verification", verification_table())):
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        parts = re.split(f"{start}.*?{end}", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise InputError(f"the text has {len(parts) - 1} places between {start.strip()} and {end}; give one")
        text = f"{start}{table}\n{end}".join(parts)
    return text


def _size(vocabulary: int | Sequence[int]) -> str:
    sizes = [vocabulary] if isinstance(vocabulary, int) else vocabulary
    return " + ".join(f"{size:,}" for size in sizes)


def markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table of markdown, without a line end."""
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
