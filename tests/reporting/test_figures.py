"""Figures: their numbers, words and sizes, never their pixels."""

import io
import math
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from lightning_landscape import FunctionObjective, measure_breakdown
from lightning_landscape.measures.asymmetry import score_asymmetry
from lightning_landscape.measures.breakdown import DEFAULT_ETAS
from lightning_landscape.measures.slices import Slice, line_grid, symmetric_grid
from lightning_landscape.measures.survey import survey_of
from lightning_landscape.reporting.figures_asymmetry import plot_history, plot_line, plot_survey
from lightning_landscape.reporting.figures_breakdown import plot_breakdown, plot_breakdown_history
from lightning_landscape.reporting.style import png

GRID, T = symmetric_grid(0.6, 13), line_grid(4.0)
RATE = {"rate": 0.5, "low": 0.1, "high": 0.9, "n": 8.0, "off_minimum": 0.0, "unresolved": 0.0}


def valley(steepness, n_batches=3, mode="train", scale=1.0):
    """exp(a x) - a x - 1: the + side is steep for a positive a."""
    loss = scale * (torch.exp(steepness * GRID) - steepness * GRID - 1)
    return Slice(GRID, loss[:, None] + 0.01 * torch.arange(n_batches), 2.0, mode, "valley")


def slices_figure(slices, rate=None, validation=(), normalize="filter", step=None):
    rate = RATE | (rate or {})
    found = survey_of("uniform@norm", slices, validation, normalize=normalize, rate=rate)
    return plot_survey(found, step=step)


def history(steps=(7, 9, 20), scale=1.0):
    rise = scale * (valley(4.0).mean - valley(4.0).mean[6])
    return plot_history("gaussian", steps, GRID, torch.stack([rise] * len(steps)))


def line_figure(step=5, scale=1.0):
    train = torch.stack([(T + 0.2) ** 2, (T + 0.1) ** 2, (T + 0.15) ** 2], dim=1)
    train, other = Slice(T, scale * train, 3.0, "train"), Slice(T, T - T**2 / 99, 3.0, "train")
    return plot_line(train, other, step=step)


def product(n=4, etas=DEFAULT_ETAS["update"]):
    net = {f"layer{k}.weight": torch.ones(1, 1) for k in range(n)}
    loss = FunctionObjective(lambda p: -torch.stack([w.sum() for w in p.values()]).prod(), net)
    return measure_breakdown(loss, {name: 0.1 * w for name, w in net.items()}, etas)


def many_layers():
    layers = [f"blocks.{k}.a_long_name.for_a_layer.weight" for k in range(100)]
    return plot_breakdown_history("update", [99, 199], layers, torch.rand(2, 100))


FIGURES = {
    "slices": lambda: slices_figure([valley(a) for a in range(1, 9)], step=123456),
    "few": lambda: slices_figure([valley(4.0, 1), Slice(GRID, GRID)], {"n": 104.0}),
    "both": lambda: slices_figure([valley(3.0)] * 8, validation=[valley(2.0)] * 8, step=9),
    "tiny": lambda: slices_figure([valley(4.0, scale=1e-6)] * 8),
    "huge": lambda: slices_figure([valley(4.0, scale=1e6)] * 8),
    "history": history,
    "line": line_figure,
    "huge line": lambda: line_figure(123456, 1234.5),
    "update": lambda: plot_breakdown("update", product(12), step=123456),
    "gradient": lambda: plot_breakdown("gradient", product(2, DEFAULT_ETAS["gradient"])),
    "layers": many_layers,
}


def words(figure):
    FigureCanvasAgg(figure).draw()  # raises if something cannot be plotted
    return " | ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")


@pytest.mark.parametrize("name", FIGURES)
def test_all_text_is_legible_at_350_pixels_and_inside_the_figure(name):
    figure = FIGURES[name]()
    FigureCanvasAgg(figure).draw()
    width, height = figure.get_size_inches()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) * 350 / (72 * width) >= 9
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= width
    assert box.y1 <= height


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_stands_over_the_curves(name):
    figure = FIGURES[name]()
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    assert axes.get_legend() is None
    for text in (*figure.texts, *axes.texts):
        assert not text.get_window_extent().overlaps(axes.get_window_extent()), text.get_text()


