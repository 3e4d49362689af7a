"""`analyze`: the numbers of the monitors, on weights that are not being trained."""

import html
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_landscape import (
    FunctionObjective,
    Report,
    analyze,
    compare_ends,
    difference,
    evaluate_slice,
    gradient_direction,
    line_grid,
    measure_breakdown,
    probing,
    survey,
)
from lightning_landscape.analysis.checkpoints import load_weights
from lightning_landscape.analysis.planes import measure_plane


def square(module, batch):
    return module(batch).square().mean()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))


@pytest.fixture
def batches():
    return list(torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(1)))


FEW = {"loss_fn": square, "n_directions": 2, "n_points": 5, "families": ("gaussian", "sign@norm")}


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_families_are_those_of_survey_bit_for_bit(net, batches):
    report = analyze(net, batches, **FEW)
    with probing(net, batches, loss_fn=square) as objective:
        expected = survey(
            objective, FEW["families"], module=net, n_directions=2, n_points=5, seed=0
        )
    for name, found in report.families.items():
        for a, b in zip(found.slices, expected[name].slices, strict=True):
            assert torch.equal(a.losses, b.losses)
        assert found.rate == expected[name].rate


def test_batches_may_be_anything_that_can_be_iterated_over(net, batches):
    class ByIndex:
        def __getitem__(self, i):
            return batches[i]

    listed = analyze(net, batches, **FEW).families["gaussian"].slices[0].losses
    for others in (ByIndex(), iter(batches), torch.stack(batches)):
        found = analyze(net, others, **FEW).families["gaussian"].slices[0].losses
        assert torch.equal(found, listed)


def test_validation_batches_are_told_apart(net, batches):
    report = analyze(net, batches[:2], validation=batches[2:], **FEW)
    alone = analyze(net, batches[:2], **FEW)
    found = report.families["gaussian"]
    assert [s.losses.shape[1] for s in (found.slices[0], found.validation[0])] == [2, 1]
    assert torch.equal(found.slices[0].losses, alone.families["gaussian"].slices[0].losses)


class Indexed(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean() + 100 * batch_idx


def test_a_validation_batch_has_the_index_of_a_training_batch(batches):
    few = {"n_directions": 1, "n_points": 5, "families": ("gaussian",)}
    report = analyze(Indexed(), batches[:2], validation=batches, **few)
    centre = report.families["gaussian"].validation[0].losses[2]
    assert (centre / 100).floor().tolist() == [0, 1, 0]  # as AsymmetryMonitor keeps them


def test_the_line_leads_from_the_weights_to_those_given(net, batches):
    toward = {name: p.detach() * 2 for name, p in net.named_parameters()}
    report = analyze(net, batches, toward=toward, **{**FEW, "families": ()})
    with probing(net, batches, loss_fn=square) as objective:
        direction = difference(toward, objective.params)
        expected = evaluate_slice(objective, direction, line_grid(4.0))
    assert torch.equal(report.line.slice.losses, expected.losses)
    assert report.line.gap == compare_ends(expected).gap


def test_a_line_shows_itself_in_a_notebook_with_its_validation_batches(net, batches):
    toward = {name: p.detach() * 2 for name, p in net.named_parameters()}
    options = {**FEW, "families": (), "validation": batches}
    shown = html.unescape(analyze(net, batches, toward=toward, **options).line._repr_html_())
    assert "<h3>Line to the average</h3>" in shown
    assert "validation loss" in shown


def test_the_module_is_bit_identical_afterwards(net, batches):
    net.eval()
    before, rng = state(net), torch.get_rng_state()
    analyze(net, batches, breakdown=True, **FEW)
    assert all(torch.equal(before[name], tensor) for name, tensor in state(net).items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(child.training for child in net.modules())


def run_analyze(net, batches, loss):
    analyze(net, batches, **{**FEW, "loss_fn": loss})


def run_line(net, batches, loss):
    toward = {name: 2 * p.detach() for name, p in net.named_parameters()}
    analyze(net, batches, toward=toward, families=(), loss_fn=loss)


def run_breakdown(net, batches, loss):
    with probing(net, batches, loss_fn=loss) as objective:
        measure_breakdown(objective, gradient_direction(objective), [0.1, 0.2, 0.4, 0.8, 1.6])


def run_plane(net, batches, loss):
    own = {name: p.detach().clone() for name, p in net.named_parameters()}
    free = {name: w for name, w in own.items() if name != "3.bias"}  # which is frozen
    others = [own | {name: w + torch.randn_like(w) for name, w in free.items()} for _ in range(2)]
    measure_plane(net, batches, [own, *others], n=5, loss_fn=loss)


@pytest.mark.parametrize("run", [run_analyze, run_line, run_breakdown, run_plane])
@pytest.mark.parametrize("stop", [1, 2, 5, 17])
def test_the_module_is_bit_identical_after_an_interrupt(net, batches, run, stop):
    net[0].eval()
    net[3].bias.requires_grad_(False)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before, rng, calls = state(net), torch.get_rng_state(), []

    def interrupted(module, batch):
        calls.append(torch.rand(()))
        if len(calls) == stop:
            raise KeyboardInterrupt
        return square(module, batch)

    if run is run_plane:  # it samples two sets of weights
        torch.manual_seed(3)
        run_plane(net, batches, square)
        rng = torch.get_rng_state()
        torch.manual_seed(3)
    with pytest.raises(KeyboardInterrupt):
        run(net, batches, interrupted)
    assert len(calls) == stop
    assert all(torch.equal(before[name], tensor) for name, tensor in state(net).items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert [child.training for child in net] == [False, True, True, True]
    assert [p.requires_grad for p in net.parameters()] == [True, True, True, True, True, False]
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))


def test_a_plane_in_which_a_frozen_parameter_moves_is_refused(net, batches):
    own = {name: p.detach().clone() for name, p in net.named_parameters()}
    others = [{name: w + torch.randn_like(w) for name, w in own.items()} for _ in range(2)]
    net[3].bias.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"must have the same frozen parameters. '3\.bias' differs"
    ):
        measure_plane(net, batches, [own, *others], n=2, loss_fn=square)


