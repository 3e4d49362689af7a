"""The documentation: each public name has a page, each picture is shown, nothing is loaded."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_landscape

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LOADED = r"<(?:script|link|img|iframe|source|video|audio)\b[^>]*?\b(?:src|href)=[\"'](https?:)?//"


def test_the_reference_lists_each_public_name_once():
    listed = re.findall(r"^   (\w+)$", (DOCS / "reference.md").read_text("utf-8"), re.M)
    assert sorted(listed) == sorted(lightning_landscape.__all__)


def test_each_picture_is_shown_and_there():
    pages = [ROOT / "README.md", *DOCS.glob("*.md")]
    shown = set()
    for page in pages:
        for link in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", page.read_text("utf-8")):
            assert (page.parent / link).is_file(), f"{page.name} shows {link}"
            shown.add(Path(link).name)
    assert {path.name for path in (DOCS / "pictures").iterdir()} <= shown


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_to_files_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text("utf-8")):
        assert (ROOT / link).exists(), link


def test_what_the_architecture_page_names_is_where_it_says():
    text = (DOCS / "architecture.md").read_text("utf-8")
    found = re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", text)
    assert len(found) > 10
    for file, names in found:
        code = (Path(lightning_landscape.__file__).parent / file).read_text("utf-8")
        for name in re.findall(r"\w+", names):
            assert re.search(rf"^((def|class) {name}\b|{name}[ :])", code, re.M), f"{file}: {name}"


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 100


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_loads_nothing_from_the_web(tmp_path):
    pytest.importorskip("sphinx_gallery", reason="needs the extra `docs`")
    pytest.importorskip("furo")
    for name in ("docs", "examples", "CONTRIBUTING.md", "CHANGELOG.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for made in ("_build", "gallery", "reference"):
        shutil.rmtree(tmp_path / "docs" / made, ignore_errors=True)
    site = tmp_path / "site"
    # the examples are run by the build in .ci/run, and by test_readme.py
    command = ["-m", "sphinx", "-W", "-n", "-q", "-D", "plot_gallery=0", tmp_path / "docs", site]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for page in site.rglob("*.html"):
        loaded = re.search(LOADED, page.read_text("utf-8"))
        assert not loaded, f"{page.relative_to(site)}: {loaded}"
    pages = {path.name for path in (site / "reference").iterdir()}
    for name in lightning_landscape.__all__:
        path = f"lightning_landscape.{name}"
        [page] = pages & {f"{path}.html", f"{path}-function.html"} or {""}
        assert f'id="{path}"' in (site / "reference" / page).read_text("utf-8"), name
