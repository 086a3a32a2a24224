"""Laws of numbers as text."""

import re

import numpy as np
import pytest

from lib.intervals import Interval, with_error
from lib.kit import wording

TEXTS = {
    (0.01302, 6e-05): "0.01302 ± 0.00006",
    (0.007549, 0.00142): "0.0075 ± 0.0014",
    (53.53, 12.3): "54 ± 12",
    (-0.0452, 0.0997): "-0.05 ± 0.10",
    (1234.5, 350.0): "1234 ± 350",
    (2.5e-9, 3e-10): "2.5e-09 ± 3e-10",
    (0.5, float("inf")): "0.5 ± inf",
}


@pytest.mark.parametrize("value, error", TEXTS)
def test_a_value_ends_where_its_error_does(value, error):
    assert with_error(value, error) == TEXTS[value, error]


def test_no_rounding_moves_a_value_by_a_quarter_of_its_error():
    rng = np.random.default_rng(0)
    for value, size in zip(rng.normal(size=500), rng.uniform(-5, 1, 500), strict=True):
        shown, error = map(float, with_error(value, 10**size).split(" ± "))
        assert abs(shown - value) < 0.26 * 10**size
        assert abs(error - 10**size) < 0.17 * 10**size
        ends = [re.sub(r".*\.|.*", "", part) for part in with_error(value, 10**size).split(" ± ")]
        assert len(ends[0]) == len(ends[1])


def test_a_row_shows_its_error_and_its_number_where_it_has_them():
    assert wording.measured_text({"measured": None}) == "-"
    assert wording.measured_text({"measured": 1e-12, "error": 0.0, "n": 5}) == "1e-12 (5)"
    assert wording.measured_text({"measured": 0.9, "error": 0.03, "n": None}) == "0.90 ± 0.03"
    assert wording.number_text({"a": 0.25, "b": None, "c": "text"}) == "a 0.25, b -, c text"


def test_an_interval_shows_what_a_reader_needs():
    assert (
        repr(Interval(np.float64(0.5), 0.04, 0.42, 0.58))
        == "0.50 ± 0.04, 95 % within 0.42 and 0.58"
    )
    assert repr(Interval(0.5, 0.04, 0, 0)) == "0.50 ± 0.04"
