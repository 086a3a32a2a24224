"""Laws of the open TASEP: each answer against enumeration, matrix products or plain simulation."""

from fractions import Fraction
from functools import cache
from math import factorial

import numba
import numpy as np
import pytest
import torch
from scipy.linalg import null_space
from scipy.stats import chisquare

from benchmarks.tasep import simulate
from lib.physics import tasep

# Low and high density, maximal current, coexistence, the corner, alpha + beta below, at, above 1.
PAIRS = [
    (0.3, 0.4),
    (0.2, 0.7),
    (0.9, 0.3),
    (0.8, 0.9),
    (0.3, 0.3),
    (1.0, 1.0),
    (1.0, 0.25),
    (0.6, 0.4),
    (0.1, 0.05),
]


def configurations(size):
    return (np.arange(2**size)[:, None] >> np.arange(size)) & 1


def codes(tau):
    return tau.astype(np.int64) @ (1 << np.arange(tau.shape[1]))


@cache
def stationary(alpha, beta, size):
    """Null vector of the Markov generator; state bit i is site i + 1."""
    generator = np.zeros((2**size, 2**size))
    for state, tau in enumerate(configurations(size)):
        moves = [(state | 1, alpha * (1 - tau[0])), (state & ~(1 << (size - 1)), beta * tau[-1])]
        moves += [(state ^ (3 << i), tau[i] * (1 - tau[i + 1])) for i in range(size - 1)]
        for target, rate in moves:
            generator[target, state] += rate
            generator[state, state] -= rate
    vector = null_space(generator, rcond=1e-13)[:, 0]
    return vector / vector.sum()


def matrix_product_weights(alpha, beta, size):
    """<W| X_1 ... X_N |V> of every configuration, from the tridiagonal form with kappa^2."""
    one, height = np.eye(size + 2), np.eye(size + 2, k=1)
    d, e = one + height, one + height.T
    d[0, 0], e[0, 0], d[0, 1] = 1 / beta, 1 / alpha, (alpha + beta - 1) / (alpha * beta)
    rows = one[:1]
    for _ in range(size):  # each new site is the highest bit of the index so far
        rows = np.concatenate([rows @ e, rows @ d])
    return rows[:, 0]


def exact_partition(alpha, beta, size):
    """Z_N in rational arithmetic from the sum over powers of 1/alpha and 1/beta."""
    x, y = 1 / Fraction(alpha), 1 / Fraction(beta)
    total, complete, power = Fraction(size == 0), Fraction(1), Fraction(1)
    for p in range(1, size + 1):
        power *= y
        complete = complete * x + power
        paths = Fraction(p * factorial(2 * size - 1 - p), factorial(size) * factorial(size - p))
        total += paths * complete
    return total


def log_fraction(value):
    """Log of a rational too large for a float."""
    shift = value.numerator.bit_length() - value.denominator.bit_length()
    return shift * np.log(2.0) + np.log(float(value / Fraction(2) ** shift))


def goodness_of_fit(tau, probabilities):
    """p-value of the chi-square test, states expected fewer than ten times pooled."""
    counts, expected = np.bincount(codes(tau), minlength=probabilities.size), probabilities
    expected = expected * len(tau)
    rare = expected < 10
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    return chisquare(counts, expected).pvalue


def largest_deviation(samples, mean):
    """Largest |z| of the column means; columns that must be constant have to be so."""
    error = np.sqrt(mean * (1 - mean) / len(samples))
    return np.max(np.abs(samples.mean(axis=0) - mean) / np.maximum(error, 1e-12))


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("rates", PAIRS)
def test_samples_follow_the_stationary_state_of_the_markov_chain(rates, size):
    alpha, beta = rates
    tau = tasep.sample(np.full(100_000, alpha), beta, size, seed=7)
    assert goodness_of_fit(tau, stationary(alpha, beta, size)) > 1e-4


def test_the_fit_tells_swapped_rates_and_a_reversed_chain_apart():
    probabilities = stationary(0.3, 0.4, 6)
    swapped = tasep.sample(np.full(100_000, 0.4), 0.3, 6)
    reversed_chain = tasep.sample(np.full(100_000, 0.3), 0.4, 6)[:, ::-1]
    assert goodness_of_fit(swapped, probabilities) < 1e-12
    assert goodness_of_fit(reversed_chain, probabilities) < 1e-12


