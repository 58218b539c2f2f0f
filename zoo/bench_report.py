"""docs/benchmarks.md from the rows that `zoo bench --json` wrote."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from zoo import tables

Row = dict[str, Any]  # see zoo.bench.parts

PEER = "times the peer"
GOALS = (  # what, case, unit, at least (True) or at most, and that number
    ("pairs", "titok_s128.imagenet encode, batch 8", PEER, True, 1.3),
    ("pairs", "titok_s128.imagenet decode, batch 8", PEER, True, 1.3),
    ("pairs", "maskgit_vqgan_f16.imagenet encode and decode, batch 2", PEER, True, 1.0),
    ("cold", "zoo encode PHOTO, empty compilation cache", "s", False, 10.0),
    ("data", "2 threads, 64 px, decoded once", PEER, True, 1.0),
    ("data", "2 threads, 256 px, decoded once", PEER, True, 1.0),
    ("text", "training seconds, 8,192 tokens, 10 MB", PEER, True, 0.4),
    ("text", "training seconds, 32,768 tokens, 10 MB", PEER, True, 0.4),
    ("text", "training memory, 32,768 tokens, 10 MB", PEER, True, 0.625),
    ("text", "encoding in plain Python", PEER, True, 1.5),
    ("text", "encoding in plain Python", "MB/s", True, 3.0),
    ("text", "encoding through tiktoken", PEER, True, 0.9),
    ("text", "decoding", "MB/s", True, 20.0),
    ("text", "a million bytes, a letter, plain Python", "s", False, 5.0),
    ("text", "a million bytes, blanks, plain Python", "s", False, 5.0),
    ("text", "a million bytes, random letters, plain Python", "s", False, 5.0),
    ("text", "a million bytes, a letter, through tiktoken", "s", False, 1.0),
    ("text", "a million bytes, blanks, through tiktoken", "s", False, 1.0),
    ("text", "a million bytes, random letters, through tiktoken", "s", False, 1.0),
)
HEAD = """# Benchmarks

Written by scripts/render_docs.py from docs/benchmarks.json, the rows of `zoo bench --json FILE`.
Weights are random, since they do not change the speed; inputs are on the device before, and results are waited for.
A number is the median of repeated runs after one that does not count, in brackets the lowest and the highest.

"""
NOT_RUN = "GPU and TPU: not run, so that training in bf16 at 50% of a GPU's peak (TiTok-B and -L) is open."
PAIRS = """Ours and a PyTorch peer take turns in one process with equally many threads, in float32; the ratio is
the median over the turns, and above 1 ours is faster. The peers are what a PyTorch user would write from library parts:

- TiTok: `torch.nn.TransformerEncoderLayer` in evaluation mode, of the same widths, with the same embeddings, codebook
  search and codes head; decoding ends at the logits over the teacher's codes, whose decoder is the other pair.
- MaskGIT-VQGAN: diffusers' `VQModel` without attention and with the same number of residual blocks. It differs in what
  its config does not offer: it halves by strided 3x3 convolutions where ours averages, all its convolutions have
  biases, and its shortcuts take the block's input. Its decoder's third block of each level is taken out.

[speed.md](speed.md) says where the time goes and what was tried.
"""
DATA = "The loader beside what the train step of the same batch consumes; crops and mirrors, no colour changes."
MODELS = "FLOPs are XLA's count with each scan's body as often as it runs. MiB are arguments, temporaries and outputs."
QUANTIZE = """Every scheme of the quantizer library beside the same one of vector-quantize-pytorch, in turns in one
process with equally many threads, in float32; above 1 ours is better. A forward pass gives ids and vectors, the peer's
in evaluation mode. A step does what training does: gradients with respect to vectors and parameters, losses, and the
moving averages where there are some. Schemes without a peer have no ratio.

