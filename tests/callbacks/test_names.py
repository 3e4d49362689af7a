"""Several callbacks of one kind in one Trainer, told apart by name; an average by its name."""

import pytest
import torch
from hostile import differences, fit
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader
from toys import QUIET, Rows, Samples

from lightning_landscape import SWA, AsymmetryMonitor, GradientBreakdownMonitor, load_slices

ASYMMETRY = {
    "every_n_epochs": 1,
    "families": ["gaussian"],
    "n_directions": 2,
    "n_points": 5,
    "on_error": "raise",
}
BREAKDOWN = {"directions": ["update"], "every_n_steps": 3, "on_error": "raise"}


class Small(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5), nn.Linear(4, 1))

    def training_step(self, batch, batch_idx):
        return (self.net(batch["x"]).squeeze(1) - batch["y"]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def train(*callbacks, module=None, ckpt_path=None, then=(), **options):
    seed_everything(0, verbose=False)
    trainer = Trainer(**{"max_epochs": 2, **QUIET, **options}, callbacks=list(callbacks))
    trainer.callbacks.extend(then)  # past Lightning's own look at them
    trainer.fit(module or Small(), DataLoader(Samples(), batch_size=6), ckpt_path=ckpt_path)
    return trainer


def both_kinds():
    return [
        AsymmetryMonitor(**ASYMMETRY),
        AsymmetryMonitor(name="eval", mode="eval", **ASYMMETRY),
        GradientBreakdownMonitor(**BREAKDOWN),
        GradientBreakdownMonitor(name="step", mode="eval", **BREAKDOWN),
    ]


@pytest.mark.tried("configuration", "two monitors of one kind in one Trainer, told apart by `name`")
def test_each_of_two_monitors_has_tags_of_its_own():
    both = train(*both_kinds()).callback_metrics
    alone = train(AsymmetryMonitor(**ASYMMETRY), GradientBreakdownMonitor(**BREAKDOWN))
    first = {k for k in both if k.startswith(("landscape/", "breakdown/"))}
    assert first == set(alone.callback_metrics)
    second = {k.replace("eval/", "landscape/").replace("step/", "breakdown/", 1) for k in both}
    assert first <= second
    assert len(both) == 2 * len(first)
    for name in ("landscape/gaussian/area", "breakdown/update/max"):
        assert both[name] == alone.callback_metrics[name]
    # one network with dropout, one without
    assert both["landscape/gaussian/area"] != both["eval/gaussian/area"]
    assert both["breakdown/update/max"] != both["step/update/max"]


def test_each_of_two_monitors_has_files_of_its_own(tmp_path):
    trainer = train(*both_kinds(), logger=CSVLogger(tmp_path, name="", version=""), max_epochs=1)
    files = {path.name for path in (tmp_path / "landscape").iterdir()}
    assert files >= {
        "landscape-step=5.npz",
        "landscape-gaussian-step=5.png",
        "eval-step=5.npz",
        "eval-gaussian-step=5.png",
        "breakdown-step=5.npz",
        "breakdown-update-step=5.png",
        "step-step=5.npz",
        "step-update-step=5.png",
    }
    for name, mode in (("landscape", "train"), ("eval", "eval")):
        slices = load_slices(tmp_path / "landscape" / f"{name}-step=5.npz")
        assert {line.mode for line in slices} == {mode}
    assert trainer.global_step == 6


def test_a_name_may_be_a_place_among_the_others(tmp_path):
    monitor = AsymmetryMonitor(name="landscape/wide", radius=2.0, **ASYMMETRY)
    logger = CSVLogger(tmp_path, name="", version="")
    metrics = train(AsymmetryMonitor(**ASYMMETRY), monitor, logger=logger).callback_metrics
    assert "landscape/wide/gaussian/area" in metrics
    assert (tmp_path / "landscape" / "landscape-wide-step=5.npz").exists()


def test_each_of_two_monitors_goes_on_from_a_checkpoint_with_its_own_state(tmp_path):
    first = [AsymmetryMonitor(**ASYMMETRY), AsymmetryMonitor(name="b", seed=1, **ASYMMETRY)]
    train(*first).save_checkpoint(tmp_path / "two.ckpt")
    resumed = [AsymmetryMonitor(**ASYMMETRY), AsymmetryMonitor(name="b", seed=1, **ASYMMETRY)]
    train(*reversed(resumed), ckpt_path=tmp_path / "two.ckpt", max_epochs=3)
    for before, after in zip(first, resumed, strict=True):
        rows = [(step, rises.tolist()) for step, rises in before.history["gaussian"]]
        assert [(s, r.tolist()) for s, r in after.history["gaussian"]][:2] == rows
        assert [step for step, _ in after.history["gaussian"]] == [5, 11, 17]
    assert (
        first[0].history["gaussian"][0][1].tolist() != first[1].history["gaussian"][0][1].tolist()
    )


@pytest.mark.parametrize("kind", [AsymmetryMonitor, GradientBreakdownMonitor])
def test_a_monitor_goes_on_from_an_older_checkpoint_with_a_warning(kind):
    monitor, older = kind(), kind().state_dict()
    del older["history"]
    with pytest.warns(UserWarning, match=r"=.*: the checkpoint lacks \['history'\]"):
        monitor.load_state_dict({**older, "n_steps": 3})
    assert (monitor.n_steps, monitor.history) == (3, {})


@pytest.mark.tried("configuration", "two monitors of one kind: training is bit-identical")
@pytest.mark.filterwarnings("ignore:A probe of .* wrote to best")  # a hostile module's least loss
def test_training_with_several_of_each_kind_is_bit_identical():
    several = [
        AsymmetryMonitor(swa="late", **ASYMMETRY),
        AsymmetryMonitor(name="landscape/eval", mode="eval", swa="swa", **ASYMMETRY),
        GradientBreakdownMonitor(**BREAKDOWN),
        GradientBreakdownMonitor(name="breakdown/all", every_n_epochs=1, on_error="raise"),
        SWA(0),
        SWA(1, name="late"),
    ]
    ours = ("late/",)  # a name outside the prefixes that are compared without
    plain, probed = fit([]), fit(several)
    probed["callback_metrics"] = {
        k: v for k, v in probed["callback_metrics"].items() if not k.startswith(ours)
    }
    probed["rows"] = [
        (step, {k: v for k, v in row.items() if not k.startswith(ours)})
        for step, row in probed["rows"]
    ]
    probed["rows"] = [(step, row) for step, row in probed["rows"] if row]
    assert differences(plain, probed) == []


@pytest.mark.parametrize(
    ("kind", "options"),
    [(AsymmetryMonitor, ASYMMETRY), (GradientBreakdownMonitor, BREAKDOWN), (SWA, {})],
)
@pytest.mark.parametrize("name", ["", 3, None])
def test_a_name_is_a_word(kind, options, name):
    with pytest.raises(MisconfigurationException, match="`name` must be a word"):
        kind(**options, name=name)


SWITCHES = [
    (AsymmetryMonitor, ["validation", "details", "verbose"]),
    (GradientBreakdownMonitor, ["layers", "details", "verbose"]),
    (SWA, ["validate", "apply_at_end", "save_at_end", "verbose"]),
]


@pytest.mark.parametrize("value", ["no", 3, 1, None])
@pytest.mark.parametrize(("kind", "names"), SWITCHES)
def test_a_switch_is_true_or_false_and_nothing_else(kind, names, value):
    for name in names:
        with pytest.raises(MisconfigurationException, match=f"`{name}` must be True or False. Got"):
            kind(**{name: value})
        assert getattr(kind(**{name: True}), name) is True


def test_lightning_refuses_two_of_one_kind_with_one_name_in_its_own_words():
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `Asymm"):
        train(AsymmetryMonitor(**ASYMMETRY), AsymmetryMonitor(mode="eval", **ASYMMETRY))


@pytest.mark.parametrize(
    ("others", "names"),
    [
        ([AsymmetryMonitor(**ASYMMETRY)], "for AsymmetryMonitor and AsymmetryMonitor"),
        ([SWA(0, name="landscape")], "for AsymmetryMonitor and SWA"),
        (
            [GradientBreakdownMonitor(name="landscape")],
            "for AsymmetryMonitor and GradientBreakdownMonitor",
        ),
    ],
    ids=["the same kind, late", "an average", "another monitor"],
)
def test_callbacks_with_one_name_are_refused_before_the_first_step(others, names):
    module = Small()
    before = module.net[0].weight.clone()
    with pytest.raises(MisconfigurationException, match=rf"Got 'landscape' {names}.*landscape2"):
        train(AsymmetryMonitor(**ASYMMETRY), module=module, then=others)
    assert torch.equal(module.net[0].weight, before)


# --- an average by its name ---------------------------------------------------------------------


@pytest.mark.parametrize("monitor_first", [False, True])
def test_an_average_may_be_given_by_its_name(monitor_first):
    def line(swa_of):
        early, late = SWA(0, name="early"), SWA(1, name="late")
        monitor = AsymmetryMonitor(swa=swa_of(late), **ASYMMETRY)
        order = [monitor, early, late] if monitor_first else [early, late, monitor]
        metrics = train(*order, max_epochs=3).callback_metrics
        assert (
            "At step 17, with 2 sets of weights averaged, the line to the average" in late.summary()
        )
        assert "was not measured" in early.summary()
        return {k: float(v) for k, v in metrics.items() if k.startswith("landscape/swa/")}

    by_name = line(lambda swa: swa.name)
    assert by_name["landscape/swa/distance"] > 0
    assert by_name == pytest.approx(line(lambda swa: swa), rel=0, abs=0, nan_ok=True)


def test_the_name_is_looked_up_anew_in_every_trainer():
    monitor = AsymmetryMonitor(swa="swa", **ASYMMETRY)
    for _ in range(2):
        swa = SWA(0)
        train(swa, monitor)
        assert "At step 11, with 2 sets" in swa.summary()


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([], r"Got 'swa', and it has none: add SWA\(name='swa'\)"),
        ([SWA(0, name="early")], r"Got 'swa', and it has \['early'\]"),
        ([AsymmetryMonitor(name="swa", families=["sign"])], "and it has none"),
    ],
    ids=["none", "another name", "no average"],
)
def test_the_name_of_no_average_is_refused_at_the_start(callbacks, message):
    with pytest.raises(MisconfigurationException, match=message):
        train(AsymmetryMonitor(swa="swa", **ASYMMETRY), *callbacks, logger=Rows())
