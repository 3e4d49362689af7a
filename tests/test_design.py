"""The layout, kept by reading the import statements: who may know whom."""

import ast
from pathlib import Path

import pytest

import lightning_landscape

PACKAGE = Path(lightning_landscape.__file__).parent
FILES = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}

# each may import those before it; those of one row do not know each other
ORDER = [
    {"sharding"},
    {"_lightning", "params", "fromage", "ranks", "sequential"},
    {"directions", "slices", "contents", "names", "inner_products"},
    {"snapshot"},
    {"asymmetry", "line", "breakdown", "weights", "schedule"},
    {"isolation"},
    {"rates", "batches", "updates"},
    {"plots", "batch_norm"},
    {"probing"},
    {"breakdown_plots"},
    {"reporting"},
    {"monitor", "swa_validation"},
    {"swa", "asymmetry_monitor", "breakdown_monitor"},
]
MAY_IMPORT_LIGHTNING = {
    "_lightning",
    "isolation",
    "batches",
    "probing",
    "monitor",
    "swa",
    "swa_validation",
    "asymmetry_monitor",
    "breakdown_monitor",
}
MAY_IMPORT_MATPLOTLIB = {"plots", "breakdown_plots"}


def imports(path, *, runtime_only=True):
    tree = ast.parse(path.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if runtime_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module


@pytest.mark.parametrize("name", FILES)
def test_imports_point_one_way(name):
    rank = {module: i for i, row in enumerate(ORDER) for module in row}
    own = [i.split(".")[1] for i in imports(FILES[name]) if i.startswith("lightning_landscape.")]
    for other in own:
        assert rank[other] < rank[name], f"{name} may not import {other}"


@pytest.mark.parametrize("name", FILES)
def test_only_these_know_lightning_and_matplotlib(name):
    roots = {i.split(".")[0] for i in imports(FILES[name], runtime_only=False)}
    if name not in MAY_IMPORT_LIGHTNING:
        assert not roots & {"lightning", "pytorch_lightning", "lightning_fabric"}
    if name not in MAY_IMPORT_MATPLOTLIB:
        assert "matplotlib" not in roots
    assert "pyplot" not in FILES[name].read_text().replace(
        "add_figure would import pyplot", ""
    ).replace("No pyplot", "")


@pytest.mark.parametrize("name", sorted(set(FILES) - {"_lightning"}))
def test_private_names_of_lightning_stay_in_one_file(name):
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = ast.unparse(node.value)
            assert owner not in ("trainer", "pl_module", "self._trainer"), ast.unparse(node)


def test_every_public_name_is_there_and_explained():
    for name in lightning_landscape.__all__:
        thing = getattr(lightning_landscape, name)
        if name != "Params":
            assert thing.__doc__, name


def test_every_file_says_what_it_is_and_what_it_offers():
    for path in FILES.values():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path.name
        assert any("__all__" in ast.dump(node) for node in tree.body), path.name
