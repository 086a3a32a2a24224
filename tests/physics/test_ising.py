"""The Ising sampler and its exact answers against enumeration and against each other."""

import itertools

import numba
import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import chi2

from benchmarks.ising import autocorrelation_time
from lib.geometry import metric
from lib.physics import ising, ising_exact

STEP = 1e-4


def every_state(size):
    codes = np.arange(2 ** (size * size))
    bits = (codes[:, None] >> np.arange(size * size)) & 1
    return (2 * bits - 1).astype(np.int8).reshape(-1, size, size)


def log_weights(states, beta, field):
    return ising.observables(states) @ np.array([beta, field])


def per_site_moments(beta, field, size):
    """Exact mean of sum s s' / N, of m and of m^2 N, by differences of log Z."""
    betas = beta + STEP * np.array([0, 0, 0, 1, -1])
    fields = field + STEP * np.array([0, 1, -1, 0, 0])
    centre, up, down, cold, hot = ising.log_partition(betas, fields, size) / size**2
    m = (up - down) / (2 * STEP)
    return (cold - hot) / (2 * STEP), m, (up - 2 * centre + down) / STEP**2 + m**2 * size**2


def z_score(values, exact):
    return (values.mean() - exact) / (values.std(ddof=1) / np.sqrt(len(values)))


# --- exact answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "beta", "field", "value"),
    [
        (4, 0.2, 0.0, 0.73571690),
        (4, 0.4, 0.1, 0.95328804),
        (4, 0.6, -0.2, 1.40638355),
        (10, 0.2, 0.1, 0.7484766148),
        (10, 0.4, 0.0, 0.8818770062),
        (10, 0.4, 0.1, 0.9483988970),
        (10, np.log1p(np.sqrt(2)) / 2, 0.0, 0.9361030051),
    ],
)
def test_log_partition_matches_published_values(size, beta, field, value):
    tolerance = 6e-9 if size == 4 else 6e-11
    assert ising.log_partition(beta, field, size) / size**2 == pytest.approx(value, abs=tolerance)


@pytest.mark.parametrize("size", [3, 4])
def test_log_partition_equals_the_sum_over_all_states(size):
    states = every_state(size)
    beta, field = np.array([0.0, 0.2, 0.44, 0.7, 2.0]), np.array([0.3, 0.0, -0.2, 0.05, -1.0])
    brute = [logsumexp(log_weights(states, b, h)) for b, h in zip(beta, field, strict=True)]
    np.testing.assert_allclose(ising.log_partition(beta, field, size), brute, rtol=1e-13)


def test_sufficient_statistics_reproduce_the_published_moments():
    statistics = ising.observables(every_state(4)).astype(float)
    weight = np.exp(statistics @ [0.4, 0.1] - 30)
    mean = np.average(statistics, axis=0, weights=weight)
    hessian = np.cov(statistics.T, aweights=weight, ddof=0)
    np.testing.assert_allclose(mean / 16, [1.5264975, 0.73079102], atol=6e-8)
    published = [[4.21970551, 1.90540668], [1.90540668, 3.35003714]]
    np.testing.assert_allclose(hessian / 16, published, atol=6e-8)


@pytest.mark.parametrize("size", [3, 4])
def test_the_cumulants_of_the_torus_are_those_of_its_enumerated_states(size):
    statistics = ising.observables(every_state(size)).astype(float)
    for beta, field in ((0.0, 0.0), (0.4, 0.1), (0.44, 0.0), (1.0, -0.2), (0.3, 3.0)):
        log = statistics @ [beta, field]
        weight = np.exp(log - log.max())
        value, mean, metric = ising.torus_cumulants(beta, field, size)
        np.testing.assert_allclose(size**2 * value, logsumexp(log), rtol=1e-13)
        np.testing.assert_allclose(
            size**2 * mean, np.average(statistics, axis=0, weights=weight), atol=1e-11
        )
        exact = np.cov(statistics.T, aweights=weight, ddof=0)
        np.testing.assert_allclose(size**2 * metric, exact, rtol=1e-9, atol=1e-11)


