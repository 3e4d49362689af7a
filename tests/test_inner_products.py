"""Sums of products over many tensors: the same whatever they are computed together with."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape.inner_products import inner_products

SIZES = st.lists(st.sampled_from([0, 1, 7, 4096, 4097, 40000]), min_size=1, max_size=5)


def drawn(n, seed, dtype=torch.float32):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(dtype)


def two_of(a, b):
    return (a, a), (a, a - b)


def by_hand(a, b):
    a, b = a.double(), b.double()
    return torch.stack([(x * y).sum() for x, y in two_of(a, b)])


@given(sizes=SIZES, seed=st.integers(0, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_row_has_the_sums_of_its_own_products(dtype, sizes, seed):
    rows = [(drawn(n, seed + i, dtype), drawn(n, -seed - i, dtype)) for i, n in enumerate(sizes)]
    found = inner_products(rows, two_of)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.stack([by_hand(*row) for row in rows]))


def test_very_many_small_tensors_keep_their_order():
    rows = [(torch.full((1 + i % 5, 2), float(i)), torch.zeros(1 + i % 5, 2)) for i in range(200)]
    expected = [2.0 * (1 + i % 5) * i**2 for i in range(200)]
    assert inner_products(rows, two_of).tolist() == [[x, x] for x in expected]


def test_what_is_not_finite_stays_in_its_own_row():
    rows = [(torch.tensor([x]), torch.zeros(1)) for x in (1.0, float("nan"), 2.0, float("inf"))]
    found = inner_products(rows, two_of)[:, 0]
    assert found.tolist() == pytest.approx([1.0, float("nan"), 4.0, float("inf")], nan_ok=True)


def test_squares_that_a_half_type_cannot_hold_are_summed():
    rows = [(torch.full((n,), 6e4, dtype=torch.float16),) * 2 for n in (3, 5000)]
    top = float(rows[0][0][0]) ** 2
    assert inner_products(rows, two_of)[:, 0].tolist() == [3 * top, 5000 * top]


@pytest.mark.parametrize("n", [2, 5000])
def test_complex_sparse_and_strided_tensors_count_entry_by_entry(n):
    ones = torch.ones(2, n)
    rows = [
        (torch.full((n,), 3.0 + 4.0j), torch.zeros(n, dtype=torch.complex64)),
        (ones.to_sparse(), torch.zeros(2, n)),
        (ones.mT, torch.zeros(n, 2)),
        (torch.ones(1).expand(n), torch.zeros(n)),
    ]
    assert inner_products(rows, two_of)[:, 0].tolist() == [25.0 * n, 2.0 * n, 2.0 * n, 1.0 * n]


def test_no_rows_have_no_products():
    assert len(inner_products([], two_of)) == 0
