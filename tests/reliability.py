"""A pytest plugin that writes docs/reliability.md: what was tried on this library, and what held.

A test with `@pytest.mark.tried(area, what)` is a case of one row of that table.

    python -m pytest --reliability -m "not clients and not gpu"    # run the tests, write their rows
    python -m pytest --reliability-check --collect-only -q         # compare the rows with the suite
"""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

AREAS = {
    "distributed": "Several processes",
    "precision": "Precisions",
    "steps": "Training steps",
    "names": "Two import names, old and new versions",
    "configuration": "Configuration",
    "loggers": "Loggers",
    "clients": "Other people's LightningModules",
    "faults": "Faults",
}
NEEDS = {
    "gpu": "needs a GPU",
    "clients": "needs other people's packages",
    "browser": "needs Chromium",
    "slow": "slow",
}
WORDS = {
    "failed": "**{}failed**",
    "known": "**{}known not to hold**",
    "held": "{}held",
    "not run": "{}not run here",
}
PACKAGES = ("torch", "lightning", "torchmetrics")
TABLE = Path("docs", "reliability.md")
INTRODUCTION = """\
# What was tried, and what held

Every row is a marker on tests, and this file is written by the run of those tests: nobody edits it.
"Held" means that every case of the row passed: training with the callbacks was bit-identical to
training without, the numbers were right, or the fault left no trace, whatever the test asserts. A
row that was not run says so. Hypothesis draws many examples for what counts as one case here.

`python -m pytest --reliability -m "not clients and not gpu"` writes the rows of which it runs every
case; `-m clients` and `-m gpu` write theirs where the machine has what these need. The last run was
made with {versions}.
"""
HEAD = "\n## {}\n\n| what was tried | outcome | cases | tests |\n| --- | --- | ---: | --- |\n"


class Case(NamedTuple):
    """A test of one row: its file, and its outcome (a key of `WORDS`) with the reason for it."""

    file: str
    outcome: str
    why: str = ""


def row(what, cases):
    """Return the line of the table for all cases of one row."""
    said = []
    for outcome, words in WORDS.items():
        own = [case for case in cases if case.outcome == outcome]
        if own:
            share = "" if len(own) == len(cases) else f"{len(own)} of {len(cases)} "
            reasons = "; ".join(sorted({case.why for case in own if case.why}))
            said.append(words.format(share) + (f" ({reasons})" if reasons else ""))
    files = ", ".join(f"`{Path(file).name}`" for file in sorted({case.file for case in cases}))
    cells = [escaped(what), escaped(", ".join(said)), str(len(cases)), files]
    return f"| {' | '.join(cells)} |"


def escaped(cell):
    return cell.replace("|", "\\|").replace("\n", " ")


def written(rows, versions):
    """Return the file: a section an area, and in it the rows, given by area and what was tried."""
    parts = [INTRODUCTION.format(versions=versions)]
    for area, title in AREAS.items():
        lines = [f"{line}\n" for (own, _), line in rows.items() if own == area]
        parts += [HEAD.format(title), *lines] if lines else []
    return "".join(parts)


def read(text):
    """Return the rows of a file, by area and what was tried."""
    area, rows = None, {}
    titles = {title: area for area, title in AREAS.items()}
    for line in text.splitlines():
        if line.startswith("## "):
            area = titles[line[3:]]
        elif line.startswith("| ") and not line.startswith(("| what was tried |", "| ---")):
            rows[area, line[2:].split(" | ")[0].replace("\\|", "|")] = line
    return rows


def pytest_addoption(parser):
    group = parser.getgroup("reliability")
    group.addoption("--reliability", action="store_true", help=f"write the rows of {TABLE}")
    group.addoption(
        "--reliability-check", action="store_true", help=f"fail if {TABLE} and the suite differ"
    )


def pytest_configure(config):
    if config.getoption("--reliability") or config.getoption("--reliability-check"):
        config.pluginmanager.register(Recorder(config), "reliability-recorder")


class Recorder:
    """Records the outcome of every test with the marker."""

    def __init__(self, config):
        self.config, self.file = config, config.rootpath / TABLE
        self.rows = {}  # the node ids of the tests of each row
        self.cases = {}  # by node id, as expected if the test is deselected
        self.ran = set()
        self.complaints = []

    @pytest.hookimpl(tryfirst=True)  # before any test is deselected
    def pytest_collection_modifyitems(self, items):
        for item in items:
            needs = ", ".join(why for name, why in NEEDS.items() if item.get_closest_marker(name))
            self.cases[item.nodeid] = Case(item.nodeid.split("::")[0], "not run", needs)
            for marker in item.iter_markers("tried"):
                if marker.args[0] not in AREAS:
                    raise pytest.UsageError(
                        f"`area` of a tried marker must be one of {list(AREAS)}."
                        f" Got {marker.args[0]!r} in {item.nodeid}."
                    )
                self.rows.setdefault(marker.args, []).append(item.nodeid)

    def pytest_runtest_logreport(self, report):
        case = self.cases[report.nodeid]
        self.ran.add(report.nodeid)
        if hasattr(report, "wasxfail"):
            case = case._replace(outcome="known", why=report.wasxfail)
        elif report.failed:
            case = case._replace(outcome="failed", why="")
        elif report.skipped:
            case = case._replace(why=str(report.longrepr[2]).removeprefix("Skipped: "))
        elif report.when == "call":
            why = dict(report.user_properties).get("probes", "")
            case = case._replace(outcome="held", why=why)
        self.cases[report.nodeid] = case

    def pytest_sessionfinish(self, session):
        before = read(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        # a run of some files knows nothing about the rows of the others
        others = {} if self.config.args_source is pytest.Config.ArgsSource.TESTPATHS else before
        if self.config.getoption("--reliability"):
            rows = others | {
                key: before[key]
                if key in before and not self.ran.issuperset(tests)
                else row(key[1], [self.cases[test] for test in tests])
                for key, tests in self.rows.items()
            }
            self.file.parent.mkdir(exist_ok=True)
            versions = [f"Python {platform.python_version()}"]
            versions += [f"{name} {metadata.version(name)}" for name in PACKAGES]
            self.file.write_text(written(rows, ", ".join(versions)), encoding="utf-8")
        else:
            for area, what in sorted((self.rows | others).keys() ^ before.keys()):
                problem = "lacks" if (area, what) in self.rows else "has no test for"
                self.complaints.append(f"{TABLE} {problem} the row {what!r} in {area}")
            if self.complaints:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for complaint in self.complaints:
            terminalreporter.line(complaint)
