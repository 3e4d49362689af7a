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
LONG_NAMES: set[str] = {
    "test_a_gradient_that_is_not_a_number_is_kept_and_ends_the_descent_but_not_the_rise",
    "test_a_grid_that_is_none_is_refused_with_the_rule_the_value_and_the_way_out",
    "test_a_logger_that_raises_is_warned_about_once_and_the_others_get_theirs",
    "test_a_loss_that_is_finite_nowhere_but_at_the_start_has_no_measured_descent",
    "test_a_product_of_factors_breaks_down_by_one_factor_less_than_the_model",
    "test_a_series_that_never_could_stop_has_the_interval_of_clopper_and_pearson",
    "test_a_step_that_leaves_another_grad_mode_behind_reaches_no_other_evaluation",
    "test_before_the_descent_limit_slopes_are_negative_and_before_the_break_even_rises_are",
    "test_complex_rows_have_the_norm_of_their_weights_and_move_in_both_parts",
    "test_if_averaging_never_starts_one_warning_says_so_and_the_trained_weights_stay",
    "test_it_stands_at_the_weights_before_the_step_on_the_batch_of_that_step",
    "test_losses_are_scaled_less_than_in_training_and_without_a_scaler_not_at_all",
    "test_of_an_accumulation_window_it_takes_the_last_batch_and_the_weights_before_all",
    "test_of_many_layers_the_scalars_show_the_largest_and_the_cosine_that_is_farthest_from_0",
    "test_optimizers_whose_parameters_are_not_told_apart_by_a_module_have_numbers",
    "test_pure_noise_along_directions_gets_a_verdict_in_at_most_seven_percent",
    "test_the_average_is_the_mean_of_the_weights_at_the_ends_of_these_epochs",
    "test_the_gradient_direction_is_the_same_relative_step_whatever_the_optimizer",
    "test_the_interval_of_a_fixed_number_misses_more_often_where_it_decides_the_number",
    "test_the_loss_is_the_mean_over_batches_and_the_gradient_is_its_gradient",
    "test_the_random_direction_is_the_same_at_every_probe_and_follows_the_seed",
    "test_the_rate_is_that_of_as_many_whole_slices_and_all_else_that_of_eight",
    "test_the_ratio_of_the_score_is_that_between_half_the_radius_and_the_radius",
    "test_the_start_is_shared_by_all_optimizers_and_the_announced_cost_is_of_all",
    "test_the_update_at_1_is_the_step_to_the_last_bit_and_its_loss_the_loss_there",
    "test_the_width_of_the_linex_valley_is_where_its_sides_reach_half_the_smaller_rise",
    "test_training_is_bit_identical_with_plateau_and_early_stopping_on_the_users_metric",
    "test_two_copies_of_the_weights_are_kept_where_the_last_step_cannot_be_foreseen",
    "test_weight_norm_is_averaged_by_its_own_parameters_and_runs_at_the_average",
    "test_whatever_was_measured_the_summary_is_one_to_three_honest_sentences",
    "test_while_no_gradient_breaks_down_by_more_than_the_cosine_the_loss_falls",
}


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
