"""Renews what is generated: README tables, docs/*.md from their JSON, verification.json; --check exits 1 on drift."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from zoo import bench_report, presets, quantize_report, tables

ROOT = Path(__file__).resolve().parents[1]


def scan(tests: Path, weights: dict[str, str]) -> dict[str, dict]:
    """What the test suite verifies: the golden cases of each family, and the manifest of each preset.

    A manifest is a preset's where its config is. `weights` (preset -> SHA-256 of the converted file) is
    written by hand, because that run needs the published file.
    """
    found = sorted(p.parent.relative_to(tests / "goldens") for p in (tests / "goldens").rglob("case.json"))
    code = {family: [p.name for p in found if p.parts[0] == family] for family in presets.FAMILIES}
    rules = {}
    for path in sorted((tests / "manifests").rglob("*.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        family = presets.family(manifest["family"])
        for preset in family.PRESETS:
            if preset.repository and family.config_from_reference(manifest["config"]) == preset.config:
                rules[preset.name] = path.relative_to(tests).as_posix()
    return {"code": code, "rules": rules, "weights": weights}


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: render_docs.py [--check]", file=sys.stderr)
        return 2
    stale = []

    def put(path: Path, new: str) -> None:
        if not path.is_file() or path.read_text(encoding="utf-8") != new:
            stale.append(path.relative_to(ROOT).as_posix())
            if not arguments:
                path.write_text(new, encoding="utf-8")

    stored = tables.verification()["weights"] if tables.VERIFICATION.is_file() else {}
    facts = scan(ROOT / "tests", stored)
    put(tables.VERIFICATION, json.dumps(facts, indent=2) + "\n")
    readme = ROOT / "README.md"
    put(readme, tables.render(readme.read_text(encoding="utf-8")))
    for name, report in {"benchmarks": bench_report, "quantizers": quantize_report}.items():
        measured = json.loads((ROOT / "docs" / f"{name}.json").read_text(encoding="utf-8"))
        put(ROOT / "docs" / f"{name}.md", report.markdown(measured))
    if arguments and stale:
        print(f"out of date: {', '.join(stale)}; run scripts/render_docs.py and commit", file=sys.stderr)
        return 1
    print(f"written: {', '.join(stale)}" if stale else "up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
