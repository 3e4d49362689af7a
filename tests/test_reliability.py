"""The table of what was tried: honest about what was not run, the same for the same outcomes."""

import json

import pytest
from reliability import Case, lacking, merged, outcome, superfluous, table

pytest_plugins = ["pytester"]


def case(
    outcome="held", *, area="faults", what="a full disk", test="tests/test_a.py::test", **rest
):
    return Case(area, what, test, outcome=outcome, **rest)


def test_a_row_says_what_was_tried_how_it_came_out_and_where():
    written = table([case(test=f"tests/test_a.py::test[{i}]") for i in range(2)], "torch 0")
    assert "was made with torch 0." in written
    assert written.endswith(
        "## Faults\n\n"
        "| what was tried | outcome | cases | tests |\n| --- | --- | ---: | --- |\n"
        "| a full disk | held | 2 | `test_a.py` |\n"
    )


def test_sections_come_in_one_order_and_rows_in_that_of_the_tests():
    cases = [
        case(what="third", test="tests/test_b.py::test", line=1),
        case(what="second", line=9),
        case(what="first", line=2),
        case(what="zeroth", area="distributed", test="tests/test_z.py::test"),
    ]
    written = table(cases, "")
    assert written == table(cases[::-1], "")
    order = [written.index(what) for what in ("Several processes", "zeroth", "## Faults", "first")]
    order += [written.index(what) for what in ("second", "third")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        (["held", "held"], "held"),
        (["failed", "failed"], "**failed**"),
        (["held", "failed", "held"], "**1 of 3 failed**, 2 of 3 held"),
        (["not run"], "not run here (needs a GPU)"),
        (["held", "not run"], "1 of 2 held, 1 of 2 not run here (needs a GPU)"),
        (["known"], "**known not to hold** (needs a GPU)"),
    ],
)
def test_a_row_hides_no_case_that_failed_or_was_not_run(outcomes, said):
    why = {"known", "not run"}
    assert outcome([case(o, why="needs a GPU" if o in why else "") for o in outcomes]) == said


def test_a_bar_does_not_break_the_table():
    written = table([case(what="a | b")], "")
    assert "| a \\| b | held |" in written
    assert lacking(written, [case(what="a | b")]) == []


def test_an_area_nobody_knows_is_refused():
    with pytest.raises(ValueError, match=r"`area` of a tried marker must be one of .*'weather'"):
        table([case(area="weather")], "")


def test_what_a_run_leaves_out_keeps_its_outcome():
    before = [case("held"), case("failed", what="kill -9")]
    collected = [case("not run", line=3), case("not run", what="kill -9")]
    found = merged(before, collected, [])
    assert [(c.what, c.outcome) for c in found] == [("a full disk", "held"), ("kill -9", "failed")]
    assert found[0].line == 3


def test_what_a_run_skips_keeps_its_outcome_or_says_why_it_has_none():
    skipped = case("not run", why="no GPU")
    assert merged([case("held")], [case("not run")], [skipped]) == [case("held")]
    assert merged([], [case("not run", why="slow")], [skipped]) == [skipped]


def test_what_a_run_makes_replaces_what_was_known():
    (found,) = merged([case("held")], [case("not run")], [case("failed")])
    assert found.outcome == "failed"


def test_a_test_that_is_gone_takes_its_row_along():
    gone = case(what="gone", test="tests/test_a.py::test_gone")
    elsewhere = case(what="elsewhere", test="tests/test_b.py::test")
    found = merged([gone, elsewhere], [case("not run")], [], files={"tests/test_a.py"})
    assert [c.what for c in found] == ["a full disk", "elsewhere"]
    assert merged([gone], [case("not run")], []) == [case("not run"), gone]


def test_a_table_can_be_asked_for_rows_it_lacks_and_rows_nobody_stands_for():
    written = table([case(what="a"), case(what="b")], "")
    assert lacking(written, [case(what="b"), case(what="c")]) == [("faults", "c")]
    assert superfluous(written, [case(what="b"), case(what="c")]) == [("faults", "a")]
    assert lacking("", [case()]) == [("faults", "a full disk")]


SUITE = """
import pytest

@pytest.mark.tried("faults", "what holds")
@pytest.mark.parametrize("i", [1, 2])
def test_holds(i):
    pass

@pytest.mark.tried("faults", "what fails at the end")
def test_fails(request):
    request.addfinalizer(lambda: 1 / 0)

@pytest.mark.slow
@pytest.mark.tried("steps", "what takes long")
def test_slow():
    pass

@pytest.mark.tried("steps", "what is not there")
def test_skips():
    pytest.skip("needs a moon")

@pytest.mark.tried("steps", "what cannot be")
@pytest.mark.xfail(reason="2 is not 1")
def test_known():
    assert 2 == 1

@pytest.mark.parametrize("i", [pytest.param(1, marks=pytest.mark.tried("names", "one of two")), 2])
def test_marked_in_part(i):
    pass
"""


@pytest.fixture
def suite(pytester):
    pytester.makeconftest("pytest_plugins = ['reliability']")
    pytester.makeini(
        "[pytest]\ntestpaths = .\naddopts = -p no:hypothesispytest -m 'not slow'\n"
        "markers =\n  slow: long\n  tried(area, what): a row\n"
    )
    pytester.makepyfile(SUITE)
    return pytester


def written(suite):
    lines = (suite.path / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| what ")]
    return {what: (outcome, cases) for what, outcome, cases, _ in cells if cases != "cases"}


def test_a_run_writes_the_table_and_another_adds_to_it(suite):
    suite.runpytest("--reliability")
    first = {
        "what cannot be": ("**known not to hold** (2 is not 1)", "1"),
        "what takes long": ("not run here (slow)", "1"),
        "what is not there": ("not run here (needs a moon)", "1"),
        "what holds": ("held", "2"),
        "what fails at the end": ("**failed**", "1"),
    }
    assert written(suite) == first
    suite.runpytest("--reliability", "-m", "slow")
    assert written(suite) == {**first, "what takes long": ("held", "1")}
    text = (suite.path / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert "| one of two | held | 1 |" in text
    suite.runpytest("--reliability")
    assert (suite.path / "docs" / "reliability.md").read_text(encoding="utf-8") == text


def test_a_run_without_the_option_writes_nothing(suite):
    suite.runpytest()
    assert not (suite.path / "docs").exists()


def test_a_check_fails_as_long_as_the_table_and_the_suite_differ(suite):
    check = ("--reliability-check", "--collect-only", "-q")
    result = suite.runpytest(*check)
    result.stdout.fnmatch_lines(["*lacks the row 'what takes long' in steps"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    suite.runpytest("--reliability")
    assert suite.runpytest(*check).ret == pytest.ExitCode.OK
    suite.makepyfile(SUITE.replace("what holds", "what holds now"))
    result = suite.runpytest(*check)
    result.stdout.fnmatch_lines(
        ["*lacks the row 'what holds now' in faults", "*has the row 'what holds' in*"]
    )


def test_a_marker_of_no_area_stops_the_run(suite):
    suite.makepyfile(SUITE.replace('"names"', '"weather"'))
    result = suite.runpytest("--reliability")
    result.stderr.fnmatch_lines(["*`area` of a tried marker must be one of*'weather'*"])


def test_what_is_remembered_is_in_one_order(suite):
    suite.runpytest("--reliability")
    rows = json.loads((suite.path / ".reliability.json").read_text("utf-8"))
    tests = [row["test"] for row in rows]
    assert tests == sorted(tests)
