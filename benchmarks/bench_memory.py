"""The most that a probe holds at a time, see `memory.py`."""

from __future__ import annotations

import memory
import pytest

pytestmark = pytest.mark.skipif(
    not memory.available(), reason="/proc/self/clear_refs cannot be written here"
)


def test_slices(benchmark, record):
    """A direction drawn, its slice evaluated, the module opened and closed."""
    used = benchmark.pedantic(lambda: memory.measured("slices"))
    record("memory/slices", "parameters", used, 2.2)


def test_average(benchmark, record, quick):
    """The average itself, and what its updates need besides."""
    if quick:
        pytest.skip("for the full run")
    used = benchmark.pedantic(lambda: memory.measured("swa"))
    record("memory/SWA", "parameters", used, memory.measured("averaged_model"))


def test_breakdown(benchmark, record, quick):
    """What a fit holds more with a GradientBreakdownMonitor."""
    if quick:
        pytest.skip("for the full run")
    used = benchmark.pedantic(lambda: memory.measured("breakdown"))
    record("memory/GradientBreakdownMonitor", "parameters", used - memory.measured("fit"))