def test_shares_of_windows_hold_the_sufficient_statistics():
    lattices = ising.sample(np.full(20, 0.3), 0.1, 5, seed=1)
    shares = ising.windows(lattices)
    np.testing.assert_allclose(shares[:, :5].sum(1), 1)
    unlike = shares[:, 1:4].sum(1) + shares[:, 5]  # bonds of unlike spins, per site
    known = np.stack([2 - 2 * unlike, shares[:, :5] @ np.arange(5) / 2 - 1], 1)
    np.testing.assert_allclose(25 * known, ising.observables(lattices), atol=1e-12)


@pytest.mark.parametrize("size", range(3, 9))
def test_kaufman_equals_the_transfer_matrix_on_both_sides_of_the_transition(size):
    beta = np.array([0.0, 1e-3, 0.2, 0.43, ising.CRITICAL_BETA, 0.46, 0.8, 3.0, 10.0])
    exact = ising.log_partition(beta, 0.0, size)
    np.testing.assert_allclose(ising.kaufman_log_partition(beta, size), exact, rtol=2e-13)


@pytest.mark.parametrize("size", [100, 301])
def test_kaufman_tends_to_onsager_with_one_phase_above_and_two_below(size):
    beta = np.array([0.0, 0.1, 0.3, 0.36, 0.54, 1.0, 30.0, 500.0])
    phases = np.where(beta > ising.CRITICAL_BETA, np.log(2.0), 0.0)
    excess = ising.kaufman_log_partition(beta, size) + size**2 * ising.onsager_free_energy(beta)
    rounding = 2e-15 * size**2 * (beta + 1)
    assert np.all(np.abs(excess - phases) < 1e-5 + rounding)


def test_onsager_matches_published_values():
    beta = np.array([0.2, 0.4, 0.6])
    values = [0.734530812, 0.879363821, 1.210132388]
    np.testing.assert_allclose(-ising.onsager_free_energy(beta), values, atol=6e-10)
    catalan = 0.915965594177219
    critical = -np.log(2) / 2 - 2 * catalan / np.pi
    assert ising.onsager_free_energy(ising.CRITICAL_BETA) == pytest.approx(critical, abs=1e-13)
    assert ising.onsager_energy(ising.CRITICAL_BETA) == pytest.approx(-np.sqrt(2), abs=1e-12)
    assert pytest.approx(2.269185, abs=5e-7) == 1 / ising.CRITICAL_BETA


def test_onsager_energy_is_the_derivative_of_the_free_energy():
    beta = np.array([1e-3, 1.9e-3, 2.1e-3, 0.05, 0.3, 0.42, 0.46, 0.7, 1.5])
    up, down = ising.onsager_free_energy(beta + 1e-5), ising.onsager_free_energy(beta - 1e-5)
    np.testing.assert_allclose(ising.onsager_energy(beta), (up - down) / 2e-5, atol=1e-8)
    np.testing.assert_allclose(ising.onsager_energy([0.0, 20.0, 500.0]), [0, -2, -2], atol=1e-14)


def test_onsager_magnetization_follows_the_low_temperature_series():
    u = np.exp(-4 * np.array([1.0, 1.5]))
    series = 1 - 2 * u**2 - 8 * u**3 - 34 * u**4 - 152 * u**5 - 714 * u**6
    np.testing.assert_allclose(ising.onsager_magnetization([1.0, 1.5]), series, rtol=1e-8)
    assert not ising.onsager_magnetization([0.0, 0.2, 0.44]).any()
    assert ising.onsager_magnetization(0.4408) > 0.4


def test_free_energies_do_not_change_when_the_field_is_reversed():
    beta, field = np.array([0.1, 0.44, 0.9]), np.array([0.3, 0.01, 1.2])
    for exact in (ising.log_partition, ising.cylinder_free_energy):
        np.testing.assert_allclose(exact(beta, field, 6), exact(beta, -field, 6), rtol=1e-14)


@pytest.mark.parametrize("width", [3, 4, 5, 7])
def test_cylinder_equals_the_largest_eigenvalue_of_the_full_transfer_matrix(width):
    spins = 2 * ((np.arange(2**width)[:, None] >> np.arange(width)) & 1) - 1
    for beta, field in [(0.3, 0.2), (0.44, 0.0), (1.5, 1e-6), (0.8, -0.3)]:
        ring = beta * (spins * np.roll(spins, 1, axis=1)).sum(1) + field * spins.sum(1)
        matrix = np.exp(beta * spins @ spins.T + (ring[:, None] + ring) / 2)
        exact = -np.log(np.linalg.eigvalsh(matrix)[-1]) / width
        assert ising.cylinder_free_energy(beta, field, width) == pytest.approx(exact, abs=1e-13)


