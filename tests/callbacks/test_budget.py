import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_landscape.callbacks.budget import Budget, Schedule, check_share, predicted_cost


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


def test_neither_means_the_default():
    assert Schedule.of() == Schedule(every_n_epochs=1)
    assert Schedule.of(default=Schedule(every_n_steps=100)).every_n_steps == 100


def test_schedules_read_as_a_person_would_say_them():
    assert str(Schedule.of()) == "every epoch"
    assert str(Schedule.of(every_n_steps=100)) == "every 100 steps"


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
def test_probes_that_are_afforded_never_take_more_than_their_share(share, costs, training):
    now, budget = 0.0, Budget(share, 0.0)
    for cost in costs:
        now += training
        if budget.affords(cost, now):
            now += cost
            budget.spent += cost
            assert budget.overhead(now) <= share * (1 + 1e-9)


def test_without_a_share_everything_is_afforded():
    assert Budget(None, 0.0).affords(1e9, now=0.0)


def test_before_any_time_has_passed_the_overhead_is_zero():
    assert Budget(None, 5.0).overhead(5.0) == 0.0


@pytest.mark.parametrize("share", [0, 1, -0.1, 2.0])
def test_a_share_lies_between_zero_and_one(share):
    with pytest.raises(MisconfigurationException, match="`max_overhead` must be a share"):
        check_share(share)


def test_the_cost_is_put_in_one_line():
    # 312 * 0.006 = 1.87 s in every 41.87 s
    line = predicted_cost(312, 0.006, Schedule.of(), 40.0)
    assert (
        line
        == "one probe = 312 evaluations, about 1.9 s, every epoch of about 40 s: 4.5 % of the time"
    )
    # dear probes name the remedy
    line = predicted_cost(1, 1.0, Schedule.of(), 0.0)
    assert line.endswith("100 % of the time; probe less often, or set max_overhead=0.05")
