"""What is kept of a run for its page: of long runs a selection, in little memory."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape.reporting.records import Record
from lightning_landscape.reporting.run_records import RunRecords


def cost(step, seconds=1.0):
    return Record("cost", "probe", step, {"seconds": seconds})


@given(st.integers(1, 80), st.integers(1, 10))
def test_a_long_run_keeps_evenly_chosen_probes_first_and_last(n, n_most):
    kept = RunRecords(n_most)
    for step in range(n):
        kept.add(cost(step))
    steps = [record.step for record in kept.all()]
    assert (steps[0], steps[-1]) == (0, n - 1)
    assert min(n, n_most) <= len(steps) <= 2 * n_most
    assert len({b - a for a, b in pairwise(steps[:-1])}) <= 1
    assert max((b - a for a, b in pairwise(steps)), default=1) <= max(1, 2 * n / n_most)


def test_records_come_back_as_they_were_the_last_of_a_step():
    kept = RunRecords()
    kept.add(cost(3))
    kept.add(cost(3, 2.5))
    kept.add(cost(1))
    assert kept.all() == [cost(1), cost(3, 2.5)]