def test_cylinders_converge_to_the_infinite_lattice():
    beta = np.array([0.2, 0.3, 0.7, 1.0])
    errors = [
        np.abs(ising.cylinder_free_energy(beta, 0.0, width) - ising.onsager_free_energy(beta))
        for width in (4, 8, 12)
    ]
    assert np.all(errors[1] < errors[0] / 4) and np.all(errors[2] < errors[1] / 4)
    assert np.all(errors[2] < 1e-4)


def test_cylinder_is_accurate_where_two_eigenvalues_almost_meet():
    beta, field = np.array([1.0, 3.0, 10.0]), np.array([1e-12, 1e-9, 1e-6])
    with_field = ising.cylinder_free_energy(beta, field, 12)
    m = ising.onsager_magnetization(beta)
    np.testing.assert_allclose(with_field, ising.onsager_free_energy(beta) - m * field, atol=1e-11)


def test_infinite_and_zero_temperature_are_exact():
    field = np.array([0.0, 0.4, -2.0])
    free_spin = np.log(2 * np.cosh(field))
    np.testing.assert_allclose(ising.log_partition(0.0, field, 5), 25 * free_spin, rtol=1e-14)
    np.testing.assert_allclose(ising.cylinder_free_energy(0.0, field, 9), -free_spin, rtol=1e-14)
    ground = 20 * 25 + 25 * np.abs(field) + np.log1p(np.exp(-50 * np.abs(field)))
    np.testing.assert_allclose(ising.log_partition(10.0, field, 5), ground, rtol=1e-14)
    assert ising.kaufman_log_partition(0.0, 50) == pytest.approx(2500 * np.log(2), rel=1e-14)
    assert ising.onsager_free_energy(0.0) == pytest.approx(-np.log(2), abs=1e-14)


def test_arrays_and_numbers_give_the_same_answers():
    beta, field = np.array([[0.2], [0.5]]), np.array([0.0, 0.1, -0.3])
    for exact in (ising.log_partition, ising.cylinder_free_energy):
        table = exact(beta, field, 5)
        assert table.shape == (2, 3)
        assert table[1, 2] == pytest.approx(exact(0.5, -0.3, 5), rel=1e-14)


# --- samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beta", "field"),
    [
        (0.2, 0.0),
        (0.3, -0.2),
        (ising.CRITICAL_BETA, 0.0),
        (ising.CRITICAL_BETA, 0.01),
        (0.48, -0.02),
        (0.6, 0.0),
        (0.9, 0.05),
    ],
)
def test_samples_have_the_exact_energy_magnetisation_and_fluctuations(beta, field):
    size = 8
    samples = ising.sample(np.full(4000, beta), field, size, seed=11)
    bonds, total = ising.observables(samples).T / size**2
    exact_bonds, exact_m, exact_m2 = per_site_moments(beta, field, size)
    assert abs(z_score(bonds, exact_bonds)) < 4
    assert abs(z_score(total, exact_m)) < 4
    assert abs(z_score(total**2 * size**2, exact_m2)) < 4


def chi_square_tail(samples, beta, field):
    """Probability of a worse fit of 3 x 3 samples to the exact distribution of the 512 states."""
    states = every_state(3)
    weights = log_weights(states, beta, field)
    expected = len(samples) * np.exp(weights - logsumexp(weights))
    codes = ((samples.reshape(-1, 9) + 1) // 2).astype(int) @ (1 << np.arange(9))
    counts = np.bincount(codes, minlength=512)
    common = expected > 10
    if not common.all():
        expected = np.append(expected[common], expected[~common].sum())
        counts = np.append(counts[common], counts[~common].sum())
    return chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1)


