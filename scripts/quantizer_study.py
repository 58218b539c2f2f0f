"""Measures every quantizer on patches of the bundled photos: docs/quantizers.json and docs/quantizers.png.

Rows that the file holds already are kept, so that it can be stopped and go on. Then run scripts/render_docs.py, whose
page also quotes 2^14 codes of some schemes: --bits 14 --schemes vq vq_ema simvq fsq lfq bsq.
"""

import argparse
import itertools
import json
from pathlib import Path

from zoo import bench_rows, quantize_report
from zoo.quantize.table import SCHEMES
from zoo.quantize.table import scheme as quantizer
from zoo.quantize_study import Settings, facts, gaussian_bound, photos, pixel_codebook, run, speed

DOCS = Path(__file__).resolve().parents[1] / "docs"
LARGEST = 4096  # items of a batch: below it there are four vectors for each code, so that averages can follow them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[6, 8, 10], help="2^bits codes in each codebook")
    parser.add_argument("--schemes", nargs="+", default=[scheme.name for scheme in SCHEMES if scheme.trains])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--timed", type=int, default=10, help="the bits at which the quantizer alone is timed")
    args = parser.parse_args()
    path = DOCS / "quantizers.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}
    done = {(row["scheme"], row["codes"], row["seed"]) for row in stored["rows"]}
    data = photos()
    stored |= {"bound": gaussian_bound(data), "device": bench_rows.device(), "threads": bench_rows.threads()}
    stored |= {"size": 2**args.timed, "data": facts(Settings(), data, LARGEST)}
    schemes = [scheme for scheme in SCHEMES if scheme.name in args.schemes]

    def save() -> None:
        path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")

    def put(row: dict) -> None:
        stored["rows"].append(row)
        save()
        print(row, flush=True)

    for bits, seed in itertools.product(args.bits, args.seeds):
        settings = Settings(batch=min(max(64, 2**bits), LARGEST), seed=seed)
        for scheme in schemes:
            if not {(scheme.name, 2**bits, seed), (scheme.name, None, seed)} & done:
                put(run(scheme, 2**bits, data, settings))
        if ("kmeans", 2**bits, 0) not in done and seed == 0:
            put(pixel_codebook(2**bits, data))
    for row in stored["rows"]:
        if row["codes"] in (2**args.timed, None) and row["scheme"] in args.schemes and "memory" not in row:
            row |= speed(quantizer(row["scheme"]), 2**args.timed)
            save()
    quantize_report.chart(stored).savefig(DOCS / "quantizers.png")


if __name__ == "__main__":
    main()