@pytest.mark.parametrize("size", [9, 10])
@pytest.mark.parametrize("rates", [(0.2, 0.3), (0.7, 0.9)])
def test_samples_follow_the_matrix_product(rates, size):
    weights = matrix_product_weights(*rates, size)
    tau = tasep.sample(np.full(300_000, rates[0]), rates[1], size, seed=3)
    assert goodness_of_fit(tau, weights / weights.sum()) > 1e-4


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("rates", PAIRS)
def test_exact_answers_are_those_of_the_markov_chain(rates, size):
    alpha, beta = rates
    probabilities = stationary(alpha, beta, size)
    density = probabilities @ configurations(size)
    np.testing.assert_allclose(tasep.density_profile(alpha, beta, size), density, atol=1e-12)
    np.testing.assert_allclose(tasep.current(alpha, beta, size), beta * density[-1], atol=1e-12)
    # The empty chain weighs alpha^-N, the full one beta^-N.
    log_z = tasep.log_partition(alpha, beta, size)
    assert np.exp(-size * np.log(alpha) - log_z) == pytest.approx(probabilities[0], abs=1e-12)
    assert np.exp(-size * np.log(beta) - log_z) == pytest.approx(probabilities[-1], abs=1e-12)


@pytest.mark.parametrize("size", [0, 1, 2, 17, 120])
@pytest.mark.parametrize("rates", [*PAIRS, (1e-7, 1e-4), (0.5, 0.5), (1e-9, 1.0)])
def test_log_partition_is_that_of_rational_arithmetic(rates, size):
    exact = log_fraction(exact_partition(*rates, size))
    assert tasep.log_partition(*rates, size) == pytest.approx(exact, rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("rates", [*PAIRS, (1e-7, 1e-4), (0.5, 0.5)])
def test_current_is_the_ratio_of_two_partition_functions(rates):
    exact = exact_partition(*rates, 119) / exact_partition(*rates, 120)
    assert tasep.current(*rates, 120) == pytest.approx(float(exact), rel=1e-13)


@pytest.mark.parametrize("gap", [0.0, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3])
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_the_diagonal_is_no_special_place(rate, gap):
    alpha, beta = rate * (1 + gap), rate * (1 - gap)
    exact = log_fraction(exact_partition(alpha, beta, 60))
    assert tasep.log_partition(alpha, beta, 60) == pytest.approx(exact, rel=1e-14)
    ratio = float(exact_partition(alpha, beta, 59) / exact_partition(alpha, beta, 60))
    assert tasep.current(alpha, beta, 60) == pytest.approx(ratio, rel=1e-13)


def test_published_values():
    currents = {
        (6, 0.3, 0.4): 0.2010472302,
        (6, 0.2, 0.7): 0.1598964074,
        (6, 0.8, 0.9): 0.2977102722,
        (6, 0.3, 0.3): 0.1875887048,
        (100, 0.3, 0.4): 0.2099999792,
        (100, 0.8, 0.9): 0.2536510999,
        (1000, 0.8, 0.9): 0.2503739433,
        (1000, 0.3, 0.3): 0.2097907585,
    }
    partitions = {
        (100, 0.3, 0.4): 156.8914527049,
        (100, 0.8, 0.9): 133.2592080674,
        (1000, 0.8, 0.9): 1377.5233048998,
        (1000, 0.3, 0.3): 1566.4398904133,
    }
    for (size, alpha, beta), value in currents.items():
        assert tasep.current(alpha, beta, size) == pytest.approx(value, abs=3e-10)
    for (size, alpha, beta), value in partitions.items():
        assert tasep.log_partition(alpha, beta, size) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("size", [1, 10, 1000, 100_000])
def test_rates_that_sum_to_one_give_a_product_measure(size):
    alpha = np.array([0.05, 0.3, 0.5, 0.8, 0.95])
    flat = alpha * (1 - alpha)
    np.testing.assert_allclose(tasep.current(alpha, 1 - alpha, size), flat, rtol=1e-11)
    log_z = tasep.log_partition(alpha, 1 - alpha, size)
    np.testing.assert_allclose(log_z, -size * np.log(flat), rtol=1e-12)
    profile = tasep.density_profile(alpha, 1 - alpha, min(size, 1000))
    np.testing.assert_allclose(profile, np.broadcast_to(alpha[:, None], profile.shape), rtol=1e-10)


def test_the_finite_chain_approaches_the_infinite_one():
    alpha, beta = np.array([0.2, 0.9, 0.3, 0.7, 1]), np.array([0.6, 0.25, 0.3, 0.8, 1])
    np.testing.assert_allclose(
        tasep.current(alpha, beta, 100_000), tasep.current(alpha, beta), 1e-4
    )
    per_site = tasep.log_partition(alpha, beta, 100_000) / 100_000
    np.testing.assert_allclose(per_site, tasep.potentials(alpha, beta)["log_current"], atol=3e-4)
    np.testing.assert_allclose(tasep.current(alpha, beta), [0.16, 0.1875, 0.21, 0.25, 0.25])


@pytest.mark.parametrize("size", [1, 40, 3000])
def test_particles_and_holes_are_exchanged_by_reversal(size):
    rng = np.random.default_rng(1)
    alpha, beta = rng.uniform(0.02, 1, (2, 30))
    for exact in (tasep.log_partition, tasep.current):
        np.testing.assert_allclose(exact(alpha, beta, size), exact(beta, alpha, size), rtol=1e-12)
    profile = tasep.density_profile(alpha, beta, size)
    mirrored = 1 - tasep.density_profile(beta, alpha, size)[:, ::-1]
    np.testing.assert_allclose(profile, mirrored, atol=1e-9)


@pytest.mark.parametrize("rates", [(0.2, 0.5), (0.3, 0.3), (0.9, 0.7)])
def test_the_sampler_exchanges_particles_and_holes_by_reversal(rates):
    n, size = 40_000, 24
    tau = tasep.sample(np.full(n, rates[0]), rates[1], size, seed=1).astype(float)
    mirrored = 1.0 - tasep.sample(np.full(n, rates[1]), rates[0], size, seed=2)[:, ::-1]
    for statistic in (lambda x: x, lambda x: x[:, 1:] * x[:, :-1], lambda x: x[:, 4:] * x[:, :-4]):
        one, other = statistic(tau), statistic(mirrored)
        error = np.sqrt((one.var(axis=0) + other.var(axis=0)) / n)
        assert np.max(np.abs(one.mean(axis=0) - other.mean(axis=0)) / error) < 4.5


@pytest.mark.parametrize("size", [1, 2, 50, 4000])
def test_the_current_enters_and_leaves(size):
    rng = np.random.default_rng(2)
    alpha, beta = rng.uniform(0.02, 1, (2, 30))
    profile = tasep.density_profile(alpha, beta, size)
    expected = tasep.current(alpha, beta, size)
    np.testing.assert_allclose(beta * profile[:, -1], expected, rtol=1e-9)
    np.testing.assert_allclose(alpha * (1 - profile[:, 0]), expected, rtol=1e-9)


@pytest.mark.parametrize("rates", [(0.2, 0.7), (0.7, 0.2), (0.8, 0.9), (0.3, 0.3), (1.0, 1.0)])
def test_long_chains_have_the_exact_density_and_current(rates):
    n, size = 2000, 2000
    tau = tasep.sample(np.full(n, rates[0]), rates[1], size, seed=4)
    mean = tasep.density_profile(*rates, size)
    assert largest_deviation(tau, mean) < 5
    filling = tau.mean(axis=1)
    assert abs(filling.mean() - mean.mean()) < 4.5 * filling.std() / np.sqrt(n)
    hops = (tau[:, :-1] > tau[:, 1:]).mean(axis=1)
    assert abs(hops.mean() - tasep.current(*rates, size)) < 4.5 * hops.std() / np.sqrt(n)


@pytest.mark.parametrize("rates", [(0.2, 0.7), (0.6, 0.35), (0.3, 0.3), (0.9, 0.8)])
def test_random_sequential_dynamics_reach_the_exact_state(rates):
    # Independent runs of ten relaxation times and more, so that errors need no correction.
    n, size = 1200, 30
    tau = simulate(np.full(n, rates[0]), rates[1], size, 2000, seed=5).astype(float)
    assert largest_deviation(tau, tasep.density_profile(*rates, size)) < 4.5
    exact = tasep.sample(np.full(n, rates[0]), rates[1], size, seed=6).astype(float)
    for statistic in (lambda x: x[:, 1:] * x[:, :-1], lambda x: x.mean(axis=1, keepdims=True) ** 2):
        one, other = statistic(tau), statistic(exact)
        error = np.sqrt((one.var(axis=0) + other.var(axis=0)) / n)
        assert np.max(np.abs(one.mean(axis=0) - other.mean(axis=0)) / error) < 4.5
    hops = (tau[:, :-1] > tau[:, 1:]).mean(axis=1)
    assert abs(hops.mean() - tasep.current(*rates, size)) < 4.5 * hops.std() / np.sqrt(n)


def test_too_few_sweeps_are_not_equilibrium():
    tau = simulate(np.full(2000, 0.2), 0.7, 100, 10, seed=1)
    assert largest_deviation(tau, tasep.density_profile(0.2, 0.7, 100)) > 10
    start = simulate(np.full(2000, 0.2), 0.7, 100, 0, seed=1)
    assert largest_deviation(start, np.full(100, 0.5)) < 4.5


def test_vanishing_rates_leave_a_uniformly_placed_wall():
    n, size = 20_000, 9
    tau = tasep.sample(np.full(n, 1e-12), 1e-12, size).astype(int)
    assert (np.diff(tau, axis=1) >= 0).all()
    assert chisquare(np.bincount(tau.sum(axis=1), minlength=size + 1)).pvalue > 1e-4
    assert not tasep.sample(1e-300, 1.0, 1000).any()
    assert tasep.sample(1.0, 1e-300, 1000).all()


def test_a_draw_depends_on_seed_and_index_alone():
    rng = np.random.default_rng(0)
    alpha, beta = rng.uniform(0.05, 1, (2, 50))
    for draw in (tasep.sample, lambda *args, seed=0: simulate(*args, 20, seed=seed)):
        tau = draw(alpha, beta, 300)
        assert tau.dtype == np.uint8 and tau.shape == (50, 300)
        np.testing.assert_array_equal(draw(alpha[:3], beta[:3], 300), tau[:3])
        threads = numba.get_num_threads()
        try:
            numba.set_num_threads(1)
            np.testing.assert_array_equal(draw(alpha, beta, 300), tau)
        finally:
            numba.set_num_threads(threads)
        assert (draw(alpha, beta, 300, seed=1) != tau).any(axis=1).all()


def test_draws_of_one_pair_are_independent():
    # Rates that sum to one give independent coins, so any two rows and sites must be uncorrelated.
    tau = tasep.sample(np.full(1000, 0.5), 0.5, 1000, seed=11) - 0.5
    for a, b in ((tau[1:], tau[:-1]), (tau[:, 1:], tau[:, :-1]), (tau[1:, 1:], tau[:-1, :-1])):
        assert abs((a * b).sum()) < 4.5 * 0.25 * np.sqrt(a.size)
    other = tasep.sample(np.full(1000, 0.5), 0.5, 1000, seed=12) - 0.5
    assert abs((tau * other).sum()) < 4.5 * 0.25 * np.sqrt(tau.size)


@pytest.mark.parametrize("rates", [(0.3, 0.4), (0.8, 0.9), (0.1, 0.05)])
def test_the_hidden_row_belongs_to_the_sample(rates):
    size, draws = 3, 40_000
    odds = (1 - np.array(rates)) / rates
    rows = configurations(size)
    paths = np.pad(np.cumsum(rows[:, None] - rows[None], axis=2), ((0, 0), (0, 0), (1, 0)))
    u = -paths.min(2)
    v = paths[:, :, -1] + u
    weight = odds[0] ** u * odds[1] ** v
    expected = np.zeros((2**size, size + 1, size + 1))
    np.add.at(expected, (np.arange(2**size)[:, None], u, v), weight / weight.sum())
    tau = codes(tasep.sample(*np.repeat([rates], draws, 0).T, size, seed=5))
    counts = tasep.hidden_counts(*np.repeat([rates], draws, 0).T, size, seed=5)
    observed = np.zeros_like(expected)
    np.add.at(observed, (tau, *counts.T), 1)
    assert not observed[expected == 0].any()
    common = expected * draws > 5
    merged = [np.append(part[common], part[~common].sum()) for part in (observed, expected * draws)]
    assert chisquare(*(part[merged[1] > 0] for part in merged)).pvalue > 1e-4


def test_the_two_rows_are_an_exponential_family_whose_log_z_is_exact():
    size, draws, step = 100, 40_000, 1e-3
    theta = np.array([-1.0, 0.5])

    def log_z(shift):
        return tasep.log_partition(*(1 / (1 + np.exp(-theta - shift))), size)

    steps = step * np.eye(2)
    slope = [(log_z(h) - log_z(-h)) / (2 * step) for h in steps]
    bend = [(log_z(h) - 2 * log_z(0 * h) + log_z(-h)) / step**2 for h in steps]
    rates = np.repeat([1 / (1 + np.exp(-theta))], draws, 0)
    f = -tasep.hidden_counts(*rates.T, size, seed=2)
    assert np.abs((f.mean(0) - slope) / (f.std(0) / np.sqrt(draws))).max() < 4
    np.testing.assert_allclose(f.var(0), bend, rtol=0.05)


@pytest.mark.parametrize("rates", PAIRS)
def test_the_probability_of_a_configuration_is_that_of_the_markov_chain(rates):
    expected = np.log(stationary(*rates, 5))
    found = [tasep.log_probability(tau, *rates)[0, 0] for tau in configurations(5)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_probability_of_a_long_chain_on_a_grid():
    alpha, beta = np.array([0.1, 0.3, 0.6]), np.array([0.4, 0.7])
    tau = tasep.sample(0.3, 0.7, 400)[0]
    table = tasep.log_probability(tau, alpha, beta)
    assert table.shape == (3, 2)
    # On alpha + beta = 1 the sites are independent with density alpha.
    coins = tau.sum() * np.log(0.3) + (1 - tau).sum() * np.log(0.7)
    assert table[1, 1] == pytest.approx(coins, abs=1e-8)
    # Particles and holes, read from the other end.
    mirrored = tasep.log_probability(1 - tau[::-1], beta, alpha)
    np.testing.assert_allclose(mirrored, table.T, atol=1e-8)


def exact_log_probability(tau, alpha, beta):
    """The sum over partner rows in rational arithmetic."""
    a, b = ((1 - Fraction(rate)) / Fraction(rate) for rate in (alpha, beta))
    w = [Fraction(1)] + [Fraction(0)] * len(tau)
    for particle in tau:
        neighbours = [0, *w[:-1]] if particle else [*w[1:], 0]
        first = 0 if particle else a * w[0]
        w = [v + n for v, n in zip(w, neighbours, strict=True)]
        w[0] += first
    total = sum(v * b**h for h, v in enumerate(w))
    return log_fraction(total) - log_fraction(exact_partition(alpha, beta, len(tau)))


@pytest.mark.parametrize("rates", [(1e-10, 1e-12), (1e-300, 1e-300), (1e-120, 0.5), (1.0, 1e-200)])
def test_the_probability_of_a_chain_is_that_of_rational_arithmetic_at_extreme_rates(rates):
    # In the first, heights differ by more than the range of a float, and the lowest do not win.
    for tau in ([1] * 100 + [0] * 40, [0] * 40 + [1] * 100, [1, 0] * 50, [0] * 60, [1] * 60):
        exact = exact_log_probability(tau, *rates)
        rounding = 1e-14 * len(tau) * abs(np.log(min(rates)))
        found = tasep.log_probability(tau, *rates)[0, 0]
        assert found == pytest.approx(exact, rel=1e-12, abs=rounding)


def test_the_rate_that_is_wrong_is_the_one_named():
    with pytest.raises(ValueError, match="beta holds 2.0"):
        tasep.log_probability([0, 1], 0.5, 2.0)
    with pytest.raises(ValueError, match="alpha holds 5e-324; allowed is a rate in"):
        tasep.log_partition(5e-324, 0.5, 4)


def test_scalars_and_grids_keep_their_shape():
    assert tasep.sample(0.3, 0.4, 5).shape == (1, 5)
    assert tasep.sample(0.3, [0.4, 0.5], 5).shape == (2, 5)
    alpha, beta = np.meshgrid([0.2, 0.4, 0.8], [0.3, 0.9], indexing="ij")
    for exact in (tasep.log_partition, tasep.current):
        table = exact(alpha, beta, 30)
        assert table.shape == (3, 2) and table[2, 1] == exact(0.8, 0.9, 30)
    assert tasep.density_profile(alpha, beta, 30).shape == (3, 2, 30)
    assert tasep.fisher_metric(alpha, beta).shape == (3, 2, 2, 2)


def test_phases_and_their_borders():
    alpha = [0.2, 0.7, 0.6, 0.3, 0.5, 0.5, 0.9, 0.2, 1.0, 0.5]
    beta = [0.7, 0.2, 0.9, 0.3, 0.5, 0.8, 0.5, 0.3, 1.0, 0.4]
    low, high, maximal, coexistence = tasep.PHASES
    expected = [low, high, maximal, coexistence, maximal, maximal, maximal, low, maximal, high]
    assert tasep.phase(alpha, beta).tolist() == expected


def test_the_phase_is_that_of_the_middle_of_a_long_chain():
    rng = np.random.default_rng(3)
    alpha, beta = rng.uniform(0.05, 1, (2, 60))
    slowest = np.minimum(alpha, beta)
    apart = (np.abs(alpha - beta) > 0.1) | (slowest > 0.6)
    alpha, beta, slowest = alpha[apart], beta[apart], slowest[apart]
    middle = tasep.density_profile(alpha, beta, 10_001)[:, 5000]
    names = tasep.phase(alpha, beta)
    assert set(names) == set(tasep.PHASES[:3])
    bulk = np.select([names == p for p in tasep.PHASES[:3]], [slowest, 1 - slowest, 0.5], np.nan)
    np.testing.assert_allclose(middle, bulk, atol=0.01)


def test_the_current_gradient_is_the_slope_of_the_current():
    alpha, beta, h = np.array([0.2, 0.7, 0.6]), np.array([0.7, 0.2, 0.9]), 1e-6
    by_alpha = (tasep.current(alpha + h, beta) - tasep.current(alpha - h, beta)) / (2 * h)
    by_beta = (tasep.current(alpha, beta + h) - tasep.current(alpha, beta - h)) / (2 * h)
    slope = np.stack([by_alpha, by_beta], axis=-1)
    np.testing.assert_allclose(tasep.current_gradient(alpha, beta), slope, atol=1e-9)
    np.testing.assert_allclose(tasep.current_gradient(0.3, 0.3), [0.2, 0.2])


@pytest.mark.parametrize("rates", [(0.15, 0.9), (0.9, 0.15), (0.2, 0.75)])
def test_one_more_site_adds_the_fisher_metric(rates):
    def information(size, h=1e-4):
        def probabilities(a, b):
            weights = matrix_product_weights(a, b, size)
            return weights / weights.sum()

        a, b = rates
        slopes = [
            (probabilities(a + h, b) - probabilities(a - h, b)) / (2 * h),
            (probabilities(a, b + h) - probabilities(a, b - h)) / (2 * h),
        ]
        p = probabilities(a, b)
        return np.array([[(x * y / p).sum() for y in slopes] for x in slopes])

    added = information(11) - information(10)
    np.testing.assert_allclose(tasep.fisher_metric(*rates), added, atol=0.03)


def hessian(function, x, y, h=1e-4):
    def mixed(i, j):
        signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
        step = np.eye(2) * h
        points = [(s * t, np.array([x, y]) + s * step[i] + t * step[j]) for s, t in signs]
        return sum(sign * function(*point) for sign, point in points) / (4 * h * h)

    return np.array([[mixed(i, j) for j in range(2)] for i in range(2)])


@pytest.mark.parametrize("rates", [(0.2, 0.6), (0.8, 0.3), (0.7, 0.9)])
def test_the_potentials_bend_as_they_should(rates):
    metric = tasep.fisher_metric(*rates)
    named = {key: lambda a, b, k=key: tasep.potentials(a, b)[k] for key in tasep.potentials(1, 1)}
    np.testing.assert_allclose(hessian(named["fisher"], *rates), metric, atol=1e-5)
    np.testing.assert_allclose(hessian(named["current"], *rates), 2.0 * (metric > 0), atol=1e-5)
    assert named["current"](*rates) == pytest.approx(-tasep.current(*rates))
    assert named["log_current"](*rates) == pytest.approx(-np.log(tasep.current(*rates)))

    def in_logits(x, y):
        return named["log_current"](1 / (1 + np.exp(-x)), 1 / (1 + np.exp(-y)))

    jacobian = np.diag([rate * (1 - rate) for rate in rates])
    expected = 2 * jacobian @ metric @ jacobian
    logits = [np.log(rate / (1 - rate)) for rate in rates]
    np.testing.assert_allclose(hessian(in_logits, *logits), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0.5, 10), r"alpha holds 0.0"),
        ((0.5, -0.1, 10), r"beta holds -0.1"),
        ((1.5, 0.5, 10), r"alpha holds 1.5"),
        (([0.5, np.nan], 0.5, 10), r"alpha holds nan"),
        ((0.5, np.inf, 10), r"beta holds inf"),
        (([0.5] * 3, [0.5] * 2, 10), r"alpha and beta .* \(3,\) and \(2,\)"),
        ((0.5, 0.5, -1), r"size is -1"),
        ((0.5, 0.5, 2.5), r"size is 2.5"),
    ],
)
def test_bad_input_is_named(arguments, message):
    for function in (tasep.sample, tasep.log_partition, tasep.current, tasep.density_profile):
        with pytest.raises(ValueError, match=message):
            function(*arguments)
    with pytest.raises(ValueError, match=message):
        tasep.hidden_counts(*arguments)