@pytest.mark.parametrize(("beta", "field"), [(0.25, 0.1), (0.3, -0.2), (0.2, 0.0)])
def test_samples_follow_the_full_distribution_of_a_small_lattice(beta, field):
    samples = ising.sample(np.full(40_000, beta), field, 3, seed=5)
    assert chi_square_tail(samples, beta, field) > 1e-4
    assert chi_square_tail(samples, beta * 1.1, field + 0.02) < 1e-6


def test_metropolis_follows_the_full_distribution_of_a_small_lattice():
    samples = ising.metropolis(np.full(40_000, 0.25), 0.1, 3, 60, seed=5)
    assert chi_square_tail(samples, 0.25, 0.1) > 1e-4


@pytest.mark.parametrize(("beta", "field"), [(0.3, 0.0), (0.4407, 0.0), (0.55, 0.02)])
def test_hot_and_cold_starts_agree(beta, field):
    beta = np.full(1500, beta)
    hot = ising.observables(ising.sample(beta, field, 24, seed=1))
    cold = ising.observables(ising.sample(beta, field, 24, seed=2, start="cold"))
    for a, b in ((hot[:, 0], cold[:, 0]), (np.abs(hot[:, 1]), np.abs(cold[:, 1]))):
        assert abs(a.mean() - b.mean()) < 4 * np.sqrt((a.var() + b.var()) / len(a))


def test_short_metropolis_runs_remember_their_start():
    beta = np.full(200, 0.55)
    hot = ising.observables(ising.metropolis(beta, 0.0, 24, 20, seed=1))
    cold = ising.observables(ising.metropolis(beta, 0.0, 24, 20, seed=2, start="cold"))
    assert cold[:, 0].mean() - hot[:, 0].mean() > 10 * hot[:, 0].std() / np.sqrt(200)


def test_time_averages_agree_with_exact_values_within_autocorrelation_errors():
    beta, field, size = ising.CRITICAL_BETA, 0.005, 10
    series = ising.trajectory(np.full(20, beta), field, size, 1500, start="cold", seed=3)
    bonds, m, _ = per_site_moments(beta, field, size)
    for values, exact in zip(series, (-bonds, m), strict=True):
        kept = values[:, 100:]
        tau = autocorrelation_time(kept)
        error = np.sqrt((2 * tau * kept.var(axis=1)).mean() / kept.size)
        assert np.all(tau > 0.5)
        assert abs(kept.mean() - exact) < 4 * error


def test_a_trajectory_ends_in_the_configuration_that_is_drawn():
    beta, field = np.array([0.2, 0.5, 0.44]), np.array([0.1, 0.0, -0.05])
    for move, draw in (("cluster", ising.sample), ("metropolis", ising.metropolis)):
        energy, m = ising.trajectory(beta, field, 12, 7, seed=4, move=move)
        last = ising.observables(draw(beta, field, 12, sweeps=7, seed=4)) / 144
        assert energy.shape == m.shape == (3, 7)
        np.testing.assert_allclose(np.stack([-energy[:, -1], m[:, -1]], axis=1), last, rtol=1e-14)


def test_a_draw_depends_on_neither_the_batch_nor_the_threads():
    beta, field = np.linspace(0, 1, 9), np.linspace(-0.3, 0.3, 9)
    whole = ising.sample(beta, field, 10, seed=6)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        pieces = [ising.sample(beta[i], field[i], 10, seed=6, first=i)[0] for i in range(9)]
    finally:
        numba.set_num_threads(threads)
    np.testing.assert_array_equal(whole, pieces)


