"""The README: its tour runs, its tables are those of the registry, its links lead somewhere."""

import csv
import re
import runpy
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest

from zoo import presets, tables
from zoo.errors import InputError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tour_runs(tmp_path, monkeypatch):
    """Exactly the one Python block of the README, in an empty folder."""
    (block,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    assert len([line for line in block.splitlines() if line.strip()]) <= 20
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    assert list(tmp_path.iterdir()), "the tour saves a picture"


def test_tables_are_up_to_date(capsys):
    render_docs = runpy.run_path(str(ROOT / "scripts/render_docs.py"))
    assert render_docs["main"](["--check"]) == 0, capsys.readouterr().err


def test_drift_is_found():
    assert tables.render(README.replace("<!-- models -->", "<!-- models -->\nstale")) == tables.render(README)
    with pytest.raises(InputError, match="<!-- models -->"):
        tables.render(README.replace("<!-- models -->", ""))


def test_rows_cover_the_registry():
    rows = tables.rows()
    assert [row["name"] for row in rows] == [preset.name for preset in presets.all_presets()]
    for row in rows:
        assert row["parameters"] > 0 and row["tokens"] > 0
        assert (row["bits"] is None) == (row["vocab_size"] is None)
        assert row["verified"]["code"] == len(tables.verification()["code"][row["family"]])
    facts = tables.verification()
    names = {row["name"] for row in rows}
    assert set(facts["rules"]) <= names and set(facts["weights"]) <= names
    assert all((ROOT / "tests" / manifest).is_file() for manifest in facts["rules"].values())


def test_rows_build_no_model(monkeypatch):
    """So that `zoo list` is fast however large the models are."""
    for preset in presets.all_presets():
        monkeypatch.setattr(type(preset.config), "build", lambda *_, **__: pytest.fail("a model was built"))
    assert tables.rows()


@pytest.mark.parametrize("source", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_notebooks_are_committed_as_they_ran(source):
    """With the cells of their .py file and the outputs of one whole run: scripts/notebooks.sh."""
    text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    cells = nbformat.reads(text, as_version=4).cells
    paired = jupytext.read(source).cells
    assert [(c.cell_type, c.source) for c in cells] == [(c.cell_type, c.source) for c in paired]
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert "%pip install -q tokenizer-zoo" in code[0].source
    assert not re.search(r"/tmp/|/home/|/root/|site-packages", text)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert not missing


def test_changelog_names_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_notice_names_every_licence():
    """Each published weight with its licence; the photos' licences stand in their SOURCES.csv."""
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for preset in presets.all_presets():
        line = next((line for line in notice.splitlines() if preset.name in line), "")
        assert preset.licence in line, f"NOTICE has no line with {preset.name} and {preset.licence}"
    with (ROOT / "zoo/data/photos/SOURCES.csv").open(encoding="utf-8") as file:
        assert all(row["licence"] and row["author"] for row in csv.DictReader(file))