def test_sizes_and_shapes_that_only_some_functions_take():
    for function in (tasep.sample, tasep.current, tasep.density_profile):
        with pytest.raises(ValueError, match="size is 0; allowed is a whole number >= 1"):
            function(0.5, 0.5, 0)
    assert tasep.log_partition(0.3, 0.4, 0) == 0.0
    with pytest.raises(ValueError, match=r"shape \(2, 2\); allowed is a number or \(n,\)"):
        tasep.sample(np.full((2, 2), 0.5), 0.5, 10)
    for function in (tasep.phase, tasep.fisher_metric, tasep.potentials, tasep.current_gradient):
        with pytest.raises(ValueError, match=r"beta holds 0.0; allowed is a rate in \(0, 1\]"):
            function(0.5, 0.0)


@pytest.mark.parametrize("occupied", [[[0, 1]], [], [0, 2, 1]])
def test_the_probability_is_of_one_chain(occupied):
    with pytest.raises(ValueError, match="occupied has shape"):
        tasep.log_probability(occupied, 0.3, 0.4)


def test_compiled_loops_leave_the_threads_of_torch_alone():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            chains = tasep.sample([0.3, 0.6], [0.4, 0.7], 8)
            assert torch.get_num_threads() == threads
            tasep.log_probability(chains[0], 0.3, 0.4)
            tasep.hidden_counts([0.3], [0.4], 8)
            simulate([0.3], [0.4], 8, 2)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_domain_wall_is_the_lowest_point_of_the_path():
    """Sparse before it and dense behind it; particles and holes exchange its two sides."""
    wall = np.array([[0, 0, 1, 0, 1, 1, 0, 1, 1, 1]])
    np.testing.assert_array_equal(tasep.domain_wall(wall), [[2, 4]])
    chains = tasep.sample(np.linspace(0.1, 0.9, 50), 0.4, 200, seed=3)
    fall, climb = tasep.domain_wall(chains).T
    np.testing.assert_array_equal(climb - fall, 2 * chains.sum(1, dtype=int) - 200)
    mirrored = tasep.domain_wall(1 - chains[:, ::-1])
    np.testing.assert_array_equal(mirrored, np.stack([climb, fall], 1))
    wider = tasep.domain_wall(chains, [0.5, 2])
    np.testing.assert_array_equal(wider[:, 4], np.clip(fall - 2 * 200**0.5, 0, None))


def test_a_domain_wall_approximates_the_statistic_of_both_rows():
    """Per site and up to the hidden row's share, far from the border of maximal current."""
    alpha, beta, size = np.repeat([0.2, 0.3, 0.8], 40), np.repeat([0.7, 0.3, 0.1], 40), 4096
    walls = tasep.domain_wall(tasep.sample(alpha, beta, size, seed=1))
    counts = tasep.hidden_counts(alpha, beta, size, seed=1)
    assert np.abs(walls - counts).max() < 0.1 * size


@pytest.mark.parametrize("chains", [[0, 1], [[0, 2]], [[-1, 1]], np.empty((3, 0))])
def test_a_domain_wall_needs_chains_of_particles_and_holes(chains):
    with pytest.raises(ValueError, match="chains of 0 and 1"):
        tasep.domain_wall(chains)
