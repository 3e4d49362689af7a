"""What is said of runs that are over."""

import pytest
import torch

from lightning_landscape import FunctionObjective, evaluate_slice, line_grid, survey
from lightning_landscape.analysis.show import last_numbers
from lightning_landscape.measures.breakdown import measure_breakdown
from lightning_landscape.measures.line import compare_ends
from lightning_landscape.reporting.records import Record
from lightning_landscape.reporting.results import breakdown_data, probe_data
from lightning_landscape.reporting.scalars import breakdown_scalars, family_scalars, line_scalars


def test_compare_shows_the_numbers_of_the_logger_under_its_names():
    w = {"w": torch.tensor([[3.0, 4.0]], dtype=torch.float64)}
    bowl = FunctionObjective(lambda p: p["w"].square().sum().expand(2), w)
    surveys = survey(bowl, ["sign@w"], n_directions=6, n_points=5)
    line = evaluate_slice(bowl, {"w": -w["w"]}, line_grid())
    # the loss 25 (1 - eta / 10)^2 is least at eta = 10: a relative step of 1
    found = measure_breakdown(bowl, {"w": -0.1 * w["w"]}, [1.0, 10.0, 20.0])
    kinds = [
        *probe_data(surveys, [line, line]),
        ("breakdown", "update", breakdown_data(found)),
    ]
    numbers = last_numbers([Record(kind, name, 7, data, "m") for kind, name, data in kinds])
    score = compare_ends(line)
    logged = family_scalars(surveys["sign@w"]) | line_scalars(score, score)
    logged |= breakdown_scalars("update", found)
    tags = {f"m/{tag}".replace("@", "-"): value for tag, value in logged.items()}
    shown = {name: values[0] for name, values in numbers.items()}
    assert shown == pytest.approx({name: tags[name] for name in numbers})
    assert len(numbers) == 6
    assert (shown["m/update/descent_limit"], shown["m/update/break_even"]) == pytest.approx((1, 2))