def test_seeds_repeat_and_differ():
    beta = np.full(4, 0.4)
    one, again, other = (ising.sample(beta, 0.1, 16, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert one.dtype == np.int8 and one.shape == (4, 16, 16)
    agreement = (one == other).mean(axis=(1, 2))
    assert np.all(agreement < 1) and not np.array_equal(one[0], one[1])


def test_the_callers_arrays_are_left_alone():
    beta, field = np.array([0.3, 0.5]), np.array([0.1, -0.1])
    ising.sample(beta, field, 8)
    np.testing.assert_array_equal(np.stack([beta, field]), [[0.3, 0.5], [0.1, -0.1]])


@pytest.mark.parametrize("size", [3, 8, 13, 40])
@pytest.mark.parametrize("start", ["hot", "cold"])
def test_tensor_and_compiled_code_draw_the_same_configurations(size, start):
    beta = np.concatenate([np.linspace(0, 1.2, 30), [10.0, 10.0]])
    field = np.tile([0.0, 0.1, -0.3, 0.0], 8)
    options = {"seed": 9, "sweeps": 6, "start": start}
    compiled = ising.sample(beta, field, size, **options)
    tensors = ising.sample(beta, field, size, device="torch", **options)
    np.testing.assert_array_equal(compiled, tensors)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_and_cpu_draw_the_same_configurations():
    beta, field = np.linspace(0, 1, 50), np.tile([0.0, -0.1], 25)
    on_gpu = ising.sample(beta, field, 32, seed=9, device="cuda")
    np.testing.assert_array_equal(ising.sample(beta, field, 32, seed=9), on_gpu)


@pytest.mark.parametrize("field", [0.0, 0.35, -1.1])
def test_spins_are_independent_at_infinite_temperature(field):
    samples = ising.sample(np.zeros(2000), field, 10, seed=7)
    bonds, total = ising.observables(samples).T / 100
    assert abs(z_score(total, np.tanh(field))) < 4
    assert abs(z_score(bonds, 2 * np.tanh(field) ** 2)) < 4
    variance = (1 - np.tanh(field) ** 2) / 100
    assert total.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / 2000))


@pytest.mark.parametrize("field", [0.0, 0.002, -0.002])
def test_ground_states_appear_with_their_weights_at_low_temperature(field):
    total = ising.sample(np.full(2000, 10.0), field, 16, seed=8).sum(axis=(1, 2), dtype=int)
    assert np.all(np.abs(total) == 256)
    up = 1 / (1 + np.exp(-2 * field * 256))
    assert abs((total > 0).mean() - up) < 4 * np.sqrt(up * (1 - up) / 2000)


def test_autocorrelation_time_of_an_autoregressive_series():
    rng = np.random.default_rng(0)
    series = np.zeros((40, 20_000))
    for step in range(1, series.shape[1]):
        series[:, step] = 0.8 * series[:, step - 1] + rng.normal(size=40)
    tau = autocorrelation_time(series)
    assert tau.mean() == pytest.approx(0.5 * 1.8 / 0.2, rel=0.05)
    assert autocorrelation_time(rng.normal(size=50_000)) == pytest.approx(0.5, abs=0.05)
    assert autocorrelation_time(np.ones(10)) == 0.5


