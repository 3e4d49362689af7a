"""The sharpest direction against matrices whose eigenvalues are known."""

import sys

import pytest
import torch

from lightning_landscape import FunctionObjective
from lightning_landscape.measures.hessian import top_eigen

pytest.importorskip("scipy")


def quadratic(matrix, at):
    return FunctionObjective(lambda p: (p["x"] @ matrix @ p["x"]) / 2, {"x": at})


def test_a_rotated_quadratic_has_the_eigenvector_it_was_made_of(generator):
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    matrix = rotation @ torch.diag(torch.tensor([7.0, 3, 2, 1, 0.5, -4]).double()) @ rotation.T
    found = top_eigen(quadratic(matrix, torch.ones(6).double()), tolerance=1e-8)
    assert found.value == pytest.approx(7, rel=1e-4)
    cosine = abs(float(found.direction["x"] @ rotation[:, 0]))
    assert cosine == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_weights_have_an_eigenvector_too(n):
    matrix = torch.diag(torch.tensor([2.0, 9.0])[:n]).double()
    found = top_eigen(quadratic(matrix, torch.ones(n).double()))
    assert found.value == pytest.approx([2, 9][n - 1], rel=1e-4)


def test_the_direction_leads_uphill():
    matrix = torch.diag(torch.tensor([5.0, 1.0, 1.0]).double())
    at = torch.tensor([-1.0, 0.1, 0.1]).double()
    found = top_eigen(quadratic(matrix, at), tolerance=1e-8)
    assert float(found.direction["x"][0]) < -0.99


def test_a_gradient_that_is_not_finite_is_refused():
    broken = FunctionObjective(lambda p: p["x"].log().sum(), {"x": torch.zeros(3)})
    with pytest.raises(ValueError, match="needs a finite gradient"):
        top_eigen(broken)


def test_without_scipy_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        top_eigen(quadratic(torch.eye(3).double(), torch.ones(3).double()))