def test_a_saved_report_is_read_back_bit_for_bit(net, batches, tmp_path):
    toward = {name: p.detach() * 2 for name, p in net.named_parameters()}
    report = analyze(net, batches[:2], validation=batches[2:], toward=toward, breakdown=True, **FEW)
    report.save(tmp_path / "report.npz")
    again = Report.load(tmp_path / "report.npz")
    np.testing.assert_equal(again.to_dict(), report.to_dict())
    assert again.summary() == report.summary()


def test_a_report_says_everything_once_on_its_page(net, batches):
    report = analyze(net, batches, **FEW)
    records = {record.kind: record.words for record in report.records()}
    assert records["words"].splitlines()[0] == "train mode, seed 0."
    assert records["family"]
    assert records["family"] not in records["words"]
    assert records["family"] in report.summary()


def test_the_words_on_the_page_do_not_repeat_the_module(net, batches, tmp_path):
    report = analyze(net, batches, **FEW)
    report.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<h2>Sequential</h2><p>train mode, seed 0.</p>" in page
    assert report.summary().startswith("Sequential, train mode, seed 0.\n")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04"])
def test_a_file_that_is_no_report_is_named(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz must be a file that Report\.save wrote"):
        Report.load(tmp_path / "x.npz")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="must be a file that Report"):
        Report.load(tmp_path / "none.npz")


def test_at_stands_at_other_weights(net, batches):
    at = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    report = analyze(net, batches, at=at, **{**FEW, "families": ("gaussian",)})
    assert report.families["gaussian"].slices[0].losses.abs().max() == 0


def saved(path, module, **more):
    torch.save({"state_dict": module.state_dict(), **more}, path)
    return path


def test_weights_come_out_of_a_checkpoint(net, tmp_path):
    path = saved(tmp_path / "a.ckpt", net)
    found = load_weights(path, net)
    assert list(found) == [name for name, _ in net.named_parameters()]
    assert all(torch.equal(found[name], p) for name, p in net.named_parameters())


def test_an_average_comes_out_of_a_checkpoint_by_its_name(net, tmp_path):
    average = {name: torch.full_like(p, 3.0) for name, p in net.named_parameters()}
    callbacks = {"SWA(name='swa')": {"n_averaged": 2, "weights": average}}
    path = saved(tmp_path / "a.ckpt", net, callbacks=callbacks)
    assert all(bool((t == 3).all()) for t in load_weights(f"{path}:swa", net).values())
    with pytest.raises(ValueError, match=r"must name an average that is in the checkpoint"):
        load_weights(f"{path}:ema", net)