def test_natural_parameters_and_their_derivatives():
    t = torch.tensor([[2.0, 0.5], [4.0, -1.0]], dtype=torch.float64)
    expected = torch.tensor([[0.5, 0.25], [0.25, -0.25]], dtype=torch.float64)
    torch.testing.assert_close(ising.natural(t), expected)
    jacobian = torch.vmap(torch.func.jacrev(ising.natural))(t)
    exact = torch.tensor([[-0.25, 0.0], [-0.125, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(jacobian[0], exact)


# --- bad input -----------------------------------------------------------------------------------

BAD_INPUT = [
    (lambda: ising.sample(-0.1, 0.0, 8), "beta holds -0.1"),
    (lambda: ising.sample([0.1, np.nan], 0.0, 8), "beta holds nan"),
    (lambda: ising.sample(np.inf, 0.0, 8), "beta holds inf"),
    (lambda: ising.sample(0.1, np.inf, 8), "field holds inf"),
    (lambda: ising.sample(0.1, np.nan, 8), "field holds nan"),
    (lambda: ising.sample(0.1, 0.0, 2), "size is 2"),
    (lambda: ising.sample(0.1, 0.0, 8.5), "size is 8.5"),
    (lambda: ising.sample([0.1, 0.2], [0.0, 0.1, 0.2], 8), r"shapes \(2,\) and \(3,\)"),
    (lambda: ising.sample(np.full((2, 2), 0.1), 0.0, 8), r"shape \(2, 2\)"),
    (lambda: ising.sample(0.1, 0.0, 8, sweeps=0), "sweeps is 0"),
    (lambda: ising.sample(0.1, 0.0, 8, start="warm"), "start is 'warm'.*cold, hot"),
    (lambda: ising.sample(0.1, 0.0, 8, seed=-1), "seed is -1"),
    (lambda: ising.sample(0.1, 0.0, 8, device="abacus"), "device is 'abacus'.*'cpu'"),
    (lambda: ising.sample(0.1, 0.0, 2, device="torch"), "size is 2"),
    (lambda: ising.sample(0.1, 0.0, 8, device="torch", sweeps=0), "sweeps is 0"),
    (lambda: ising.trajectory(0.1, 0.0, 8, 0), "sweeps is 0"),
    (lambda: ising.trajectory(0.1, 0.0, 8, 5, move="wolff"), "move is 'wolff'"),
    (lambda: ising.metropolis(-1, 0.0, 8, 5), "beta holds -1"),
    (lambda: ising.log_partition(-1, 0.0, 8), "beta holds -1"),
    (lambda: ising.log_partition(0.1, 0.0, 13), "size is 13.*3 to 12"),
    (lambda: ising.log_partition(0.1, 0.0, 2), "size is 2.*3 to 12"),
    (lambda: ising.cylinder_free_energy([0.1, 0.2], [0.1, 0.2, 0.3], 8), "equal lengths"),
    (lambda: ising.cylinder_free_energy(0.1, 0.0, 13), "width is 13.*3 to 12"),
    (lambda: ising.kaufman_log_partition(0.1, 2), "size is 2"),
    (lambda: ising.onsager_free_energy(-0.2), "beta holds -0.2"),
    (lambda: ising.observables(np.ones((4, 4))), r"samples has shape \(4, 4\)"),
    (lambda: autocorrelation_time([1.0]), "series has shape"),
]


@pytest.mark.parametrize(("call", "message"), BAD_INPUT)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_zero_field_curvature_is_that_of_the_enumerated_partition_function():
    bits = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=9)), dtype=torch.float64)
    lattices = bits.reshape(-1, 3, 3)
    bonds = sum((lattices * lattices.roll(1, axis)).sum((1, 2)) for axis in (1, 2))
    statistic = torch.stack([bonds, lattices.sum((1, 2))], 1)
    per_site = lambda theta: torch.logsumexp(theta @ statistic.T, 1) / 9  # noqa: E731
    beta = np.array([0.1, 0.25, 0.4])
    theta = torch.tensor(np.stack([beta, 0 * beta], 1))
    exact = metric.hessian_scalar_curvature(per_site, theta).numpy()
    np.testing.assert_allclose(ising.zero_field_curvature(beta, 3), exact, rtol=0.02)


def test_cumulants_of_the_cylinder_are_the_derivatives_of_its_free_energy():
    beta, field, step = np.array([0.3, 0.5, 0.7]), np.array([0.1, -0.05, 0.4]), 1e-3

    def value(i, j):
        return -ising.cylinder_free_energy(beta + i * step, field + j * step, 6)

    found, mean, metric = ising.cylinder_cumulants(beta, field, 6)
    np.testing.assert_allclose(found, value(0, 0), rtol=1e-13)
    slopes = [value(1, 0) - value(-1, 0), value(0, 1) - value(0, -1)]
    np.testing.assert_allclose(mean, np.stack(slopes, -1) / (2 * step), atol=2e-5)
    mixed = (value(1, 1) - value(1, -1) - value(-1, 1) + value(-1, -1)) / 4
    bends = [value(1, 0) + value(-1, 0), value(0, 1) + value(0, -1)]
    second = [(bend - 2 * value(0, 0)) for bend in bends]
    expected = np.stack([second[0], mixed, mixed, second[1]], -1).reshape(3, 2, 2) / step**2
    np.testing.assert_allclose(metric, expected, rtol=1e-3, atol=1e-4)


def test_the_levels_of_a_small_torus_give_its_partition_function():
    for size in (3, 4):
        orders, count = ising_exact.levels(size)
        assert count.sum() == 2**size**2
        log_z = logsumexp(orders @ [0.4, 0.1] + np.log(count))
        assert log_z == pytest.approx(ising.log_partition(0.4, 0.1, size), rel=1e-13)
    with pytest.raises(ValueError, match="size is 5"):
        ising_exact.levels(5)


def test_sampling_leaves_the_threads_of_torch_alone():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ising.sample(np.full(200, 0.4), 0.0, 8)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)
