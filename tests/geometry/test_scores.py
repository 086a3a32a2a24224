"""Slopes, crossings and metric errors, on functions whose answer is known."""

import numpy as np
import pytest
import torch
from scipy import integrate

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


def test_an_alignment_undoes_a_scale_and_an_affine_function_away_from_its_points_too():
    t = np.random.default_rng(1).uniform(0.1, 0.9, (40, 2))

    def curved(theta):
        return theta.exp().sum(1)

    field, alignment = scores.aligned(
        lambda theta: 3 * curved(theta) + theta @ torch.tensor([1.0, -2.0]).double() + 4,
        curved(torch.logit(torch.tensor(t))),
        t,
        natural=torch.logit,
    )
    new = np.random.default_rng(2).uniform(0.1, 0.9, (9, 2))
    np.testing.assert_allclose(field(new), curved(torch.logit(torch.tensor(new))), rtol=1e-9)
    assert float(alignment.scale) == pytest.approx(1 / 3)


def on_a_line(axis):
    points = np.full((701, 2), 0.7)
    points[:, axis] = np.linspace(0.05, 0.95, 701)
    return points


@pytest.mark.parametrize("axis", [0, 1])
def test_a_jump_of_the_slope_is_found_where_it_is(axis):
    found = scores.slope_falls(
        lambda t: 0.6 * np.minimum(t[:, axis], 0.32), on_a_line(axis), axis, 0.3
    )
    assert found == pytest.approx(0.32, abs=2e-3)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_slope_that_falls_steadily_ends_behind_its_rounded_corner(axis):
    ends, rounding = 0.5, 0.02
    grid = np.linspace(0, 1, 20_001)
    slope = rounding * np.logaddexp(
        0, 2 * (ends - grid) / rounding
    )  # max(0, 2 (ends - t)), rounded
    table = integrate.cumulative_trapezoid(slope, grid, initial=0)

    def field(t):
        return np.interp(t[:, axis], grid, table)

    found = scores.slope_ends(field, on_a_line(axis), axis)
    assert found == pytest.approx(ends, abs=2e-3)
    assert scores.slope_falls(field, on_a_line(axis), axis, 0.01) > ends + 2e-3  # the corner itself
