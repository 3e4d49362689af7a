"""The wheel brings the viewer, and announces the tab."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lightning_landscape.reporting.tensorboard.plugin import STATIC

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_viewer_and_its_entry_point(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*command, str(ROOT)], check=True)
    [path] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        entry_points = wheel.read(next(n for n in names if n.endswith("entry_points.txt")))
    package = STATIC.parents[3]
    wanted = {str(p.relative_to(package)) for p in STATIC.rglob("*") if p.is_file()}
    assert len(wanted) > 15
    assert wanted <= names
    assert b"[tensorboard_plugins]" in entry_points
    assert b"reporting.tensorboard.plugin:LandscapeLoader" in entry_points
