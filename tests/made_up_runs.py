"""Runs that were made up: event files and records that look like those of a training."""

import math
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from lightning_landscape.analysis.planes import Plane
from lightning_landscape.measures.asymmetry import score_asymmetry
from lightning_landscape.measures.breakdown import measure_breakdown
from lightning_landscape.measures.rates import AsymmetryRate
from lightning_landscape.measures.slices import Slice, line_grid, symmetric_grid
from lightning_landscape.measures.survey import Survey
from lightning_landscape.objective import FunctionObjective
from lightning_landscape.reporting.board import write_record
from lightning_landscape.reporting.records import Record
from lightning_landscape.reporting.results import breakdown_data, family_data, line_data

FAMILIES = {"gaussian": 0.0, "uniform@norm": -0.7, "sign": 0.3}


def records(n_probes=12, *, seed=0, every=50, validation=True):
    """Return the records of a run: the loss falls and the valleys become lopsided."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for k in range(n_probes):
        share, step = (k + 1) / n_probes, every * (k + 1)
        for family, lean in FAMILIES.items():
            data = _family(family, share, lean, generator, validation)
            found.append(Record("family", family, step, data))
        found.append(Record("line", "swa", step, _line(share, generator)))
        found.append(Record("breakdown", "update", step, _breakdown(share)))
        found.append(Record("cost", "probe", step, {"seconds": 0.4, "overhead": 0.04}))
    return found


def plane(name="plane", *, n=25, seed=0):
    """Return the record of a plane: a valley that bends, with a hole where a loss is not finite."""
    axes = [torch.linspace(-1.0, top, n, dtype=torch.float64) for top in (3.0, 2.0)]
    x, y = torch.meshgrid(*axes, indexing="ij")
    noise = 0.02 * torch.randn(n, n, 4, generator=torch.Generator().manual_seed(seed))
    losses = (0.3 + (y - 0.3 * (x - 1) ** 2) ** 2 + 0.05 * (x - 1.2) ** 2)[:, :, None] + noise
    losses[0, -1] = math.inf
    points = {"last.ckpt": (0.0, 0.0), "last.ckpt:swa": (2.0, 0.0), "other.ckpt": (0.7, 1.4)}
    return Plane(*axes, losses, "train").record(points, name)


def write_run(folder, records, *, scalar=True):
    """Write records to an event file, as a logger does."""
    writer = SummaryWriter(str(folder))
    for record in records:
        write_record(writer, record)
    if scalar:
        writer.add_scalar("val_loss", 1.0, 0)
    writer.close()
    return Path(folder)


def _family(family, share, lean, generator, validation):
    alphas = symmetric_grid(0.6, 13)
    rates = AsymmetryRate()
    sets = []
    for shift in (0.0, 0.15):
        slices = []
        for _ in range(8):
            tilt = lean * share + 0.15 * float(torch.randn((), generator=generator))
            height = 2.3 * (1 - share) + 0.1 + shift
            noise = 0.02 * torch.randn(13, 4, generator=generator)
            curve = 8 * share * alphas**2 * (1 + tilt * alphas.sign()) - 0.4 * (1 - share) * alphas
            slices.append(Slice(alphas, height + curve[:, None] + noise, 3.0, "train", "made up"))
        sets.append(slices)
    scores = [score_asymmetry(line) for line in sets[0]]
    for score in scores:
        rates.update(score)
    shares = {
        name: sum(score.verdict == verdict for score in scores) / len(scores)
        for name, verdict in (("off_minimum", "off-minimum"), ("unresolved", "unresolved"))
    }
    rate = {name: float(value) for name, value in rates.compute().items()} | shares
    return family_data(Survey(family, sets[0], sets[1] if validation else [], scores, rate))


def _line(share, generator):
    t = line_grid(4.0, 31)
    train = 0.1 + 2 * (1 - share) + 0.01 * (t - 0.2) ** 2 * (1 + 0.5 * (t - 0.2).sign())
    validation = 0.3 + 2 * (1 - share) + 0.02 * (t - 1.2) ** 2
    noise = [0.004 * torch.randn(31, 4, generator=generator) for _ in range(2)]
    lines = [
        Slice(t, loss[:, None] + n, 1.7) for loss, n in zip((train, validation), noise, strict=True)
    ]
    return line_data(*lines)


def _breakdown(share):
    net = {f"layer{k}.weight": torch.full((2, 2), 1.0 + k / 4) for k in range(5)}

    def loss(params):
        product = torch.eye(2)
        for weight in params.values():
            product = product @ weight
        return (product.sum() / 100 - 1 - share) ** 2

    direction = {name: -0.05 * (k + 1) * w for k, (name, w) in enumerate(net.items())}
    found = measure_breakdown(FunctionObjective(loss, net), direction, [0.25, 0.5, 1.0, 2.0, 4.0])
    assert math.isfinite(found.loss_start)
    return breakdown_data(found)
