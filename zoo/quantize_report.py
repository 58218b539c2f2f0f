"""docs/quantizers.md and its chart, from the rows that scripts/quantizer_study.py measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from zoo import tables
from zoo.quantize.table import SCHEMES

Row = Mapping[str, Any]  # see zoo.quantize_study.run
PAPERS = {scheme.name: scheme.paper for scheme in SCHEMES} | {"kmeans": "Lloyd 1982"}
PANELS = ("One learned codebook", "No codebook to learn", "Several ids per patch")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, 2008
MARKERS = "osD^v"
COLUMNS = (
    "scheme", "paper", "bits per patch", "entropy, bits", "MSE, 1e-3", "PSNR, dB", "usage", "perplexity",
    "parameters", "vectors/s", "memory, MiB",
)  # fmt: skip

HEAD = """# Quantizers

`zoo.quantize` has every published scheme behind one interface; this page says which to take. Written by
scripts/render_docs.py from docs/quantizers.json, which scripts/quantizer_study.py measured.

## Which quantizer when

"""
STUDY = """
PSNR and usage are from the study below, at {codes:,} codes in each codebook where no other number is given. It is one
small autoencoder of image patches.

## Rate and distortion

![Squared error against the entropy of the ids, all quantizers]({picture})

An autoencoder of two layers on either side (hidden {hidden} channels, mostly 16 channels of z) is trained through each
quantizer on patches of 8 x 8 pixels of {training} bundled photos, {steps:,} steps of as many strips of four patches as
there are codes (64 to {batch:,}). The points are the squared error on patches of {heldout} other photos, in dB of
pixels from 0 to 1, against the bits that their ids need: the entropy of each codebook's ids, coded by themselves. From
left to right on a line the codebooks have {sizes} codes, as far as they were run.

- **Gaussian bound**: no code of a Gaussian source with the covariance of these patches does better (reverse
  water-filling; long blocks). Real patches are not Gaussian, and a code that knows them may pass below it.
- **k-means on pixels**: 20 iterations of Lloyd's algorithm on {fitted:,} patches, without any network.

## All quantizers, {codes:,} codes

