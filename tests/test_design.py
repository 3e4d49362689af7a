"""The layout, kept by reading the import statements: who may know whom."""

import ast
from pathlib import Path

import pytest

import lightning_landscape

PACKAGE = Path(lightning_landscape.__file__).parent
FILES = {
    str(path.relative_to(PACKAGE).with_suffix("")): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}
CODE = {name: ast.parse(path.read_text()) for name, path in FILES.items()}

# each room, a file or a folder, and the rooms that it may import from
GROUND = {"_lightning", "undo", "checks", "sharding", "params", "ranks", "objective"}
MAY_IMPORT = {
    "undo": set(),
    "_lightning": {"sharding", "undo"},
    "checks": set(),
    "sharding": set(),
    "params": {"sharding"},
    "inner_products": {"params", "sharding"},
    "ranks": {"sharding"},
    "objective": {"params", "sharding", "ranks"},
    "svg": set(),
    "measures": {"checks", "svg", "sharding", "params", "inner_products", "objective"},
    "fromage": {"checks", "measures"},
    "engine": GROUND,
    "reporting": GROUND | {"measures", "svg"},
    "callbacks": GROUND | {"measures", "engine", "reporting"},
    "analysis": GROUND | {"measures", "engine", "reporting"},
    "cli": {"analysis"},
}
KNOWS_LIGHTNING = {"_lightning"}
PLOTS = ("style", "figures_asymmetry", "figures_breakdown", "figures_plane")
KNOWS_MATPLOTLIB = {f"reporting/{name}" for name in PLOTS}


def room_of(name):
    return name.split("/")[0]


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module


def runtime_imports(tree):
    only_types = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) not in only_types and isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from imports(node)


def own_imports(name):
    """Return the files of the package that a file imports when it is run."""
    found = [i for i in runtime_imports(CODE[name]) if i.startswith("lightning_landscape.")]
    files = [module.removeprefix("lightning_landscape.").replace(".", "/") for module in found]
    return [file for file in files if not (PACKAGE / file).is_dir()]


@pytest.mark.parametrize("name", FILES)
def test_a_room_imports_only_the_rooms_below_it(name):
    room = room_of(name)
    for other in own_imports(name):
        assert room_of(other) in MAY_IMPORT[room] | {room}, f"{name} may not import {other}"


def test_no_file_imports_itself_through_others():
    left = {name: set(own_imports(name)) for name in FILES}
    while free := [name for name, others in left.items() if not others]:
        left = {name: others - set(free) for name, others in left.items() if name not in free}
    assert not left


@pytest.mark.parametrize("name", FILES)
def test_only_one_file_imports_lightning(name):
    roots = {i.split(".")[0] for i in imports(CODE[name])}
    if name not in KNOWS_LIGHTNING:
        assert not roots & {"lightning", "pytorch_lightning", "lightning_fabric"}


@pytest.mark.parametrize("name", FILES)
def test_only_figures_import_matplotlib_and_none_imports_pyplot(name):
    modules = set(runtime_imports(CODE[name]))
    if name not in KNOWS_MATPLOTLIB:
        assert "matplotlib" not in {module.split(".")[0] for module in modules}
    assert "matplotlib.pyplot" not in modules


@pytest.mark.parametrize("name", sorted(set(FILES) - {"_lightning"}))
def test_private_names_of_lightning_stay_in_one_file(name):
    for node in ast.walk(CODE[name]):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = ast.unparse(node.value)
            assert owner not in ("trainer", "pl_module", "self._trainer"), ast.unparse(node)


def test_every_public_name_is_there_and_explained():
    for name in lightning_landscape.__all__:
        thing = getattr(lightning_landscape, name)
        if name != "Params":
            assert thing.__doc__, name


def test_every_file_says_what_it_is():
    for name, tree in CODE.items():
        assert ast.get_docstring(tree), name


def test_a_folder_says_what_it_is_for_and_exports_nothing():
    for path in PACKAGE.glob("*/__init__.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        assert len(tree.body) == 1, path