def test_a_checkpoint_of_another_architecture_is_refused(net, tmp_path):
    path = saved(tmp_path / "a.ckpt", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="is it a checkpoint of another architecture"):
        load_weights(path, net)


def test_a_checkpoint_of_a_diverged_training_is_refused(net, tmp_path):
    net[0].weight.data[0, 0] = math.nan
    path = saved(tmp_path / "a.ckpt", net)
    with pytest.raises(ValueError, match=r"must hold finite weights. Got nan or infinity in '0.w"):
        load_weights(path, net)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 truncated"])
def test_a_file_that_is_no_checkpoint_is_named(net, tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.ckpt must be a checkpoint file"):
        load_weights(tmp_path / "a.ckpt", net)


def test_a_checkpoint_that_is_not_there_is_named(net, tmp_path):
    with pytest.raises(ValueError, match="There is no such file"):
        load_weights(tmp_path / "a.ckpt", net)


def test_a_checkpoint_with_more_than_tensors_has_a_way_out(net, tmp_path):
    path = saved(tmp_path / "a.ckpt", net, hyper_parameters={"root": tmp_path})
    with pytest.raises(ValueError, match="weights_only=False if you trust it"):
        load_weights(path, net)
    assert load_weights(path, net, weights_only=False)


def test_a_constant_objective_has_a_report_of_its_own():
    flat = FunctionObjective(lambda p: p["w"].sum() * 0 + 1, {"w": torch.ones(3)})
    found = survey(flat, ["gaussian"], n_directions=3)["gaussian"]
    assert {score.area for score in found.scores} == {0}


def test_the_sharpest_direction_stands_beside_the_random_ones(net, batches):
    pytest.importorskip("scipy")
    report = analyze(net, batches, **{**FEW, "families": ("gaussian", "hessian")})
    sharpest, random = report.families["hessian"], report.families["gaussian"]
    weights = sum(float(p.detach().square().sum()) for p in net.parameters()) ** 0.5
    assert sharpest.slices[0].distance == pytest.approx(weights, rel=1e-4)
    rises = [max(s.rise_plus, s.rise_minus) for s in random.scores]
    assert max(sharpest.scores[0].rise_plus, sharpest.scores[0].rise_minus) > max(rises)


class Average:
    @property
    def weights(self):
        raise RuntimeError


BAD = {
    "path": ({"module": "x.ckpt"}, "`module` must be a module. Got 'x.ckpt': for a checkpoint"),
    "class": ({"module": nn.Linear}, "Got the class Linear: .*make an instance"),
    "one batch": (
        {"batches": [torch.ones(4, 3), torch.ones(4).long()]},
        r"`batches` must be a list of batches. Got the tensors of one: .*batches=\[batch\]",
    ),
    "dict": ({"batches": {"x": torch.ones(4, 3)}}, r"`batches` must be batches.* Got a dict"),
    "True": ({"validation": True}, "`validation` must be batches.* Got True"),
    "module": ({"toward": nn.Linear(3, 1)}, "`toward` .*Got a Linear: .*named_parameters"),
    "average": ({"toward": Average()}, r"`toward` must be weights.*swa\.weights"),
    "file": ({"at": "x.ckpt"}, r"`at` must be weights.*Got 'x.ckpt': use load_weights"),
    "text": ({"breakdown": "no"}, "`breakdown` must be True or False. Got 'no'"),
    "auto": ({"n_directions": "auto"}, "`n_directions` must be a whole number from 1 up"),
    "radius": ({"radius": "a"}, "`radius` must be positive and finite. Got 'a'"),
    "points": ({"n_points": "13"}, "`n_points` must be 4 k"),
    "family": ({"families": ["sine"]}, "`families`: each `family` must be"),
    "families": ({"families": None}, "`families` must be a list of names"),
    "pattern": ({"families": ["sign@a*"]}, "matches none of"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_measured_is_refused_before_it_costs(case, net, batches, capsys):
    bad, match = BAD[case]
    settings = {"module": net, "batches": batches, **FEW, "progress": True, **bad}
    with pytest.raises(ValueError, match=match):
        analyze(**settings)
    assert not capsys.readouterr().err


def test_a_list_of_tensors_of_one_form_is_a_list_of_batches(net, batches):
    assert analyze(net, tuple(batches), **FEW).families
