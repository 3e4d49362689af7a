"""The global random streams are seeded, read and restored."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape.engine.rng import differing_rng, rng_states, seed_all, unchanged_rng


@given(st.integers(0, 2**70))
def test_seeding_returns_the_states_that_are_read_next(seed):
    with unchanged_rng():
        np.random.standard_normal(1)  # leaves one of a pair for the next call
        states = seed_all(seed)
        assert differing_rng(states, rng_states()) == set()


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda: torch.rand(1), "torch"),
        (lambda: np.random.rand(), "numpy"),
        (lambda: __import__("random").random(), "python"),
    ],
)
def test_a_number_that_is_drawn_makes_its_stream_differ(draw, name):
    with unchanged_rng():
        states = seed_all(0)
        draw()
        assert differing_rng(states, rng_states()) == {name}


def test_the_second_of_a_pair_of_normal_numbers_is_part_of_the_state():
    with unchanged_rng():
        np.random.standard_normal(1)
        before = rng_states()
        np.random.standard_normal(1)
        assert differing_rng(before, rng_states()) == {"numpy"}
