"""A pytest plugin that writes docs/reliability.md: what was tried on this library, and what held.

A test that carries `@pytest.mark.tried(area, what)` is a case of a row of that table. Runs add up:
what a run leaves out keeps the outcome it had, in a file beside the cache of pytest. To make the
table anew, and to ask whether it lacks a row:

    python -m pytest --reliability
    python -m pytest --reliability -m slow
    python -m pytest --reliability -m clients
    python -m pytest --reliability-check --collect-only
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

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
PACKAGES = ("torch", "lightning", "torchmetrics")
TABLE, MEMORY = Path("docs", "reliability.md"), Path(".reliability.json")

INTRODUCTION = """\
# What was tried, and what held

Every row is a marker on tests, and this file is written by the run of those tests: nobody edits it.
"Held" means that every case of the row passed: training with the callbacks was bit-identical to
training without, the numbers were right, or the fault left no trace, whatever the test asserts. A
row that was not run says so. Hypothesis draws many examples for what counts as one case here.

It takes several runs, each of which adds to the ones before: `python -m pytest --reliability`, then
the same with `-m slow`, `-m clients` and `-m gpu` where the machine has what these need. The last
was made with {versions}.
"""


@dataclass(frozen=True)
class Case:
    """One test of one row.

    Attributes:
        area: The section.
        what: The row: what was tried, in a person's words.
        test: Its node id, file first.
        line: Where it stands in the file.
        outcome: `"held"`, `"failed"`, `"known"` (expected to fail) or `"not run"`.
        why: What it would have taken to run it, or what is known.
    """

    area: str
    what: str
    test: str
    line: int = 0
    outcome: str = "not run"
    why: str = ""

    @property
    def file(self):
        return self.test.split("::")[0]


def table(cases, versions):
    """Return the file as Markdown: a section an area, a row for everything tried in it."""
    unknown = sorted({case.area for case in cases} - set(AREAS))
    if unknown:
        raise ValueError(f"`area` of a tried marker must be one of {list(AREAS)}. Got {unknown}.")
    parts = [INTRODUCTION.format(versions=versions)]
    for area, title in AREAS.items():
        found = rows([case for case in cases if case.area == area])
        if found:
            head = "| what was tried | outcome | cases | tests |\n| --- | --- | ---: | --- |"
            lines = [f"| {' | '.join(cells)} |" for cells in found]
            parts.append("\n".join([f"## {title}", "", head, *lines, ""]))
    return "\n".join(parts)


def rows(cases):
    """Return the cells of each row, in the order of the files and of the tests in them."""
    by_what = {}
    for case in sorted(cases, key=lambda case: (case.file, case.line, case.test)):
        by_what.setdefault(case.what, []).append(case)
    return [
        [_escaped(what), _escaped(outcome(own)), str(len(own)), _files(own)]
        for what, own in by_what.items()
    ]


def outcome(cases):
    """Say in a cell how the cases of one row came out."""
    n = Counter(case.outcome for case in cases)
    reasons = {
        kind: "; ".join(sorted({case.why for case in cases if case.outcome == kind and case.why}))
        for kind in n
    }

    def share(kind):
        return "" if n[kind] == len(cases) else f"{n[kind]} of {len(cases)} "

    said = []
    if n["failed"]:
        said.append(f"**{share('failed')}failed**")
    if n["known"]:
        said.append(f"**{share('known')}known not to hold**{_after(reasons['known'])}")
    if n["held"]:
        said.append(f"{share('held')}held")
    if n["not run"]:
        said.append(f"{share('not run')}not run here{_after(reasons['not run'])}")
    return ", ".join(said)


def merged(before, collected, ran, *, files=()):
    """Return all that is known after a run.

    Args:
        before: The cases known before it.
        collected: The cases this run found, whether it ran them or not.
        ran: Those it ran, with their outcomes.
        files: Files of which every test was collected: what else was known of them is gone.
    """
    last = {_key(case): case for case in before}
    known = {key: case for key, case in last.items() if case.file not in files}
    for case in [*collected, *ran]:
        key = _key(case)
        known[key] = _latest(case, known.get(key, last.get(key)))
    return sorted(known.values(), key=_key)


def _latest(now, before):
    """Return the case as it is now; if it was not run, with the outcome or the reason it had."""
    unknown = now.outcome == "not run"
    if before is not None and unknown and (before.outcome != "not run" or not now.why):
        return replace(now, outcome=before.outcome, why=before.why)
    return now


def lacking(text, cases):
    """Return the rows that the suite has and the file lacks, as `(area, what)`."""
    sections = _sections(text)
    wanted = sorted({(case.area, case.what) for case in cases})
    return [(area, what) for area, what in wanted if what not in sections.get(AREAS[area], [])]


def superfluous(text, cases):
    """Return the rows that the file has and the suite lacks, as `(area, what)`."""
    wanted = {(case.area, case.what) for case in cases}
    titles = {title: area for area, title in AREAS.items()}
    return [
        (titles[title], what)
        for title, found in _sections(text).items()
        for what in found
        if (titles[title], what) not in wanted
    ]


def _sections(text):
    sections = {}
    for line in text.splitlines():
        if line.startswith("## "):
            own = sections.setdefault(line[3:], [])
        elif line.startswith("| ") and not line.startswith(("| what was tried |", "| --- |")):
            own.append(line[2:].split(" | ")[0].replace("\\|", "|"))
    return sections


def _key(case):
    return case.test, case.area, case.what


def _after(reason):
    return f" ({reason})" if reason else ""


def _escaped(cell):
    return cell.replace("|", "\\|").replace("\n", " ")


def _files(cases):
    return ", ".join(f"`{Path(file).name}`" for file in sorted({case.file for case in cases}))


# ---------------------------------------------------------------------------------- the plugin


def pytest_addoption(parser):
    group = parser.getgroup("reliability")
    group.addoption(
        "--reliability", action="store_true", help=f"write what was tried, and held, to {TABLE}"
    )
    group.addoption(
        "--reliability-check",
        action="store_true",
        help=f"fail if {TABLE} lacks a row of the suite; with --collect-only nothing is run",
    )


def pytest_configure(config):
    if config.getoption("--reliability") or config.getoption("--reliability-check"):
        config.pluginmanager.register(Recorder(config), "reliability-recorder")


class Recorder:
    """Notes the outcome of every test with the marker, and writes it all down at the end."""

    def __init__(self, config):
        self.config = config
        self.collected = {}  # cases by node id
        self.ran = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items):
        """Look before anything is deselected."""
        for item in items:
            self.collected[item.nodeid] = [
                Case(
                    *_arguments(item, marker), item.nodeid, item.location[1] or 0, why=_needs(item)
                )
                for marker in item.iter_markers("tried")
            ]

    def pytest_runtest_logreport(self, report):
        for case in self.collected[report.nodeid]:
            now = _judged(case, report)
            if now is not None:
                self.ran[_key(case)] = now

    def pytest_sessionfinish(self, session):
        cases = [case for own in self.collected.values() for case in own]
        root = self.config.rootpath
        if self.config.getoption("--reliability"):
            whole = not any("::" in argument for argument in self.config.args)
            files = {nodeid.split("::")[0] for nodeid in self.collected} if whole else set()
            before = [case for case in _remembered(root) if (root / case.file).exists()]
            known = merged(before, cases, list(self.ran.values()), files=files)
            written = json.dumps([asdict(case) for case in known], indent=0)
            (root / MEMORY).write_text(written + "\n", encoding="utf-8")
            (root / TABLE).parent.mkdir(exist_ok=True)
            (root / TABLE).write_text(table(known, _versions()), encoding="utf-8")
        self.complaints = []
        if self.config.getoption("--reliability-check"):
            text = (root / TABLE).read_text(encoding="utf-8") if (root / TABLE).exists() else ""
            self.complaints = [f"lacks the row {what!r} in {a}" for a, what in lacking(text, cases)]
            if self.config.args_source is pytest.Config.ArgsSource.TESTPATHS:
                self.complaints += [
                    f"has the row {what!r} in {area}, which no test stands for"
                    for area, what in superfluous(text, cases)
                ]
            if self.complaints:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for complaint in self.complaints:
            terminalreporter.line(f"{TABLE} {complaint}")


def _arguments(item, marker):
    area, what = marker.args
    if area not in AREAS:
        raise pytest.UsageError(
            f"`area` of a tried marker must be one of {list(AREAS)}. Got {area!r} in {item.nodeid}."
        )
    return area, what


def _needs(item):
    """Say what it takes to run a test that the default run leaves out."""
    needs = {
        "gpu": "needs a GPU",
        "clients": "needs other people's packages",
        "slow": "slow",
    }
    return ", ".join(words for name, words in needs.items() if item.get_closest_marker(name))


def _judged(case, report):
    """Return the case with what a report says of it; None if that says nothing."""
    if hasattr(report, "wasxfail"):
        return replace(case, outcome="known", why=report.wasxfail)
    if report.failed:
        return replace(case, outcome="failed", why="")
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        return replace(case, outcome="not run", why=reason.removeprefix("Skipped: "))
    return replace(case, outcome="held", why="") if report.when == "call" else None


def _remembered(root):
    path = root / MEMORY
    return [Case(**row) for row in json.loads(path.read_text("utf-8"))] if path.exists() else []


def _versions():
    packages = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return ", ".join([f"Python {platform.python_version()}", *packages])
