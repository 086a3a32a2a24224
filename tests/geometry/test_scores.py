"""Slopes, crossings and metric errors, on functions whose answer is known."""

import numpy as np
import pytest

from lib.geometry import scores


def test_central_slopes_are_those_of_a_cubic():
    t = np.random.default_rng(0).uniform(-1, 1, (20, 2))
    found = scores.central_slopes(lambda t: t[:, 0] ** 3 * t[:, 1] + t[:, 1] ** 2, t)
    exact = np.stack([3 * t[:, 0] ** 2 * t[:, 1], t[:, 0] ** 3 + 2 * t[:, 1]], 1)
    np.testing.assert_allclose(found, exact, atol=1e-9)


def test_the_first_crossing_is_found_between_the_points():
    x = np.linspace(0, 1, 11)
    assert scores.first_below(x, 1 - x, 0.234) == pytest.approx(0.766)
    assert scores.first_below(x, np.cos(20 * x), 0.0) == pytest.approx(np.pi / 40, abs=0.01)


def test_a_level_that_is_not_crossed_gives_the_nearer_end():
    x = np.linspace(2, 3, 5)
    assert scores.first_below(x, np.ones(5), 0.5) == 3
    assert scores.first_below(x, np.zeros(5), 0.5) == 2


def test_the_metric_error_is_relative_and_leaves_out_the_flat_part():
    exact = np.stack([np.diag([1.0, 0.0])] * 10 + [np.diag([1e-6, 0.0])])
    estimate = exact * np.linspace(1, 1.9, 11)[:, None, None]
    estimate[-1] = np.eye(2)
    np.testing.assert_allclose(scores.metric_error(estimate, exact), [0.405, 0.729])
    assert scores.metric_error(exact, exact).max() == 0