@pytest.mark.parametrize("name", FIGURES)
def test_a_picture_is_small(name):
    content = png(FIGURES[name]())
    assert len(content) < 20_000
    assert Image.open(io.BytesIO(content)).size == (504, 444)


@pytest.mark.parametrize(
    "make",
    [
        lambda scale: slices_figure([valley(4.0, scale=scale)] * 2).axes[0].get_ylim(),
        lambda scale: history(scale=scale).axes[0].collections[0].get_clim(),
        lambda scale: line_figure(scale=scale).axes[0].get_ylim(),
    ],
    ids=["slices", "history", "line"],
)
def test_runs_that_are_alike_have_the_same_scale(make):
    assert make(1.0) == make(1.1)


def test_slices_say_what_they_are():
    rate = {"rate": 7 / 8, "low": 0.53, "high": 0.98}
    text = words(slices_figure([valley(a) for a in range(3, 11)], rate, step=99))
    assert "uniform@norm, step 99: asymmetric" in text
    assert "relative to the weights (filter norm)" in text
    assert "8 directions (thick: median), 3 batches, train mode" in text
    assert "asymmetric: 7 of 8 directions, 88 % [53, 98]" in text
    areas = [score_asymmetry(valley(a)).area for a in range(3, 11)]
    assert f"area {np.median(areas):+.2f} [" in text
    assert "], + side steep" in text


def test_the_unit_of_alpha_is_that_of_the_directions():
    assert "alpha: distance, L2 norm" in words(slices_figure([valley(4.0)], normalize="none"))


def test_directions_that_are_not_asymmetric_are_counted_with_their_reason():
    downhill, bowl = Slice(GRID, torch.exp(3 * GRID)), Slice(GRID, GRID**2)
    text = words(slices_figure([downhill, bowl, valley(5.0)], {"n": 3.0}))
    assert "not asymmetric: 1 symmetric, 1 still falling" in text


def test_directions_shown_are_told_from_those_of_the_rate():
    text = words(slices_figure([Slice(GRID, GRID)] * 2, {"rate": 0.0, "n": 3.0}))
    assert "asymmetric: 0 of 3 directions" in text
    assert "of the 2 shown: 2 still falling" in text


def test_the_median_is_plotted_through_the_rises():
    slices = [valley(a, n_batches=1) for a in (4.0, 5.0, 6.0)]
    lines = slices_figure(slices).axes[0].get_lines()
    thick = next(line for line in lines if "median" in str(line.get_label()))
    np.testing.assert_allclose(thick.get_ydata(), slices[1].mean - slices[1].mean[6])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite_are_gaps_and_counted(bad):
    losses = valley(4.0).losses.clone()
    losses[-1, 0] = bad
    figure = slices_figure([Slice(GRID, losses, mode="eval"), valley(4.0, mode="eval")])
    assert "gaps: 1 of the losses not finite" in words(figure)
    thin = figure.axes[0].collections[0].get_paths()[0]
    assert math.isnan(thin.vertices[-1][1])


def test_a_slice_without_a_finite_loss_is_still_a_figure():
    text = words(slices_figure([Slice(GRID, torch.full((13, 1), math.nan))]))
    assert "the loss at the current weights is not finite" in text
    assert "%" not in text
    words(plot_history("gaussian", [0], GRID, torch.full((1, 13), math.nan)))


def test_train_and_validation_are_told_apart():
    text = words(slices_figure([valley(4.0)], validation=[valley(3.0)]))
    assert "training batches" in text
    assert "validation batches" in text


@pytest.mark.parametrize("steps", [[7], [0, 10, 100], list(range(50))], ids=len)
def test_history_has_a_column_for_each_probe(steps):
    figure = history(steps)
    assert f"{len(steps)} probe" in words(figure)
    assert figure.axes[0].get_xlabel() == "training step"
    assert figure.axes[0].collections[0].get_array().shape == (13, len(steps))


