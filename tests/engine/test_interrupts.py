"""After Ctrl-C at any line of a probe nothing was moved, and later probes restore everything."""

import contextlib
import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import HostileModule, differences
from probed import direction_of, everything
from test_faults import hostile_batch

import lightning_landscape
from lightning_landscape import probing
from lightning_landscape.engine.snapshot import Snapshot

PACKAGE = str(Path(lightning_landscape.__file__).parent)
TOLERATED = 4 / 2424


def watched():
    module = HostileModule()
    module.auxiliary = lambda loss: None
    return module


def probe(module, seed=0):
    with probing(module, [hostile_batch()], seed=seed) as objective:
        for alpha in (0.0, 0.5, 1.0):
            objective.losses(direction_of(module), alpha)
        objective.gradient(direction_of(module), 0.5)


class Interrupt:
    """Raises KeyboardInterrupt at the n-th executed line of the package, or counts the lines."""

    def __init__(self, at=None):
        self.at, self.n = at, 0

    def __call__(self, frame, event, arg):
        return self.line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def line(self, frame, event, arg):
        if event == "line":
            self.n += 1
            if self.n == self.at:
                sys.settrace(None)
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self.line

    def __enter__(self):
        sys.settrace(self)
        return self

    def __exit__(self, *error):
        sys.settrace(None)


def interrupted(at):
    """Return what differs after a probe that was interrupted, and what a later probe changes."""
    module = watched()
    before = everything(module)
    failed = []
    with Interrupt(at) as interrupt:
        try:
            probe(module)
        except KeyboardInterrupt:
            pass
        except Exception as error:  # of closing what was interrupted
            failed = [repr(error)]
    gc.collect()
    traces = failed + list(differences(before, everything(module)))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(10.0)
    probe(module)
    moved = [n for n, p in module.named_parameters() if not bool((p == 10.0).all())]
    return interrupt.where, traces, moved


def lines_of_a_probe():
    module = watched()
    probe(module)  # what is remembered of classes makes the first one longer
    with Interrupt() as interrupt:
        probe(module)
    return interrupt.n


def check(places):
    found = [interrupted(at) for at in places]
    assert [(where, moved) for where, _, moved in found if moved] == []
    traces = [(where, trace) for where, trace, _ in found if trace]
    assert len(traces) <= TOLERATED * len(places), traces


def include_interrupted(at):
    """Return what is left of a module's list, a tensor and an array after they were written to."""
    module = torch.nn.Linear(1, 1)
    module.kept = [torch.zeros(1), np.zeros(1), [1]]
    snapshot = Snapshot([("", torch.nn.Linear(1, 1))])
    with Interrupt(at) as interrupt, contextlib.suppress(KeyboardInterrupt):
        snapshot.include([("module", module)])
    snapshot.restore(snapshot.changed(assume_written=True))
    return interrupt.n, snapshot


def test_an_interrupt_at_any_line_of_a_recording_leaves_it_whole():
    n, whole = include_interrupted(None)
    assert not whole.changed()
    for at in range(1, n + 1):
        assert not include_interrupted(at)[1].changed()


@pytest.mark.tried("faults", "an interrupt at any line of a probe; later probes move nothing")
def test_an_interrupt_at_some_lines_leaves_no_trace():
    n = lines_of_a_probe()
    check(range(1, n, n // 40))


@pytest.mark.slow
def test_an_interrupt_all_over_a_probe_leaves_no_trace():
    n = lines_of_a_probe()
    every = int(os.environ.get("INTERRUPT_EVERY", n // 120))  # at 7 it takes an hour
    check(range(1, n, every))
