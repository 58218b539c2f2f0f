"""Structure, read from the source: imports point down, nothing is too long, and `import zoo` is light."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "zoo"
LAYERS = (
    "types errors sharding config optim",
    "nn quantize losses data metrics text vocabulary pictures",
    "models",
    "tokenizer presets convert checkpoint torchfile",
    "hub pretrained networks quality elastic recipes tables",
    "train published step runlog launch finish evaluate export parity parity_blocks parity_training "
    "parity_quantizers quickstart flops bench bench_peers bench_quantize bench_report bench_rows bench_text"
    " quantize_study quantize_report",
    "cli commands",
)
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts.split()}
CONTAINS = {("titok", "maskgit_vqgan")}  # models that contain a published model of another family
FILES = sorted(ZOO.rglob("*.py"))


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_of(path: Path) -> list[str]:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, dotted name as a list) of every import anywhere in the file.

    `from a import b` counts as a.b, and `import zoo` as each zoo.b that the file then uses.
    """
    package = module_of(path) if path.name == "__init__.py" else module_of(path)[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            yield from ((node.lineno, base + [alias.name]) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "zoo":
            yield node.lineno, ["zoo", node.attr]


def import_time(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: not the bodies of functions."""
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            queue.extend(ast.iter_child_nodes(node))


def upward(path: Path) -> Iterator[str]:
    part = module_of(path)[1]
    for line, name in imports_of(path):
        if name[0] == "zoo" and name[1:] not in ([], ["__version__"]):
            if LAYER.get(name[1], len(LAYERS)) > LAYER[part]:
                yield f"{path.relative_to(ROOT)}:{line} (layer {LAYER[part]}) imports {'.'.join(name)}"


def test_every_module_has_a_layer():
    unknown = {module_of(path)[1] for path in FILES if path != ZOO / "__init__.py"} - set(LAYER)
    assert not unknown, f"not in the layer table: {sorted(unknown)}"


def test_imports_point_down():
    """Inside functions too. zoo/__init__.py is the public surface above them all."""
    assert not [text for path in FILES if path != ZOO / "__init__.py" for text in upward(path)]


def test_upward_imports_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "zoo" / "nn" / "bad.py"
    path.parent.mkdir(parents=True)
    good = ["import zoo", "from zoo import types", "zoo.__version__"]
    bad = ["from .. import models", "def f():", "    from zoo.cli import main", "    return zoo.load"]
    path.write_text("\n".join(good + bad))
    assert sorted(int(text.split(":")[1].split()[0]) for text in upward(path)) == [4, 6, 7]


def test_models_do_not_import_each_other():
    for path in (ZOO / "models").glob("*.py"):
        others = {name[2] for _, name in imports_of(path) if name[:2] == ["zoo", "models"] and len(name) > 2}
        assert {(path.stem, other) for other in others - {path.stem}} <= CONTAINS, path.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ZOO)))
def test_size(path):
    limit = 500 if path.parent == ZOO / "models" else 400
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= limit, f"{lines} lines, at most {limit}"
    functions = [n for n in ast.walk(parse(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(node.name, (node.end_lineno or 0) - node.body[0].lineno + 1) for node in functions]
    assert not [(name, length) for name, length in lengths if length > 50]


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_thin(path):
    assert path.read_text(encoding="utf-8").count("\n") <= 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ZOO)))
def test_import_sets_nothing_and_needs_no_other_framework(path):
    tree = parse(path)
    nodes = list(import_time(tree))
    calls = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
    assert "jax.config.update" not in calls and "config.update" not in calls
    lines = {node.lineno for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)}
    roots = {name[0] for line, name in imports_of(path) if line in lines}
    assert not roots & {"torch", "torchvision", "tensorflow", "keras"}


def test_import_zoo_is_light():
    heavy = {"flax", "orbax", "grain", "matplotlib", "tensorflow_datasets", "huggingface_hub"}
    code = f"import sys, zoo; print(zoo.__file__, sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == f"{ZOO / '__init__.py'} []", done.stderr