def test_the_line_says_which_end_is_which_and_how_sure_it_is():
    text = words(line_figure())
    assert "current weights to average, step 5" in text
    assert "1 is 3 (L2)" in text
    assert "training: +1.3 ± 0.058 at the average, least at t = 0.00" in text  # 1.4, 1.2, 1.3
    assert "validation: +0.99 at the average, least beyond the grid" in text
    assert "average on the steep side" in text
    assert {"current ", " average"} <= set(text.split(" | "))


def test_the_lines_of_the_breakdown_are_the_layers_and_the_model():
    found = product()
    lines = plot_breakdown("update", found).axes[0].get_lines()
    for line, row in zip(lines, found.breakdown, strict=False):
        np.testing.assert_allclose(line.get_ydata(), row)
    model = next(line for line in lines if line.get_label() == "model")
    np.testing.assert_allclose(model.get_ydata(), found.model)


def test_the_breakdown_says_what_was_measured_and_what_is_a_model():
    text = words(plot_breakdown("update", product(), step=7))
    assert "breakdown along update, step 7" in text
    assert "descent limit > 4 (line), break-even > 4 (dots)" in text
    assert "dashed: model (deep relative trust)" in text
    assert "4 layers: first dark, last light; a relative step of 0.1" in text
    assert "one batch, train mode" in text


def test_the_descent_limit_is_plotted_where_it_is():
    bowl = FunctionObjective(lambda p: (p["w"] ** 2).sum() / 2, {"w": torch.ones(1, 2)})
    found = measure_breakdown(bowl, {"w": -0.8 * torch.ones(1, 2)}, DEFAULT_ETAS["update"])
    figure = plot_breakdown("update", found)
    assert "descent limit 1.2 (line)" in words(figure)
    upright = [line.get_xdata() for line in figure.axes[0].get_lines()]
    assert [1.25] * 2 in [[round(float(at), 6) for at in x] for x in upright]


@pytest.mark.parametrize("who", ["", "generator/"])
def test_only_an_update_shows_the_step_taken(who):
    taken = "1 is the step taken"
    assert taken in words(plot_breakdown(f"{who}update", product()))
    assert taken not in words(plot_breakdown(f"{who}gradient", product()))


def test_breakdowns_that_are_not_finite_are_gaps_and_counted():
    sick = FunctionObjective(lambda p: p["w"].sqrt().sum(), {"w": torch.ones(1, 1)})
    found = measure_breakdown(sick, {"w": -torch.ones(1, 1)}, [0.5, 1.5, 2.0])
    assert "gaps: 2 of the values not finite" in words(plot_breakdown("update", found))


def test_a_module_of_vectors_alone_has_figures_without_layers():
    line = FunctionObjective(lambda p: p["w"].sum(), {"w": torch.ones(3)})
    found = measure_breakdown(line, {"w": -torch.ones(3)}, [1.0])
    assert "0 layers" in words(plot_breakdown("update", found))
    assert "1 probe," in words(plot_breakdown_history("update", [3], [], torch.zeros(1, 0)))


def test_the_first_layer_is_on_top_and_gaps_are_where_nothing_was_measured():
    values = torch.tensor([[0.1, 0.2], [math.nan, 0.4]])
    figure = plot_breakdown_history("update", [9, 19], ["first", "last"], values)
    axes = figure.axes[0]
    assert "training step; measured at eta = 1" in words(figure)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "last"]
    mask = axes.collections[0].get_array().mask
    assert mask.tolist() == [[False, True], [False, False]]


def test_of_very_many_layers_some_are_named_and_the_figure_says_which():
    figure = many_layers()
    assert "100 layers, every 9th is named" in words(figure)
    shown = figure.axes[0].get_yticklabels()
    assert len(shown) == 12
    assert max(len(label.get_text()) for label in shown) <= 17


def test_nothing_was_plotted_through_pyplot():
    FIGURES["slices"]()
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
