"""The layout, kept by reading the import statements: who may know whom."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

import lightning_landscape

PACKAGE = Path(lightning_landscape.__file__).parent
TESTS = Path(__file__).parent
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
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
    "fromage": {"checks", "fromage_settings"},
    "fromage_settings": {"checks", "measures"},
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


def test_only_public_names_are_listed_in_a_file():
    for name, tree in CODE.items():
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                assert set(ast.literal_eval(node.value)) <= set(lightning_landscape.__all__), name


def test_every_file_says_what_it_is():
    for name, tree in CODE.items():
        assert ast.get_docstring(tree), name


def test_a_folder_says_what_it_is_for_and_exports_nothing():
    for path in PACKAGE.glob("*/__init__.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        assert len(tree.body) == 1, path


# -- sizes -----------------------------------------------------------------------------------------

# today's exceptions, to be made smaller; one that is small enough must be removed from its list
LONG_FILES: set[str] = set()
LONG_CLASSES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
STATEFUL_BASES: set[str] = set()
LONG_NAMES: set[str] = set()


def sources(folder, pattern="*.py"):
    return {str(p.relative_to(folder)): p.read_text("utf-8") for p in folder.rglob(pattern)}


def code_lines(text, tree):
    """Return the numbers of the lines that hold code: no blanks, comments or docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {
        number
        for token in tokens
        if token.type not in NOT_CODE
        for number in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node):
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return lines


def above(limit, kinds):
    """Return the definitions of the package with more code lines than the limit."""
    found = set()
    for path, text in sources(PACKAGE).items():
        tree = ast.parse(text)
        lines = code_lines(text, tree)
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                n = len(lines.intersection(range(node.lineno, node.end_lineno + 1)))
                found |= {f"{path}:{node.name}"} if n > limit else set()
    return found


def mutable_fields(definition):
    """Return the fields of `self` that are assigned in another method than `__init__`."""
    methods = [m for m in definition.body if isinstance(m, FUNCTIONS) and m.name != "__init__"]
    return {
        node.attr
        for method in methods
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, (ast.Store, ast.Del))
        and ast.unparse(node.value) == "self"
    }


def assert_listed(found, listed):
    """Fail for what is too large and not listed, and for what is listed and small enough."""
    assert found - listed == set(), "these are too large"
    assert listed - found == set(), "remove these from the list, they are small enough"


def test_no_file_is_longer_than_400_lines():
    lengths = {path: len(text.splitlines()) for path, text in sources(PACKAGE).items()}
    assert_listed({path for path, n in lengths.items() if n > 400}, LONG_FILES)


def test_no_class_has_more_than_250_code_lines():
    assert_listed(above(250, ast.ClassDef), LONG_CLASSES)


def test_no_function_has_more_than_45_code_lines():
    assert_listed(above(45, FUNCTIONS), LONG_FUNCTIONS)


def test_no_base_class_has_more_than_6_mutable_fields():
    trees = [ast.parse(text) for text in sources(PACKAGE).values()]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {ast.unparse(base).split("[")[0] for node in classes for base in node.bases}
    found = {c.name for c in classes if c.name in bases and len(mutable_fields(c)) > 6}
    assert_listed(found, STATEFUL_BASES)


def test_no_test_has_a_name_of_more_than_70_characters():
    names = [
        node.name
        for text in sources(TESTS, "test_*.py").values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, FUNCTIONS) and node.name.startswith("test_")
    ]
    assert_listed({name for name in names if len(name) > 70}, LONG_NAMES)
