"""Every public call of the room says what it was handed, and is exact at the ends of its range."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.ising import autocorrelation_time
from lib.physics import ising, ising_exact, tasep

# --- values that are no numbers, or not the numbers that are meant -----------------------------

NO_REALS = [
    np.nan,
    np.inf,
    -np.inf,
    1j,
    True,
    [True, False],
    "0.3",
    None,
    [[0.3, 0.4], [0.5]],
    np.ma.masked_array([0.3, 0.4], mask=[False, True]),
    Fraction(1, 3),
    torch.tensor(0.3, requires_grad=True),
]
OF_REALS = {
    "ising.sample": lambda x: ising.sample(x, 0.1, 4),
    "ising.sample, field": lambda x: ising.sample(0.1, x, 4),
    "ising.sample on tensors": lambda x: ising.sample(x, 0.1, 4, device="torch"),
    "ising.metropolis": lambda x: ising.metropolis(0.1, x, 4, 2),
    "ising.trajectory": lambda x: ising.trajectory(x, 0.0, 4, 2),
    "ising.log_partition": lambda x: ising.log_partition(0.1, x, 4),
    "ising.cylinder_free_energy": lambda x: ising.cylinder_free_energy(x, 0.1, 4),
    "ising.cylinder_cumulants": lambda x: ising.cylinder_cumulants(x, 0.1, 4),
    "ising.zero_field_curvature": lambda x: ising.zero_field_curvature(x, 4),
    "ising.kaufman_log_partition": lambda x: ising.kaufman_log_partition(x, 4),
    "ising.onsager_free_energy": ising.onsager_free_energy,
    "ising.onsager_energy": ising.onsager_energy,
    "ising.onsager_magnetization": ising.onsager_magnetization,
    "ising.autocorrelation_time": autocorrelation_time,
    "ising.observables": lambda x: ising.observables([[[x] * 3] * 3]),
    "tasep.sample": lambda x: tasep.sample(x, 0.5, 4),
    "tasep.hidden_counts": lambda x: tasep.hidden_counts(0.5, x, 4),
    "tasep.log_partition": lambda x: tasep.log_partition(x, 0.5, 4),
    "tasep.log_probability": lambda x: tasep.log_probability([0, 1], 0.5, x),
    "tasep.log_probability, chain": lambda x: tasep.log_probability([x, x], 0.5, 0.5),
    "tasep.current": lambda x: tasep.current(0.5, x, 4),
    "tasep.current, infinite": lambda x: tasep.current(0.5, x),
    "tasep.current_gradient": lambda x: tasep.current_gradient(0.5, x),
    "tasep.phase": lambda x: tasep.phase(0.5, x),
    "tasep.density_profile": lambda x: tasep.density_profile(x, 0.5, 4),
    "tasep.fisher_metric": lambda x: tasep.fisher_metric(0.5, x),
    "tasep.potentials": lambda x: tasep.potentials(0.5, x),
}


@pytest.mark.parametrize("call", OF_REALS.values(), ids=OF_REALS)
@pytest.mark.parametrize("value", NO_REALS, ids=repr)
def test_only_finite_real_numbers_are_taken(call, value):
    with pytest.raises(ValueError, match="allowed"):
        call(value)


NO_COUNTS = [np.nan, 4.0, 4.5, "4", None, True, np.True_, -1, [4], 4j]
OF_COUNTS = {
    "ising.sample": lambda n: ising.sample(0.1, 0.0, n),
    "ising.sample, sweeps": lambda n: ising.sample(0.1, 0.0, 4, sweeps=0 if n is None else n),
    "ising.sample, seed": lambda n: ising.sample(0.1, 0.0, 4, seed=n),
    "ising.sample, first": lambda n: ising.sample(0.1, 0.0, 4, first=n),
    "ising.metropolis": lambda n: ising.metropolis(0.1, 0.0, 4, n),
    "ising.trajectory": lambda n: ising.trajectory(0.1, 0.0, n, 4),
    "ising.equilibrium_sweeps": ising.equilibrium_sweeps,
    "ising.log_partition": lambda n: ising.log_partition(0.1, 0.0, n),
    "ising.cylinder_free_energy": lambda n: ising.cylinder_free_energy(0.1, 0.0, n),
    "ising.cylinder_cumulants": lambda n: ising.cylinder_cumulants(0.1, 0.0, n),
    "ising.zero_field_curvature": lambda n: ising.zero_field_curvature(0.1, n),
    "ising.kaufman_log_partition": lambda n: ising.kaufman_log_partition(0.1, n),
    "ising_exact.levels": ising_exact.levels,
    "tasep.sample": lambda n: tasep.sample(0.5, 0.5, n),
    "tasep.sample, seed": lambda n: tasep.sample(0.5, 0.5, 4, seed=n),
    "tasep.hidden_counts": lambda n: tasep.hidden_counts(0.5, 0.5, n),
    "tasep.hidden_counts, seed": lambda n: tasep.hidden_counts(0.5, 0.5, 4, seed=n),
    "tasep.log_partition": lambda n: tasep.log_partition(0.5, 0.5, n),
    "tasep.current": lambda n: tasep.current(0.5, 0.5, -1 if n is None else n),
    "tasep.density_profile": lambda n: tasep.density_profile(0.5, 0.5, n),
}


@pytest.mark.parametrize("call", OF_COUNTS.values(), ids=OF_COUNTS)
@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
def test_only_whole_numbers_count(call, value):
    with pytest.raises(ValueError, match="allowed is a whole number"):
        call(value)


def test_two_seeds_never_share_their_draws():
    for draw in (ising.sample, tasep.sample):
        last = draw(0.3, 0.3, 40, seed=2**64 - 1)
        assert not np.array_equal(last, draw(0.3, 0.3, 40, seed=0))
        with pytest.raises(ValueError, match="seed is 18446744073709551616"):
            draw(0.3, 0.3, 40, seed=2**64)


def test_labels_of_clusters_fit_their_integers():
    with pytest.raises(ValueError, match="size is 46341; allowed is a whole number 3 to 46340"):
        ising.sample(0.4, 0.0, 46_341)


@pytest.mark.parametrize("value", [0, 0.7, 2, -128, 255])
def test_spins_are_minus_and_plus_one(value):
    spins = np.ones((2, 4, 4))
    np.testing.assert_array_equal(ising.observables(-spins), [[32, -16]] * 2)
    np.testing.assert_array_equal(ising.observables(spins.tolist()), [[32, 16]] * 2)
    spins[1, 2, 3] = value
    with pytest.raises(ValueError, match=f"samples holds {value:g}; allowed is spins"):
        ising.observables(spins)


@pytest.mark.parametrize("shape", [(3, 3), (1, 3, 4), (1, 2, 2), (1, 1, 3, 3)])
def test_configurations_are_squares(shape):
    with pytest.raises(ValueError, match="samples has shape"):
        ising.observables(np.ones(shape))


def test_natural_parameters_are_double_unless_a_tensor_says_otherwise():
    for t in ([[2, 1]], np.array([[2, 1]]), [[2.0, 1.0]], torch.tensor([[2, 1]])):
        assert ising.natural(t).dtype == torch.float64
    assert ising.natural(torch.ones(1, 2)).dtype == torch.float32
    for wrong in (torch.ones(2, 3), torch.tensor(1.0), torch.ones(1, 2) * 1j, [[True, True]]):
        with pytest.raises(ValueError, match="allowed"):
            ising.natural(wrong)


def test_nothing_in_gives_nothing_out():
    assert ising.sample([], [], 4).shape == (0, 4, 4)
    assert ising.sample([], 0.1, 4, device="torch").shape == (0, 4, 4)
    assert [x.shape for x in ising.cylinder_cumulants([], [], 4)] == [(0,), (0, 2), (0, 2, 2)]
    assert ising.zero_field_curvature([], 4).shape == (0,)
    assert autocorrelation_time(np.zeros((0, 4))).shape == (0,)
    assert tasep.sample([], 0.5, 4).shape == (0, 4)
    assert tasep.density_profile([], [], 4).shape == (0, 4)
    assert tasep.log_probability([0, 1], [], [0.5]).shape == (0, 1)


# --- extreme parameters ------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1e100), st.floats(-1e100, 1e100), st.sampled_from([3, 4]))
def test_log_partition_is_the_sum_over_levels_at_any_temperature_and_field(beta, field, size):
    orders, count = ising_exact.levels(size)
    with mpmath.workdps(40):
        energies = [beta * mpmath.mpf(int(e)) + field * mpmath.mpf(int(m)) for e, m in orders]
        top = max(energies)
        terms = (int(k) * mpmath.exp(e - top) for k, e in zip(count, energies, strict=True))
        exact = float(top + mpmath.log(mpmath.fsum(terms)))
    assert ising.log_partition(beta, field, size) == pytest.approx(exact, rel=2e-13)


def exact_curvature(beta, size):
    """R at zero field, from the levels with 400 digits."""
    orders, count = ising_exact.levels(size)
    with mpmath.workdps(400):
        sites, beta = mpmath.mpf(size**2), mpmath.mpf(beta)
        weights = [
            int(k) * mpmath.exp(beta * int(e)) for (e, _), k in zip(orders, count, strict=True)
        ]
        total = mpmath.fsum(weights)

        def mean(function):
            values = (function(int(e), int(m)) for e, m in orders)
            return mpmath.fsum(w * v for w, v in zip(weights, values, strict=True)) / total

        centre = mean(lambda e, m: e)
        b2, b3 = (mean(lambda e, m, n=n: (e - centre) ** n) / sites for n in (2, 3))
        hh, bhh = (mean(lambda e, m, n=n: m**2 * (e - centre) ** n) / sites for n in (0, 1))
        return float(bhh * (b2 * bhh - hh * b3) / (2 * b2**2 * hh**2))


@pytest.mark.parametrize("size", [3, 4])
def test_the_curvature_is_exact_at_every_temperature(size):
    beta = np.array([0.0, 1e-9, 0.005, 0.1, 0.3, 0.4407, 0.7, 1.5, 2.5, 3.0, 4.0, 12.0, 30.0])
    exact = [exact_curvature(b, size) for b in beta]
    np.testing.assert_allclose(ising.zero_field_curvature(beta, size), exact, rtol=1e-11)
    frozen = 2 * (size**2 - 1) / size**2
    assert ising.zero_field_curvature(1e90, size) == pytest.approx(frozen, rel=1e-14)


@pytest.mark.parametrize("size", [5, 8])
def test_the_curvature_of_larger_lattices_is_that_of_differences(size):
    beta, step, small = 0.42, 5e-3, 1e-3
    moved = beta + step * np.arange(-2, 3)
    psi = ising.kaufman_log_partition(moved, size) / size**2
    b2 = (-psi[0] + 16 * psi[1] - 30 * psi[2] + 16 * psi[3] - psi[4]) / (12 * step**2)
    b3 = (psi[4] - 2 * psi[3] + 2 * psi[1] - psi[0]) / (2 * step**3)
    hh = 2 * (ising.log_partition(moved, small, size) / size**2 - psi) / small**2
    bhh = (hh[0] - 8 * hh[1] + 8 * hh[3] - hh[4]) / (12 * step)
    expected = bhh * (b2 * bhh - hh[2] * b3) / (2 * b2**2 * hh[2] ** 2)
    assert ising.zero_field_curvature(beta, size) == pytest.approx(expected, rel=0.01)


def test_a_metric_lost_to_rounding_is_refused():
    for field in (1e-3, -1e-3):
        mean = ising.cylinder_cumulants(3.0, field, 12)[1]
        assert mean[1] == pytest.approx(np.sign(field), abs=1e-6)
    with pytest.raises(ValueError, match="at beta = 3.0, field = 0.0 the two largest eigenvalues"):
        ising.cylinder_cumulants([0.3, 3.0], 0.0, 12)


def test_onsagers_energy_keeps_its_digits_at_high_temperature():
    with mpmath.workdps(40):
        for beta in np.geomspace(1e-12, 2, 60):
            b = mpmath.mpf(float(beta))
            k2 = (2 * mpmath.sinh(2 * b) / mpmath.cosh(2 * b) ** 2) ** 2
            bracket = 2 / mpmath.pi * (2 * mpmath.tanh(2 * b) ** 2 - 1) * mpmath.ellipk(k2)
            exact = float(-mpmath.coth(2 * b) * (1 + bracket))
            assert ising.onsager_energy(beta) == pytest.approx(exact, rel=2e-11)


@settings(max_examples=40, deadline=None)
@given(st.integers(-900, 900), st.integers(-900, 900))
def test_the_autocorrelation_time_knows_no_units(exponent, other):
    series = np.random.default_rng(0).normal(size=(2, 400)).cumsum(1)
    scaled = series * np.exp2([[float(exponent)], [float(other)]])
    np.testing.assert_array_equal(autocorrelation_time(scaled), autocorrelation_time(series))


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-300, 1e300])
def test_a_constant_has_no_autocorrelation(value):
    assert autocorrelation_time(np.full(10, value)) == 0.5


@pytest.mark.parametrize("window", [0, 3.9, 11, np.nan, -6])
def test_the_window_of_the_autocorrelation_is_the_usual_one(window):
    with pytest.raises(ValueError, match="window is .*allowed is 4 to 10"):
        autocorrelation_time([0.0, 1.0, 0.0], window)


RATES = [1e-300, 1e-30, 1e-12, 0.3, 0.5 - 1e-9, 0.5, 0.5 + 1e-9, 1 - 1e-9, 1 - 1e-16, 1.0]


def exact_profile(alpha, beta, size):
    """Densities <W|C^(i-1) D C^(N-i)|V> / Z in rational arithmetic, C = D + E tridiagonal."""
    x, y = 1 / Fraction(alpha), 1 / Fraction(beta)
    corner = (Fraction(alpha) + Fraction(beta) - 1) * x * y

    def raised(v):  # D v
        first = y * v[0] + corner * v[1]
        return [first, *(a + b for a, b in zip(v[1:], [*v[2:], 0], strict=True))]

    def lowered(v):  # E v
        return [x * v[0], *(a + b for a, b in zip(v[1:], v[:-1], strict=True))]

    def both(v):
        return [a + b for a, b in zip(raised(v), lowered(v), strict=True)]

    right = [[Fraction(1)] + [Fraction(0)] * (size + 1)]
    for _ in range(size):
        right.append(both(right[-1]))
    densities = []
    for site in range(size):
        v = raised(right[size - 1 - site])
        for _ in range(site):
            v = both(v)
        densities.append(float(v[0] / right[size][0]))
    return densities


@pytest.mark.parametrize("alpha", RATES)
@pytest.mark.parametrize("beta", RATES)
def test_the_density_is_that_of_rational_arithmetic_at_extreme_rates(alpha, beta):
    for size in (1, 3, 9):
        exact = exact_profile(alpha, beta, size)
        np.testing.assert_allclose(tasep.density_profile(alpha, beta, size), exact, rtol=1e-11)
