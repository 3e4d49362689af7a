"""Make every picture of README and docs anew.

    python docs/pictures.py

A few trainings on digits from fixed seeds, two minutes on one core, then TensorBoard in headless
Chromium. Needs the extras `examples` and `browser`; without Chromium, `--no-screenshots`.
"""

import argparse
import tempfile
from pathlib import Path

import picture_runs as runs
import torch
from matplotlib.figure import Figure

from lightning_landscape import (
    analyze,
    evaluate_slice,
    gradient_direction,
    measure_breakdown,
    probing,
    sample_direction,
    score_asymmetry,
    symmetric_grid,
)
from lightning_landscape.reporting.style import (
    INK,
    QUIET,
    TRAIN,
    VALIDATION,
    new_figure,
    png,
)

PLACE = Path(__file__).parent / "pictures"
GREEN = "#2b8a4b"
SLOPE_SEED = 0  # of a direction along which the loss falls at the start


def save(name: str, figure: Figure) -> None:
    """Write a figure to the folder of pictures."""
    (PLACE / f"{name}.png").write_bytes(png(figure))
    print(name, flush=True)


def metrics_over_training(run: runs.Run, title: str) -> Figure:
    """Plot the user's validation loss of the weights, of the control and of the average."""
    names = {
        "val_loss": (QUIET, "val_loss: the weights you train"),
        "swa/control/val_loss": (
            VALIDATION,
            "swa/control/val_loss: with fresh batch-norm statistics",
        ),
        "swa/val_loss": (GREEN, "swa/val_loss: the average"),
    }
    figure, axes = new_figure(title, [(text, colour) for colour, text in names.values()])
    for tag, (colour, _) in names.items():
        steps, values = run.scalars(tag)
        dots = {"marker": "o", "linestyle": ":"} if "control" in tag else {"marker": "."}
        axes.plot(steps, values, color=colour, **dots)
    steps, values = run.scalars("val_loss")
    axes.set_ylim(0, 1.25 * max(values[len(values) // 4 :]))
    axes.set(xlabel="training step", ylabel="validation loss")
    return figure


def one_slope(run: runs.Run) -> Figure:
    """Plot a slice where the loss still falls to one side: the slope alone makes it lopsided."""
    with probing(run.module, run.train, at=run.start) as objective:
        generator = torch.Generator().manual_seed(SLOPE_SEED)
        direction = sample_direction(objective.params, "gaussian", generator=generator)
        line = evaluate_slice(objective, direction, symmetric_grid(0.2, 13))
    score, at = score_asymmetry(line), line.alphas
    lines = [
        (f"area {score.area:+.2f}: lopsided", INK),
        (f"area_corrected {score.area_corrected:+.2f}: without the slope it is not", VALIDATION),
    ]
    figure, axes = new_figure("one direction, before training", lines)
    axes.plot(at, line.mean - line.mean[6], color=TRAIN, marker=".")
    axes.plot(at, score.slope * at, color=VALIDATION, linestyle="--")
    axes.axvline(0, color=QUIET, linewidth=0.8, linestyle=":")
    axes.set(xlabel="alpha (dashed: the slope at 0)", ylabel="rise of the loss")
    return figure


def line_to_the_average(run: runs.Run) -> Figure:
    """Plot the line from the last weights of a run to their average."""
    report = analyze(
        run.module, run.train, validation=run.validation, toward=run.swa.weights, families=[]
    )
    return report.figures()["line"]


def critical_rate_at_the_start(run: runs.Run) -> Figure:
    """Plot the loss after one step of gradient descent against its learning rate."""
    rates = torch.logspace(-2, 1, 25)
    with probing(run.module, run.train[:1], at=run.start) as objective:
        direction = gradient_direction(objective, normalize="none")
        found = measure_breakdown(objective, direction, rates)
    lines = [
        (f"critical rate {found.break_even:.2g}: the loss is back at its start", VALIDATION),
        (f"a third of it, {found.break_even / 3:.2g}: the most to begin with", GREEN),
    ]
    figure, axes = new_figure("one step from the start", lines)
    axes.semilogx(found.etas, found.loss, color=TRAIN, marker=".")
    axes.axhline(float(found.loss_start), color=QUIET, linestyle=":")
    axes.axvline(found.break_even, color=VALIDATION)
    axes.axvline(found.break_even / 3, color=GREEN)
    axes.set_ylim(0, 2.5 * float(found.loss_start))
    axes.set(xlabel="learning rate of the step", ylabel="loss of its batch afterwards")
    return figure


def rate_and_critical_rate(run: runs.Run) -> Figure:
    """Plot the learning rate beside the critical rate of each step that was probed."""
    steps, critical = run.scalars("breakdown/update/critical_rate")
    _, used = run.scalars("breakdown/update/learning_rate")
    beyond = sum(value < rate for value, rate in zip(critical, used, strict=True))
    lines = [
        ("dots: critical_rate of the step probed", VALIDATION),
        (f"line: the rate in use; {beyond} of {len(steps)} steps are beyond", TRAIN),
        ("triangles: beyond all that was tried", INK),
    ]
    figure, axes = new_figure("rate in use and critical rate", lines)
    known = [(step, value) for step, value in zip(steps, critical, strict=True) if value < 1e9]
    top = 2 * max(value for _, value in known)
    axes.plot(*zip(*known, strict=True), "o", color=VALIDATION, markersize=4)
    rest = [step for step, value in zip(steps, critical, strict=True) if value > 1e9]
    axes.plot(rest, [top] * len(rest), "^", color=INK, markersize=5)
    axes.plot(steps, used, color=TRAIN)
    axes.set_ylim(0, 1.1 * top)
    axes.set(xlabel="training step", ylabel="learning rate")
    return figure


def successive_cosines(hovering: runs.Run, falling: runs.Run) -> Figure:
    """Plot the cosine between successive steps of a run that hovers, and of one that does not."""
    lines = [
        ("Fromage at a constant rate: steps undo each other", VALIDATION),
        ("SGD, momentum .9: steps go on", TRAIN),
    ]
    figure, axes = new_figure("successive_cosine", lines)
    for run, colour in ((hovering, VALIDATION), (falling, TRAIN)):
        axes.plot(*run.scalars("breakdown/step/successive_cosine"), color=colour, marker=".")
    axes.axhline(0, color=QUIET, linestyle=":")
    axes.set_ylim(-1, 1)
    axes.set(xlabel="training step", ylabel="cosine of this step and the one before")
    return figure


def widths(narrow: runs.Run, wide: runs.Run) -> Figure:
    """Plot the median slice of two networks, and where it has risen by .5."""
    named = (
        ("8 hidden units, no batch norm", narrow, VALIDATION),
        ("three layers of 64, batch norm", wide, TRAIN),
    )
    curves, lines = [], []
    for name, run, colour in named:
        found = analyze(run.module, run.train, families=["gaussian"], n_directions=8, radius=0.8)
        slices, radius = (
            found.families["gaussian"].slices,
            found.families["gaussian"].rise_radius[0],
        )
        rise = torch.stack([line.mean - line.mean[6] for line in slices]).median(0).values
        curves.append((slices[0].alphas, rise, colour))
        lines.append((f"{name}: rise_radius {radius:.2f}", colour))
    figure, axes = new_figure("how wide: where the loss has risen by .5", lines)
    for alphas, rise, colour in curves:
        axes.plot(alphas, rise, color=colour, marker=".")
    axes.axhline(0.5, color=QUIET, linestyle=":")
    axes.set_ylim(-0.1, 3)
    axes.set(xlabel="alpha, relative to the weights", ylabel="rise of the loss, median direction")
    return figure


def three_slices(healthy: runs.Run, noisy: runs.Run) -> Figure:
    """Plot a healthy, an asymmetric and an off-minimum slice side by side."""
    shown = (
        ("healthy", "both sides rise alike", healthy, None, "gaussian"),
        ("asymmetric", "one side rises, the other hardly", noisy, None, "uniform@norm"),
        ("off-minimum", "the loss still falls", noisy, noisy.start, "gaussian"),
    )  # fmt: skip
    figure = Figure(figsize=(9.6, 3.2), dpi=110, layout="constrained")
    for axes, (name, words, run, at, family) in zip(figure.subplots(1, 3), shown, strict=True):
        found = analyze(run.module, run.train, at=at, families=[family], n_directions=8).families[
            family
        ]
        for line in found.slices:
            axes.plot(line.alphas, line.mean - line.mean[6], color=TRAIN, linewidth=0.7, alpha=0.5)
        rises = torch.stack([line.mean - line.mean[6] for line in found.slices])
        axes.plot(line.alphas, rises.median(0).values, color=TRAIN, linewidth=2.2, marker=".")
        axes.axvline(0, color=QUIET, linewidth=0.8, linestyle=":")
        axes.axhline(0, color=QUIET, linewidth=0.8, linestyle=":")
        area, low, high = found.area
        axes.set_title(f"{name}\n{words}", fontsize=10.5, weight="bold", loc="left")
        interval = f"area {area:+.2f} [{low:+.2f}, {high:+.2f}]"
        note = f"{family}\n{interval}\nstill falling: {found.rate['off_minimum']:.0%}"
        axes.text(0.5, 0.96, note, transform=axes.transAxes, va="top", ha="center", fontsize=9)
        low_end, top = axes.get_ylim()
        axes.set_ylim(low_end, top + 0.35 * (top - low_end))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        axes.set_xlabel("alpha", fontsize=9)
    figure.axes[0].set_ylabel("rise of the loss", fontsize=9)
    return figure


def rows(folder: Path) -> runs.Run:
    """Make the picture of each row of the decision table; return the run of the first."""
    noisy = runs.noisy(folder / "tab")  # alone in its folder: what TensorBoard is shown
    save("01-average-better", metrics_over_training(noisy, "the average is better"))
    report = analyze(
        noisy.module,
        noisy.train[:8],
        validation=noisy.validation,
        families=["uniform@norm"],
        breakdown=True,
    )
    save("05-gains", report.figures()["uniform@norm"])
    save("13-excess", report.figures()["breakdown"])
    save("06-slope", one_slope(noisy))
    start = analyze(noisy.module, noisy.train[:8], at=noisy.start, families=["gaussian"])
    save("07-still-falling", start.figures()["gaussian"])
    few = [[x[:8] for x in batch] for batch in noisy.train[:3]]
    save("08-unresolved", analyze(noisy.module, few, families=["gaussian"]).figures()["gaussian"])
    save("09-critical-rate", critical_rate_at_the_start(noisy))
    after = runs.continued(folder)
    save("04-flat-side", line_to_the_average(after))
    annealed = runs.annealed(folder)
    save("03-no-change", line_to_the_average(annealed))
    hovering = runs.hovering(folder)
    save("02-statistics", metrics_over_training(hovering, "fresh statistics, no average"))
    save("10-rate-in-use", rate_and_critical_rate(hovering))
    save("11-undoing", successive_cosines(hovering, noisy))
    save("12-width", widths(runs.narrow(folder), annealed))
    save("three-slices", three_slices(annealed, noisy))
    return noisy


def main() -> None:
    """Make all pictures, or only those that need no browser."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-screenshots", action="store_true")
    parser.add_argument("--keep", type=Path, help="a folder for the runs, to look at them yourself")
    options = parser.parse_args()
    PLACE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        noisy = rows(folder)
        if not options.no_screenshots:
            import screenshots

            page = folder / "landscape.html"
            analyze(
                noisy.module,
                noisy.train,
                validation=noisy.validation,
                toward=noisy.swa.weights,
                breakdown=True,
            ).to_html(page)
            screenshots.take(folder / "tab", PLACE, page)


if __name__ == "__main__":
    main()