Memory is what a first step takes beyond imports, vectors and the quantizer itself, at its peak, in a process of its
own. The peer holds matrices of vectors x codes, so that fewer vectors are compared with 262,144 codes. FSQ has none.
"""
TEXT = """Byte-level BPE on sources of Python's library, GPT-2's pattern, beside tokenizers and tiktoken (PyPI), which
have the same merges and give the same ids. A ratio above 1 means that ours takes less time, memory or tokens. Training
is in a process of its own; its memory is what it takes beyond imports and texts. Each file is encoded by itself, in
plain Python with no piece known before.
"""
NOTES = {"text": TEXT, "pairs": PAIRS, "quantize": QUANTIZE, "data": DATA, "models": MODELS}
TITLES = {
    "cold": "A command of its own",
    "pairs": "Beside PyTorch",
    "quantize": "Quantizers",
    "models": "Encode and decode",
    "train": "Train step",
    "data": "Data loader",
    "text": "Text",
}


def markdown(rows: Sequence[Row]) -> str:
    """The whole page."""
    sections = [HEAD, "## Goals\n\n", _goals(rows), f"\n{NOT_RUN}\n", _machine(rows)]
    for what, title in TITLES.items():
        if mine := [row for row in rows if row["what"] == what]:
            note = f"{NOTES[what].rstrip()}\n\n" if what in NOTES else ""
            sections.append(f"\n## {title}\n\n{note}{_by_case(mine) if what in ('models', 'train') else _plain(mine)}")
    return "".join(sections)


def _goals(rows: Sequence[Row]) -> str:
    cells = []
    for what, case, unit, at_least, limit in GOALS:
        found = [row for row in rows if (row["what"], row["case"]) == (what, case)]
        asked = f"{'at least' if at_least else 'at most'} {limit:g} {unit}"
        if not found:
            cells.append([case, asked, "not run", ""])
            continue
        value = found[0]["ratio" if unit == PEER else "ours"]
        spread = f" {_spread(found[0])}" if unit == PEER or found[0]["ratio"] is None else ""  # it is the ratio's
        cells.append([case, asked, f"{_number(value)}{spread}", _verdict(value, at_least, limit)])
    for case, ratios, which, limit in _quantizer_goals(rows):
        asked = f"{which} at least {limit:g} times the peer"
        if not ratios:
            cells.append([case, asked, "not run", ""])
            continue
        value = statistics.median(ratios) if which == "median" else min(ratios)
        cells.append([case, asked, f"{_number(value)} ({len(ratios)} rows)", _verdict(value, True, limit)])
    return _table(["case", "goal", "measured", "verdict"], cells)


def _verdict(value: float, at_least: bool, limit: float) -> str:
    met = value >= limit if at_least else value <= limit
    return "met" if met else f"missed by {abs(value - limit) / limit:.0%}"


def _quantizer_goals(rows: Sequence[Row]) -> list[tuple[str, list[float], str, float]]:
    """(case, the ratios that count, which of them, the least it should be)."""
    mine = [row for row in rows if row["what"] == "quantize" and row["ratio"]]
    goals = []
    for which, codes, limit in (("median", "1,024 codes", 1.5), ("each", "", 1.0)):
        for what in ("forward", "step"):
            rates = [row for row in mine if row["unit"] == "vectors/s" and f" {what}, " in row["case"]]
            ratios = [row["ratio"] for row in rates if f" {codes}" in row["case"]]
            goals.append((f"quantizers, {what}, {codes or 'any codes'}", ratios, which, limit))
    memory = [row for row in mine if row["unit"] == "MiB" and " 262,144 codes" in row["case"]]
    ratios = [row["ratio"] for row in memory if not row["case"].startswith("fsq ")]  # fsq compares with no codes
    return [*goals, ("quantizers, memory of a step, 262,144 codes", ratios, "each", 20.0)]


def _machine(rows: Sequence[Row]) -> str:
    """Devices, versions, and how busy the machine was."""
    versions: dict[str, str] = {}
    for row in rows:
        versions |= row["versions"]
    devices = sorted({f"{row['device']}, {row['threads']} threads" for row in rows})
    loads = [row["load"] for row in rows]
    lines = [
        f"Measured on {'; '.join(devices)}.",
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.",
        f"Programs that ran or waited to run: {min(loads, default=0):.2g} to {max(loads, default=0):.2g}. Where it is "
        "above the threads, others used the machine too: rates are then too low, and ratios uncertain.",
    ]
    return "\n" + "\n".join(lines) + "\n"


def _plain(rows: Sequence[Row]) -> str:
    """A line per row."""
    if all(row["peer"] is None for row in rows):
        cells = [[row["case"], f"{_number(row['ours'])} {row['unit']} {_spread(row)}"] for row in rows]
        return _table(["case", "measured"], cells)
    cells = [
        [
            row["case"],
            f"{_number(row['ours'])} {row['unit']}",
            "" if row["peer"] is None else f"{_number(row['peer'])} ({row['peer_name']})",
            "" if row["ratio"] is None else f"{_number(row['ratio'])} {_spread(row)}",
        ]
        for row in rows
    ]
    return _table(["case", "ours", "peer", "ratio"], cells)


def _by_case(rows: Sequence[Row]) -> str:
    """A line per case, a column per unit."""
    units = list(dict.fromkeys(row["unit"] for row in rows))
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["unit"]] = row
    show: Callable[[Row], str] = lambda row: (  # noqa: E731
        f"{_number(row['ours'])} {_spread(row)}" if row["unit"].endswith("/s") else _number(row["ours"])
    )
    cells = [[case, *(show(by[unit]) if unit in by else "" for unit in units)] for case, by in cases.items()]
    return _table(["case", *units], cells)


def _number(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _spread(row: Row) -> str:
    low, high = row["spread"]
    return f"({_number(low)} to {_number(high)})" if low != high else ""


def _table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    return tables.markdown(columns, [[cell.strip() for cell in line] for line in cells]) + "\n"
