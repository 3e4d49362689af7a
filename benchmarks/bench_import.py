"""What `import lightning_landscape` takes, once lightning and matplotlib's Figure are there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lightning_landscape

PROGRAM = """
import time
import lightning.pytorch
from matplotlib.figure import Figure
theirs = time.process_time()
import lightning_landscape
print(time.process_time() - theirs, theirs)
"""


def test_import(benchmark, record, quick):
    """The least of a few processes: what only reads files varies most."""
    root = Path(lightning_landscape.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    seconds: list[tuple[float, float]] = []

    def one():
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
        run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        ours, theirs = map(float, run.stdout.split())
        seconds.append((ours, theirs))

    benchmark.pedantic(one, rounds=2 if quick else 5)
    ours, theirs = map(min, zip(*seconds, strict=True))
    record("import", "s", ours, 0.3, lightning_and_figure=theirs)