Usage is the share of codes that the training photos choose, of the least used codebook; perplexity how many equally
frequent codes would be as even, the mean of the codebooks. Parameters are all arrays of the quantizer, averages too.
Vectors per second and memory (XLA's temporaries) are those of the quantizer alone, in evaluation, for {vectors:,}
vectors; continuous latents have no ids.

"""
BY_SIZE = """
## By size of the codebooks

PSNR, entropy of a patch's ids and usage. Numbers at 64 and 256 codes are means of {seeds} seeds, whose PSNR differ by
{median:.2f} dB in the median and by {worst[spread]:.2f} dB at most (`{worst[scheme]}`); with more codes there is one
seed. There are {patches:,} training patches, so that 16,384 codes have three each.

"""
MACHINE = """
Measured on {device}, {threads} threads; rates with {low:.1f} to {high:.1f} programs that ran or waited to run.
`zoo bench` has rates that were paired with PyTorch. GPU and TPU: not run.
"""


# need, take, because: the braces are rows of the study
DECISIONS = (
    (
        "a first try; an id per position from 1k to 64k codes",
        "`fsq`",
        "nothing to learn, to tune or to collapse: {fsq[psnr]:.1f} dB, {at[16384][fsq][psnr]:.1f} with 16,384 codes",
    ),
    (
        "the least error from one codebook",
        "`vq_ema`",
        "k-means and dead-code replacement keep it in use: {vq_ema[psnr]:.1f} dB, {vq_ema[usage]:.0%} used; a codebook "
        "learned by gradient alone, `vq`, {vq[psnr]:.1f} dB, {vq[usage]:.0%}. With 16,384 codes "
        "{at[16384][vq_ema][psnr]:.1f} dB, {at[16384][vq_ema][usage]:.0%}",
    ),
    (
        "a large learned codebook without averages or replacement",
        "`simvq`",
        "one linear layer moves all codes: {simvq[psnr]:.1f} dB, {simvq[usage]:.0%} used; with 16,384 codes "
        "{at[16384][simvq][psnr]:.1f} dB, {at[16384][simvq][usage]:.0%}, where `vq` has {at[16384][vq][psnr]:.1f} dB, "
        "{at[16384][vq][usage]:.0%}",
    ),
    (
        "all codes in use by gradient alone",
        "`ibq_euclidean`",
        "every code has a gradient: {ibq_euclidean[usage]:.0%} used, {ibq_euclidean[psnr]:.1f} dB; with dot products "
        "as published, `ibq`, {ibq[usage]:.0%} and {ibq[psnr]:.1f} dB here",
    ),
    (
        "2^14 to 2^18 codes without a search",
        "`lfq`, `bsq`",
        "signs are the id; with 16,384 codes {at[16384][lfq][psnr]:.1f} and {at[16384][bsq][psnr]:.1f} dB",
    ),
    (
        "tens of bits per position for a generator of images",
        "`lfq_groups`, `product`",
        "independent ids, predicted side by side: {lfq_groups[psnr]:.1f} dB without a codebook, "
        "{product[psnr]:.1f} dB with four small ones",
    ),
    (
        "many bitrates from one model (audio codecs)",
        "`residual`",
        "with quantizer dropout any prefix of the ids decodes: {residual[psnr]:.1f} dB with all four",
    ),
    (
        "many bits from few parameters",
        "`heads`, `residual_shared`, `residual_fsq`",
        "{heads[parameters]:,}, {residual_shared[parameters]:,} and {residual_fsq[parameters]:,} numbers for "
        "{heads[psnr]:.1f}, {residual_shared[psnr]:.1f} and {residual_fsq[psnr]:.1f} dB",
    ),
    (
        "long sequences for a language model",
        "`multiscale`",
        "coarse ids at a quarter of the rate: {multiscale[psnr]:.1f} dB for {multiscale[bits]:g} bits per patch, "
        "`residual` has {residual[psnr]:.1f} for {residual[bits]:g}",
    ),
    ("a semantic id beside those for the sound", "`split`", "the first id can be distilled from a teacher (Mimi)"),
    ("one id for understanding and for pixels", "`shared_ids`", "two codebooks with one choice (TokenFlow)"),
    (
        "no losses but the model's own",
        "`vq_diveq`",
        "no weights to tune: {vq_diveq[psnr]:.1f} dB, {vq_diveq[usage]:.0%} used",
    ),
    ("bits as tokens", "`binary`, `bsq`", "each channel is a bit: {binary[psnr]:.1f} and {bsq[psnr]:.1f} dB"),
    (
        "continuous latents for diffusion or flow",
        "`gaussian`, `sigma_gaussian`",
        "no ids; {gaussian[psnr]:.1f} and {sigma_gaussian[psnr]:.1f} dB from 16 channels",
    ),
    ("labels for self-supervised learning", "`random_projection`", "nothing is trained"),
    (
        "ids of published audio codecs",
        "`vq_encodec`, `vq_mimi`, `vq_projected`",
        "for parity; EnCodec's dead codes stay dead ({vq_encodec[usage]:.0%} used)",
    ),
)


def panel(row: Row) -> str:
    """Which of PANELS a row belongs to."""
    if row["bits"] > 1.2 * math.log2(row["codes"]):
        return PANELS[2]
    return PANELS[0] if row["parameters"] else PANELS[1]


def chart(stored: Mapping[str, Any]) -> Any:
    """Rate against distortion as a matplotlib figure: a panel for each kind, the bound and k-means in all of them."""
    from matplotlib.figure import Figure

    rows = sorted((row for row in averaged(stored["rows"]) if "entropy" in row), key=lambda row: row["codes"])
    pixels = [row for row in rows if row["scheme"] == "kmeans"]
    found: dict[str, dict[str, list[Row]]] = {}  # panel: scheme: points
    for row in rows:
        if row["scheme"] != "kmeans":
            found.setdefault(panel(row), {}).setdefault(row["scheme"], []).append(row)
    titles = [title for title in PANELS if title in found]
    figure = Figure(figsize=(13, 6.2), dpi=120, layout="constrained")
    for axes, title in zip(figure.subplots(1, len(titles), squeeze=False)[0], titles, strict=True):
        _panel(axes, title, found[title], pixels, stored["bound"])
    figure.axes[0].set_ylabel("mean squared error of pixels, dB (lower is better)")
    return figure


def _panel(axes: Any, title: str, lines: Mapping[str, Sequence[Row]], pixels: Sequence[Row], bound: Any) -> None:
    ends = []
    for number, (name, points) in enumerate(sorted(lines.items(), key=lambda item: -item[1][-1]["mse"])):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS)]
        x, y = [row["entropy"] for row in points], [-row["psnr"] for row in points]
        axes.plot(x, y, marker=marker, color=colour, markersize=4, linewidth=1.2)
        ends.append((x[-1], y[-1], name, colour))
    right = max(x for x, *_ in ends)
    left = min(row["entropy"] for points in lines.values() for row in points)
    span = right - left
    both = zip(bound["bits"], bound["mse"], strict=True)
    inside = [(b, 10 * math.log10(m)) for b, m in both if left - 0.1 * span < b < right + 0.1 * span]
    axes.plot(*zip(*inside, strict=True), color="0.45", linewidth=2.5)
    place = {"xytext": (-6, -6), "textcoords": "offset points", "ha": "right", "va": "top"}
    axes.annotate("Gaussian bound", inside[3 * len(inside) // 4], color="0.35", **place)
    if title != PANELS[2]:
        x, y = [row["entropy"] for row in pixels], [-row["psnr"] for row in pixels]
        axes.plot(x, y, "--", color="0.45", marker="x", linewidth=1.5)
        ends.append((x[-1], y[-1], "k-means on pixels", "0.35"))
    axes.set(title=title, xlabel="bits per patch, entropy of the ids", xlim=(left - 0.08 * span, right + 0.68 * span))
    _labels(axes, ends, right + 0.12 * span)
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def _labels(axes: Any, ends: Sequence[tuple[float, float, str, str]], x: float, share: float = 0.036) -> None:
    """Names at x in the order of the lines' ends, at least `share` of the axis apart, with a thread to their line."""
    low, high = axes.get_ylim()
    gap = share * (high - low)
    ends = sorted(ends, key=lambda end: end[1])
    heights: list[float] = []
    for _, y, *_ in ends:
        heights.append(max(y, heights[-1] + gap) if heights else y)
    shift = sum(height - end[1] for height, end in zip(heights, ends, strict=True)) / len(ends)
    for height, (from_x, from_y, name, colour) in zip(heights, ends, strict=True):
        axes.plot([from_x, x], [from_y, height - shift], color=colour, linewidth=0.5, alpha=0.6)
        axes.text(x, height - shift, f" {name}", color=colour, va="center", fontsize=9)


def markdown(stored: Mapping[str, Any]) -> str:
    """The whole page."""
    rows, size = averaged(stored["rows"]), stored["size"]
    at: dict[int | None, dict[str, Row]] = {}
    for row in rows:
        at.setdefault(row["codes"], {})[row["scheme"]] = row
    central = at[size] | at.get(None, {})
    sizes = sorted(codes for codes in at if codes)
    decisions = [[need, take, because.format_map(central | {"at": at})] for need, take, because in DECISIONS]
    loads = [row["load"] for row in central.values() if "load" in row]
    named = [f"{codes:,}" for codes in sizes]
    facts = stored["data"] | {"codes": size, "picture": "quantizers.png", "seeds": max(row["seeds"] for row in rows)}
    repeated = [row for row in rows if row["seeds"] > 1]
    worst = max(repeated, key=lambda row: row["spread"])
    facts |= {"median": statistics.median(row["spread"] for row in repeated), "worst": worst}
    facts |= {"sizes": ", ".join(named[:-1]) + " and " + named[-1]}
    facts |= {"device": stored["device"], "threads": stored["threads"], "low": min(loads), "high": max(loads)}
    lines = [_line(central[name]) for name in PAPERS if name in central]
    by_size = [[f"`{name}`", *(_cell(at[codes].get(name)) for codes in sizes)] for name in PAPERS if name in at[size]]
    return "".join(
        [
            HEAD,
            tables.markdown(["need", "take", "because"], decisions) + "\n",
            STUDY.format_map(facts),
            tables.markdown(COLUMNS, lines) + "\n",
            BY_SIZE.format_map(facts),
            tables.markdown(["scheme", *(f"{name} codes" for name in named)], by_size) + "\n",
            MACHINE.format_map(facts),
        ]
    )


def averaged(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row per scheme and size: means over the "seeds", and "spread", the highest PSNR minus the lowest."""
    groups: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["scheme"], row["codes"]), []).append(row)
    found = []
    for (scheme, codes), group in groups.items():
        names = [name for name in group[0] if name not in ("scheme", "codes", "seed")]
        means = {name: statistics.mean(row[name] for row in group if name in row) for name in names}
        levels = [row["psnr"] for row in group]
        shown = {"scheme": scheme, "codes": codes, "seeds": len(group), "spread": max(levels) - min(levels)}
        found.append(means | shown)
    return found


def _line(row: Row) -> list[str]:
    number = PAPERS[row["scheme"]]
    paper = f"[{number}](https://arxiv.org/abs/{number})" if number[0].isdigit() else number

    def cell(name: str, pattern: str) -> str:
        return pattern.format(row[name]) if name in row else ""

    return [
        f"`{row['scheme']}`",
        paper,
        cell("bits", "{:.3g}"),
        cell("entropy", "{:.2f}"),
        f"{1e3 * row['mse']:.2f}",
        f"{row['psnr']:.2f}",
        cell("usage", "{:.0%}"),
        cell("perplexity", "{:,.0f}"),
        f"{row['parameters']:,.0f}",
        cell("vectors_per_second", "{:,.0f}"),
        f"{row['memory'] / 2**20:.1f}" if "memory" in row else "",
    ]


def _cell(row: Row | None) -> str:
    """What a scheme does at one size."""
    if row is None:
        return ""
    return f"{row['psnr']:.2f} dB, {row['entropy']:.1f} bits" + (f", {row['usage']:.0%}" if "usage" in row else "")
