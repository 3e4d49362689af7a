"""When to probe, and what it may cost."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_landscape import FunctionObjective
from lightning_landscape.callbacks.budget import Budget, Schedule, describe_cost
from lightning_landscape.callbacks.costs import ProbePlan, TimedObjective


@given(n=st.integers(1, 50))
def test_every_n_steps_is_due_after_n_and_2_n_and_never_between(n):
    schedule = Schedule.of(every_n_steps=n)
    due = [k for k in range(1, 3 * n + 1) if schedule.due_after_step(k)]
    assert due == [n, 2 * n, 3 * n]
    assert not any(schedule.due_after_epoch(epoch) for epoch in range(5))


@given(n=st.integers(1, 50))
def test_every_n_epochs_is_due_at_the_end_of_epochs_counted_from_one(n):
    schedule = Schedule.of(every_n_epochs=n)
    assert [e for e in range(2 * n) if schedule.due_after_epoch(e)] == [n - 1, 2 * n - 1]
    assert not any(schedule.due_after_step(step) for step in range(5))


def test_without_a_frequency_the_budget_is_asked_every_epoch_and_50_steps():
    schedule = Schedule()
    assert not schedule.is_fixed
    assert all(schedule.due_after_epoch(epoch) for epoch in range(3))
    assert [n for n in range(1, 120) if schedule.due_after_step(n)] == [50, 100]


def test_neither_means_the_default():
    assert Schedule.of() == Schedule(every_n_epochs=1)
    assert Schedule.of(default=Schedule(every_n_steps=100)).every_n_steps == 100
    assert Schedule.of(default=Schedule()) == Schedule()


def test_schedules_read_as_a_person_would_say_them():
    assert str(Schedule.of()) == "every epoch"
    assert str(Schedule.of(every_n_steps=100)) == "every 100 steps"
    assert str(Schedule()) == "as often as the budget affords"


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2"])
def test_a_period_is_a_whole_number_from_one_up(n):
    with pytest.raises(MisconfigurationException, match="`every_n_steps` must be a whole number"):
        Schedule.of(every_n_steps=n)


def test_both_periods_exclude_each_other():
    with pytest.raises(MisconfigurationException, match="exclude each other"):
        Schedule.of(1, 1)


@given(
    share=st.floats(0.01, 0.5),
    costs=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=30),
    training=st.floats(0.01, 10.0),
)
def test_what_is_afforded_never_takes_more_than_its_share(share, costs, training):
    with pytest.MonkeyPatch.context() as patch:
        now = [0.0]
        patch.setattr("time.monotonic", lambda: now[0])
        budget = Budget(share)
        for cost in costs:
            now[0] += training
            if budget.affords("probe", at_least=cost):
                with budget.spending("probe"):
                    now[0] += cost
                assert budget.overhead() <= share * (1 + 1e-9)


def test_time_is_counted_once_as_what_it_was_spent_on_last(clock):
    budget = Budget(0.1)
    with budget.spending("probe"):
        clock.now += 1
        with budget.spending("figures"):
            clock.now += 2
        clock.now += 4
    clock.now += 8
    assert (budget.spent["probe"], budget.spent["figures"]) == (5, 2)
    assert (budget.total(), budget.elapsed()) == (7, 15)
    assert budget.overhead() == pytest.approx(7 / 15)


def test_time_is_counted_also_where_what_it_was_spent_on_fails(clock):
    def fail():
        clock.now += 3
        raise ZeroDivisionError

    budget = Budget(0.1)
    with pytest.raises(ZeroDivisionError), budget.spending("probe"):
        fail()
    clock.now += 5
    assert budget.total() == 3


def test_the_time_that_is_spent_is_counted_while_it_is(clock):
    budget = Budget(0.1)
    with budget.spending("probe"):
        clock.now += 3
        assert budget.spent_on("probe") == 3


def test_what_is_left_is_what_is_afforded(clock):
    budget = Budget(0.05)
    with budget.spending("probe"):
        clock.now += 0.4
    clock.now += 36.6
    left = budget.left()
    assert left == pytest.approx((0.05 * 37 - 0.4) / 0.95)
    assert budget.affords("probe", at_least=left - 1e-9)
    assert not budget.affords("probe", at_least=left + 1e-9)
    assert Budget(None).left() == math.inf


def test_what_is_expected_rises_at_once_and_falls_by_half():
    budget = Budget(0.1)
    for seconds, expected in ((4.0, 4.0), (8.0, 8.0), (2.0, 5.0), (1.0, 3.0)):
        budget.expect("probe", seconds)
        assert budget.expected["probe"] == expected


def test_what_is_expected_is_not_afforded_before_there_is_time_for_it(clock):
    budget = Budget(0.1)
    budget.expect("probe", 1.0)
    clock.now = 8.9
    assert not budget.affords("probe")
    clock.now = 9.0
    assert budget.affords("probe")


def test_figures_may_take_as_much_time_as_probes_have(clock):
    budget = Budget(0.5)
    clock.now = 100.0
    assert budget.affords("figures")  # none so far
    with budget.spending("figures"):
        clock.now += 1
    assert not budget.affords("figures")
    with budget.spending("probe"):
        clock.now += 1
    assert budget.affords("figures")


def test_what_was_spent_ends_with_the_fit_and_what_is_known_does_not(clock):
    budget = Budget(0.1)
    with budget.spending("probe"):
        clock.now += 3
    budget.expect("evaluation", 2.0)
    budget.start()
    assert (budget.total(), budget.elapsed(), budget.overhead()) == (0, 0, 0)
    assert budget.expected == {"evaluation": 2.0}


def test_a_cost_that_is_high_comes_with_its_remedy():
    line = describe_cost([1], 1, 1.0, Schedule.of(), period=1.0)
    assert line.endswith("50 % of the time; probe less often, or set max_overhead=0.05")
    held = describe_cost([1], 1, 1.0, Schedule.of(), period=1.0, share=0.1)
    assert held.endswith("at most every epoch, and at most 10 % of the fit")


def test_costs_that_differ_are_said_as_a_range():
    line = describe_cost([72, 224], 2, 1.0, Schedule.of(), period=100.0)
    assert "72 to 224 evaluations, about 1 to 3.1 s (144 to 448 forward passes)" in line


# -- evaluations -----------------------------------------------------------------------------------


@given(
    families=st.integers(1, 4),
    points=st.sampled_from([5, 9, 13]),
    whole=st.integers(1, 12),
    further=st.sampled_from([0, 96]),
    line=st.sampled_from([0, 31]),
    seconds=st.floats(0.0, 2000.0),
)
def test_the_directions_that_fit_are_as_many_as_fit(
    families, points, whole, further, line, seconds
):
    plan = ProbePlan(families, points, whole, whole + further, line)

    def takes(n):
        first = min(n, whole)
        return line + families * (first * points + (n - first) * (points - 1))

    n = plan.directions_within(seconds, 1.0)
    assert n == 0 or takes(n) <= seconds
    assert n == plan.n_most or takes(n + 1) > seconds - 1
    assert takes(plan.n_whole) == plan.n_least
    assert takes(plan.n_most) == plan.n_evaluations


def test_where_no_family_moves_anything_the_directions_cost_nothing():
    assert ProbePlan(0, 13, 8, 104, n_line=31).directions_within(1.0, 0.5) == 104


def test_a_probe_is_foretold_from_one_direction_of_the_first_family():
    # 13 evaluations of .1 s, and .7 s for the weights; the second family moves a seventh of them
    plan = ProbePlan(n_families=2, n_points=13, n_whole=8, n_most=8, n_line=26)
    assert plan.seconds(2.0, 0.1, [70, 10]) == pytest.approx(8 * (2.0 + 1.4) + 2 * 2.0)


def test_a_direction_is_timed_from_one_to_the_next_once(clock):
    bowl = FunctionObjective(lambda p: p["x"].square().sum(), {"x": torch.ones(2)})
    told = []
    objective = TimedObjective(bowl, told.append)
    for seconds in (5.0, 2.0, 3.0, 4.0):
        assert objective.along({"x": torch.ones(2)})(1.0) == bowl.losses({"x": torch.ones(2)}, 1.0)
        clock.now += seconds
    assert told == [2.0]


def test_a_gradient_is_timed_where_the_weights_are_moved(clock):
    bowl = FunctionObjective(lambda p: p["x"].square().sum(), {"x": torch.ones(2)})
    told = []
    objective = TimedObjective(bowl, told.append)
    for direction, seconds in ((None, 9.0), *(({"x": torch.ones(2)}, s) for s in (5.0, 2.0, 3.0))):
        objective.gradient(direction, 1.0)
        clock.now += seconds
    assert told == [2.0]
