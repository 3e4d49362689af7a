"""The table of what was tried: it hides no failure, and says what was not run."""

import pytest
from reliability import Case, read, row, written

pytest_plugins = ["pytester"]

SUITE = """
import pytest

@pytest.mark.tried("faults", "what | holds")
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
"""


@pytest.fixture
def suite(pytester):
    pytester.makeconftest("pytest_plugins = ['reliability']")
    pytester.makeini(
        "[pytest]\ntestpaths = .\naddopts = -p no:hypothesispytest -m 'not slow'\n"
        "markers =\n  slow: long\n  tried(area, what): a row\n"
    )
    pytester.makepyfile(test_a=SUITE)
    return pytester


def rows_of(suite):
    return read((suite.path / "docs" / "reliability.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        (["held", "held"], "held"),
        (["failed", "failed"], "**failed**"),
        (["held", "failed", "held"], "**1 of 3 failed**, 2 of 3 held"),
        (["held", "not run"], "1 of 2 held, 1 of 2 not run here (why)"),
        (["known"], "**known not to hold** (why)"),
    ],
)
def test_a_row_hides_no_case_that_failed_or_was_not_run(outcomes, said):
    why = {"known": "why", "not run": "why"}
    cases = [Case("tests/test_a.py", outcome, why.get(outcome, "")) for outcome in outcomes]
    assert row("a | b", cases) == f"| a \\| b | {said} | {len(cases)} | `test_a.py` |"


def test_sections_come_in_a_fixed_order_and_can_be_read_again():
    rows = {("faults", "a | b"): row("a | b", []), ("distributed", "c"): row("c", [])}
    text = written(rows, "torch 0")
    assert "made with torch 0." in text
    assert text.index("## Several processes") < text.index("## Faults")
    assert read(text) == rows


def test_a_run_writes_its_rows_and_keeps_the_others(suite):
    suite.runpytest("--reliability")
    first = rows_of(suite)
    assert first == {
        ("steps", "what takes long"): "| what takes long | not run here (slow) | 1 | `test_a.py` |",
        ("steps", "what is not there"): "| what is not there | not run here (needs a moon) | 1 |"
        " `test_a.py` |",
        ("steps", "what cannot be"): "| what cannot be | **known not to hold** (2 is not 1) | 1 |"
        " `test_a.py` |",
        ("faults", "what | holds"): "| what \\| holds | held | 2 | `test_a.py` |",
        ("faults", "what fails at the end"): "| what fails at the end | **failed** | 1 |"
        " `test_a.py` |",
    }
    suite.runpytest("--reliability", "-m", "slow")
    long = "| what takes long | held | 1 | `test_a.py` |"
    assert rows_of(suite) == {**first, ("steps", "what takes long"): long}
    suite.makepyfile(test_b="")
    suite.runpytest("--reliability", "test_b.py")
    assert rows_of(suite) == {**first, ("steps", "what takes long"): long}


def test_a_check_fails_until_the_table_and_the_suite_agree(suite):
    check = ("--reliability-check", "--collect-only", "-q")
    result = suite.runpytest(*check)
    result.stdout.fnmatch_lines(["*lacks the row 'what takes long' in steps"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    suite.runpytest("--reliability")
    assert suite.runpytest(*check).ret == pytest.ExitCode.OK
    suite.makepyfile(test_a=SUITE.replace("takes long", "took long"))
    result = suite.runpytest(*check)
    result.stdout.fnmatch_lines(
        ["*has no test for the row 'what takes long' in*", "*lacks the row 'what took long' in*"]
    )


def test_a_marker_of_an_unknown_area_stops_the_run(suite):
    suite.makepyfile(test_a=SUITE.replace('"steps"', '"weather"'))
    result = suite.runpytest("--reliability")
    result.stderr.fnmatch_lines(["*`area` of a tried marker must be one of*'weather'*"])
