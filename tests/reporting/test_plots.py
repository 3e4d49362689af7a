"""Figures: their numbers and words, never their pixels."""

import math
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightning_landscape.measures.asymmetry import score_asymmetry
from lightning_landscape.measures.line import compare_ends
from lightning_landscape.measures.rates import AsymmetryRate
from lightning_landscape.measures.slices import Slice, line_grid, symmetric_grid
from lightning_landscape.reporting.figures_asymmetry import plot_history, plot_line, plot_slices

GRID = symmetric_grid(0.6, 13)


def valley(steepness, n_batches=3, mode="train"):
    """exp(a x) - a x - 1: the + side is steep for a positive a."""
    loss = torch.exp(steepness * GRID) - steepness * GRID - 1
    return Slice(GRID, loss[:, None] + 0.01 * torch.arange(n_batches), 2.0, mode, "valley")


def slices_figure(slices, **options):
    scores = [score_asymmetry(line) for line in slices]
    rate = AsymmetryRate()
    for score in scores:
        rate.update(score)
    return plot_slices("uniform@norm", slices, scores, rate.compute(), **options)


def words(figure):
    FigureCanvasAgg(figure).draw()  # raises if something cannot be drawn
    axes = figure.axes[0]
    caption = " ".join(figure._supxlabel.get_text().split()) if figure._supxlabel else ""
    return " | ".join([axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel(), caption])


def test_slices_say_what_they_are():
    text = words(slices_figure([valley(a) for a in (4.0, 5.0, 6.0)], step=99))
    assert "uniform@norm: 3 random directions, step 99" in text
    assert "relative to the weights (filter norm)" in text
    assert "loss, mean of 3 batches" in text
    assert "95 % interval" in text
    assert "train mode" in text
    assert f"median {score_asymmetry(valley(5.0)).area:+.2f}" in text  # that of the middle one


def test_the_median_direction_is_drawn_through_the_losses():
    slices = [valley(a, n_batches=1) for a in (4.0, 5.0, 6.0)]
    lines = slices_figure(slices).axes[0].get_lines()
    thick = next(line for line in lines if "median" in str(line.get_label()))
    np.testing.assert_allclose(thick.get_ydata(), slices[1].mean)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite_are_gaps_and_counted(bad):
    losses = valley(4.0).losses.clone()
    losses[-1, 0] = bad
    figure = slices_figure([Slice(GRID, losses, mode="eval"), valley(4.0, mode="eval")])
    assert "1 losses were not finite: drawn as gaps" in words(figure)
    assert math.isnan(figure.axes[0].get_lines()[0].get_ydata()[-1])


def test_a_slice_without_a_finite_loss_is_still_a_figure():
    nothing = Slice(GRID, torch.full((13, 1), math.nan))
    words(slices_figure([nothing]))
    words(plot_history("gaussian", [0], GRID, torch.full((1, 13), math.nan)))


def test_train_and_validation_are_told_apart():
    figure = slices_figure([valley(4.0)], validation=[valley(3.0)])
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [label for label in labels if "median" in label] == [
        "train, median direction",
        "validation, median direction",
    ]


@pytest.mark.parametrize("steps", [[7], [0, 10, 100], list(range(50))], ids=len)
def test_history_has_a_column_for_each_probe(steps):
    rises = torch.stack([valley(4.0).mean - valley(4.0).mean[6]] * len(steps))
    figure = plot_history("gaussian", steps, GRID, rises)
    assert f"{len(steps)} probes" in words(figure)
    assert figure.axes[0].get_xlabel() == "training step"
    mesh = figure.axes[0].collections[0]
    assert mesh.get_array().shape == (13, len(steps))


def test_the_line_says_which_end_is_which_and_how_sure_it_is():
    t = line_grid(4.0)
    train = Slice(t, torch.stack([(t + 0.2) ** 2, (t + 0.1) ** 2], dim=1), 3.0, "train")
    validation = Slice(t, torch.stack([(t - 1.2) ** 2], dim=1), 3.0, "train")
    figure = plot_line(
        train,
        compare_ends(train),
        validation=validation,
        validation_score=compare_ends(validation),
        step=5,
    )
    text = words(figure)
    assert "from the current to the SWA weights, step 5" in text
    assert "distance from 0 to 1 is 3" in text
    assert "train: L(average) - L(current) = +1.3 ± 0.1" in text  # 1.44 - .04, 1.21 - .01
    assert {"current", "average"} <= {note.get_text() for note in figure.axes[0].texts}


@pytest.mark.parametrize("step", [5, 123456])
def test_no_caption_runs_out_of_its_figure(step):
    t = line_grid(4.0)
    line = Slice(t, torch.stack([(t + 0.2) ** 2, 1234.5 * (t + 0.1) ** 2], dim=1), 3.0, "train")
    score = compare_ends(line)
    figures = [
        plot_line(line, score, validation=line, validation_score=score, step=step),
        slices_figure([valley(a) for a in range(1, 9)], step=step),
    ]
    for figure in figures:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure._supxlabel.get_window_extent()
        assert box.x1 < figure.bbox.x1
        assert box.y0 >= 0


def test_directions_that_lead_downhill_are_said_not_to_count():
    downhill = Slice(GRID, torch.exp(3 * GRID))
    assert "1 still lead downhill and do not count" in words(slices_figure([downhill, valley(5.0)]))


def test_nothing_was_drawn_through_pyplot():
    slices_figure([valley(4.0)])
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )
