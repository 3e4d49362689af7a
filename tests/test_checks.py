import pytest

from lightning_landscape.checks import check_bool, check_choice, check_share, check_whole


@pytest.mark.parametrize("n", [0, -1, 1.0, True, "2", None])
def test_a_whole_number_is_an_int_from_the_least_up(n):
    with pytest.raises(ValueError, match=r"`n_batches` must be a whole number from 1 up. Got"):
        check_whole("n_batches", n)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan"), "5%", True])
def test_a_share_lies_between_0_and_1(share):
    with pytest.raises(ValueError, match="`max_overhead` must be a share of the training time"):
        check_share("max_overhead", share)


@pytest.mark.parametrize("value", ["no", 1, 0, None])
def test_a_switch_is_true_or_false(value):
    with pytest.raises(ValueError, match=r"`verbose` must be True or False. Got"):
        check_bool("verbose", value)


def test_a_choice_is_one_of_those_named():
    with pytest.raises(ValueError, match=r"`mode` must be one of \['a', 'b'\]. Got 'c'"):
        check_choice("mode", "c", ("a", "b"))


def test_what_fits_is_handed_back():
    assert check_whole("seed", 0, least=0) == 0
    assert check_share("max_overhead", None) is None
    assert check_share("max_overhead", 0.05) == 0.05
    assert check_bool("verbose", False) is False
    assert check_choice("mode", "a", "ab") == "a"
