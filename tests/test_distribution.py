"""What is released: the wheel, the source distribution, the version and who is to be cited."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import lightning_landscape

ROOT = Path(__file__).parents[1]
VERSION = lightning_landscape.__version__
UPLOT = "lightning_landscape/reporting/tensorboard/static/vendor/uPlot"


def run(*command, cwd=ROOT):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked(folder):
    """Return the files of a folder that git knows, or that it would add."""
    return set(run("git", "ls-files", "--cached", "--others", "--exclude-standard", folder).split())


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The source distribution and the wheel that is built from it."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT))
    [source], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return source, wheel


@pytest.mark.slow
def test_the_wheel_holds_our_files_and_nothing_else(released):
    with zipfile.ZipFile(released[1]) as wheel:
        names = set(wheel.namelist())
        info = f"lightning_landscape-{VERSION}.dist-info/"
        entry_points = wheel.read(f"{info}entry_points.txt").decode()
        metadata = wheel.read(f"{info}METADATA").decode()
    added = {"METADATA", "WHEEL", "RECORD", "entry_points.txt"}
    added |= {"licenses/LICENSE", f"licenses/{UPLOT}.LICENSE"}
    assert names == tracked("lightning_landscape") | {info + name for name in added}
    assert {f"{UPLOT}.iife.min.js", "lightning_landscape/py.typed"} <= names
    assert "[tensorboard_plugins]" in entry_points
    assert "reporting.tensorboard.plugin:LandscapeLoader" in entry_points
    assert f"\nVersion: {VERSION}\n" in metadata


@pytest.mark.slow
def test_the_source_distribution_builds_the_same_wheel(released, tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    run(*command)
    [direct] = tmp_path.glob("*.whl")
    assert direct.name == released[1].name
    with zipfile.ZipFile(direct) as one, zipfile.ZipFile(released[1]) as other:
        assert one.namelist() == other.namelist()
        for name in one.namelist():
            assert one.read(name) == other.read(name), name


@pytest.mark.slow
def test_the_source_distribution_brings_tests_docs_and_examples(released):
    with tarfile.open(released[0]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert tracked("tests") | tracked("docs") | tracked("examples") <= names
    assert {"CITATION.cff", "CHANGELOG.md", "constraints.txt", "LICENSE", "README.md"} <= names
    assert not any(name.startswith((".ci", "benchmarks", ".git/")) for name in names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_wheel_runs_the_first_snippet_and_announces_the_tab(released, tmp_path):
    place = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place)]
    run(*pip, str(released[1]))
    snippet = re.search(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )
    code = f"""
import sys
sys.path[:0] = [{str(place)!r}, {str(ROOT / "tests")!r}]
from importlib.metadata import entry_points
from toys import Classifier, Data
your_module, your_data = Classifier(), Data()
{snippet[1]}
[tab] = entry_points(group="tensorboard_plugins", name="landscape")
import lightning_landscape
assert lightning_landscape.__file__.startswith({str(place)!r})
assert tab.dist.locate_file("").samefile({str(place)!r})
assert tab.load()
"""
    run(sys.executable, "-c", code, cwd=tmp_path)
    assert list(tmp_path.glob("lightning_logs/version_0/events.*"))


def test_the_changelog_has_the_version_and_a_place_for_what_comes():
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert headings[:2] == ["Unreleased", VERSION]


def test_a_section_of_the_changelog_is_short_enough_to_be_read():
    _, *sections = (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n## ")
    for section in sections:
        assert len(section.splitlines()) <= 60, section.splitlines()[0]


def test_the_citation_names_the_version_and_both_papers():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f'\nversion: "{VERSION}"\n' in citation
    assert re.findall(r"10\.48550/arXiv\.(\d{4}\.\d{5})", citation) == ["1902.00744", "2002.03432"]


def test_before_a_commit_the_same_checks_run_as_in_ci():
    hooks = re.findall(r"^ *entry: (.*)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.M)
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    checks = re.findall(r"^\.venv/bin/((?:ruff|pyright) .*)$", script, re.M)
    assert hooks == [check.removesuffix(" --pythonpath .venv/bin/python") for check in checks]
    assert hooks == ["ruff format --check .", "ruff check .", "pyright"]
