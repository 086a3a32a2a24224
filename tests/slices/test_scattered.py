"""Metrics from scattered labels against a linear map and against noise."""

import numpy as np
import pytest

from lib.slices import scattered

RNG = np.random.default_rng(0)
T, AT = RNG.uniform(size=(300, 2)), RNG.uniform(0.1, 0.9, (20, 2))
JACOBIAN = RNG.standard_normal((5, 2))


def test_local_regression_of_a_linear_map_is_exact():
    found = scattered.local_regression(T @ JACOBIAN.T + 3, T, AT)
    np.testing.assert_allclose(found, np.square(JACOBIAN).sum(), rtol=1e-6)


def test_local_regression_averages_noise_away_and_pairs_measure_it():
    noisy = T @ JACOBIAN.T + 0.1 * RNG.standard_normal((300, 5))
    true = np.square(JACOBIAN).sum()
    assert scattered.local_regression(noisy, T, AT).mean() == pytest.approx(true, rel=0.2)
    assert np.median(scattered.nearest_pairs(noisy, T, AT)) > 5 * true


def test_nearest_pairs_of_an_isotropic_map_are_half_of_its_trace():
    found = scattered.nearest_pairs(3 * T, T, AT)  # one direction at a time
    np.testing.assert_allclose(found, 9)
