"""Laws of the learned log Z, against exponential families that are solved exactly."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from lib.geometry.networks import ConvexPotential, LocalStatistic, window_counts
from lib.geometry.potential import align_affine, fit_direct

F64 = torch.float64


def uniform(n, box, seed=0):
    low, high = torch.as_tensor(box, dtype=F64)
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, len(low), dtype=F64, generator=generator)


def midpoints(box, grid):
    low, high = torch.as_tensor(box, dtype=F64)
    axis = (torch.arange(grid, dtype=F64) + 0.5) / grid
    return low + (high - low) * torch.cartesian_prod(*[axis] * len(low)).reshape(-1, len(low))


def rms(x):
    return x.square().mean().sqrt().item()


def hessian(potential, theta):
    return torch.func.vmap(torch.func.hessian(lambda t: potential(t[None])[0]))(theta)


def gradient(potential, theta):
    return torch.func.grad(lambda t: potential(t).sum())(theta)


def aligned_error(potential, exact, theta):
    """Root mean square error of a potential after the affine alignment."""
    with torch.no_grad():
        values = potential(theta)
    return rms(align_affine(values, exact(theta), theta)(values, theta) - exact(theta))


def held_out_loss(f, t, potential, box, natural=lambda t: t, grid=300):
    """Mean −log p(t|x) against the uniform density, the integral by the midpoint rule."""
    theta, nodes = natural(t), natural(midpoints(box, grid))
    with torch.no_grad():
        own = (f * theta).sum(1) - potential(theta)
        evidence = (f @ nodes.T - potential(nodes)).logsumexp(1) - math.log(len(nodes))
    return (evidence - own).mean().item()


# The convex potential


def rough_potential(d=2, seed=0, scale=7.0):
    """A convex network far from its start, so that no law leans on the initial weights."""
    potential = ConvexPotential([-1.0, 2.0, 0.0][:d], [3.0, 2.5, 9.0][:d], scale, 12, seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in potential.parameters():
            weights += 1.5 * torch.randn(weights.shape, dtype=F64, generator=generator)
        potential.log_sharpness.clamp_(0, math.log(potential.SHARPEST))
    return potential


WIDE = [[-9.0, 0.0, -20.0], [11.0, 4.5, 30.0]]  # five times the box of rough_potential


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_hessian_is_positive_semidefinite_inside_and_outside_the_box(d):
    for seed in range(4):
        box = [row[:d] for row in WIDE]
        h = hessian(rough_potential(d, seed), uniform(200, box, seed))
        eigenvalues = torch.linalg.eigvalsh(h)
        assert eigenvalues.min() >= -1e-12 * eigenvalues.max()
        assert (eigenvalues.amax(1) > 1e-3).double().mean() > 0.05


def test_the_potential_lies_below_every_chord():
    potential = rough_potential()
    a, b = (uniform(2000, [row[:2] for row in WIDE], seed) for seed in (1, 2))
    weight = uniform(2000, [[0.0], [1.0]], 3)[:, 0]
    inside = potential(weight[:, None] * a + (1 - weight[:, None]) * b)
    chord = weight * potential(a) + (1 - weight) * potential(b)
    assert (inside - chord).max() < 1e-7 and (inside - chord).min() < -1


def test_the_curvature_along_a_line_adds_up_to_the_change_of_slope():
    """A kink would change the slope where no Hessian sees it."""
    potential, low, high = rough_potential(), *torch.tensor([[-1.0, 2.0], [3.0, 2.5]], dtype=F64)
    line = low + (high - low) * torch.linspace(0, 1, 20001, dtype=F64)[:, None]
    curvature = hessian(potential, line).detach() @ (high - low)
    change = gradient(potential, high[None]) - gradient(potential, low[None])
    added = torch.trapezoid(curvature, dx=1 / 20000, dim=0)
    torch.testing.assert_close(added, change[0].detach(), rtol=1e-4, atol=0)


def test_a_plain_relu_potential_has_no_hessian():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    trap = nn.Sequential(layers, nn.Linear(64, 1), nn.Flatten(0)).double()
    t = uniform(100, [[-1.0, 2.0], [3.0, 2.5]])
    assert hessian(trap, t).abs().max() == 0 and gradient(trap, t).std(0).min() > 0
    assert hessian(ConvexPotential([-1, 2], [3, 2.5], 1).double(), t).diagonal(0, 1, 2).min() > 0


def test_the_box_only_fixes_the_units_and_the_scale_only_the_size():
    t = uniform(50, [[-1.0, -1.0], [1.0, 1.0]])
    unit = ConvexPotential([-1, -1], [1, 1], 1).double()
    moved = ConvexPotential([4, -8], [12, -7.5], 100).double()
    theta = torch.tensor([8.0, -7.75], dtype=F64) + t * torch.tensor([4.0, 0.25], dtype=F64)
    torch.testing.assert_close(moved(theta), 100 * unit(t))


def test_the_config_and_the_weights_rebuild_the_same_potential():
    potential = rough_potential()
    rebuilt = ConvexPotential(**potential.config).double()
    t = uniform(50, [[-1.0, 2.0], [3.0, 2.5]])
    assert not torch.equal(rebuilt(t), potential(t))
    rebuilt.load_state_dict(potential.state_dict())
    assert torch.equal(rebuilt(t), potential(t))


def test_seeds_give_different_potentials_and_one_seed_the_same():
    a, b, c = (ConvexPotential([0, 0], [1, 1], 1, seed=seed) for seed in (0, 0, 1))
    t = uniform(20, [[0.0, 0.0], [1.0, 1.0]])
    assert torch.equal(a(t), b(t)) and not torch.allclose(a(t), c(t), rtol=1e-3)


# Windows


def random_states(*shape, seed=0, low=-1):
    generator = torch.Generator().manual_seed(seed)
    up = (torch.rand(shape, generator=generator) < 0.3).to(torch.int8)
    return up if low == 0 else 2 * up - 1


def naive_counts(sample):
    """Frequencies by plain loops; bit 3i + j is site (i, j) of a window, bit i that of a chain."""
    up, sites = (sample > 0).tolist(), range(len(sample))
    if sample.ndim == 2:
        n, offsets = len(up), list(itertools.product(range(3), repeat=2))
        windows = [[up[(r + i) % n][(c + j) % n] for i, j in offsets] for r in sites for c in sites]
    else:
        windows = [up[r : r + 3] for r in sites[:-2]]
    counts = [0.0] * 2 ** len(windows[0])
    for window in windows:
        counts[sum(state << k for k, state in enumerate(window))] += 1 / len(windows)
    return torch.tensor(counts)


@pytest.mark.parametrize("shape", [(5, 6, 6), (5, 3, 3), (5, 17), (5, 3)])
@pytest.mark.parametrize("low", [-1, 0])
def test_window_counts_are_the_naive_counts(shape, low):
    samples = random_states(*shape, low=low)
    counts = window_counts(samples)
    torch.testing.assert_close(counts, torch.stack([naive_counts(x) for x in samples]))
    torch.testing.assert_close(counts.sum(1), torch.ones(5))


def test_lattice_windows_do_not_move_with_the_lattice():
    samples = random_states(20, 7, 7)
    shifted = samples.roll((2, -3), (1, 2))
    assert torch.equal(window_counts(shifted), window_counts(samples))
    assert not torch.equal(window_counts(samples.mT), window_counts(samples))


def test_an_open_chain_is_read_from_left_to_right_and_does_not_wrap():
    left = torch.zeros(1, 9, dtype=torch.uint8)
    left[0, 0] = 1
    expected = torch.zeros(8)
    expected[0b001], expected[0] = 1 / 7, 6 / 7  # bit 0 is the leftmost site of a window
    torch.testing.assert_close(window_counts(left)[0], expected)
    assert window_counts(left.flip(1))[0, 0b100] > 0 and window_counts(left.flip(1))[0, 0b001] == 0


@pytest.mark.parametrize("shape", [(9, 6, 6), (9, 17)])
def test_a_global_flip_complements_the_windows(shape):
    samples = random_states(*shape)
    assert torch.equal(window_counts(-samples), window_counts(samples).flip(1))


def test_window_counts_do_not_depend_on_the_batch():
    samples = random_states(1500, 4, 4)
    parts = torch.cat([window_counts(part) for part in samples.split(7)])
    assert torch.equal(window_counts(samples), parts)


@pytest.mark.parametrize("shape", [(4, 5, 5), (4, 12)])
def test_the_statistic_is_the_mean_of_its_function_over_the_windows(shape):
    samples, statistic = random_states(*shape), LocalStatistic(len(shape) - 1, 2, seed=3)
    if len(shape) == 3:
        padded = torch.cat([samples, samples[:, :2]], 1)
        windows = torch.cat([padded, padded[:, :, :2]], 2).unfold(1, 3, 1).unfold(2, 3, 1)
    else:
        windows = samples.unfold(1, 3, 1)
    bits = 3 ** (len(shape) - 1)
    with torch.no_grad():
        direct = statistic.u(windows.reshape(4, -1, bits).float()).mean(1)
        torch.testing.assert_close(statistic(window_counts(samples)), direct)


# Alignment

T = uniform(200, [[-1.0, 2.0], [3.0, 2.5]], 5)
SLOPE = torch.tensor([2.0, -7.0], dtype=F64)


def truth(t):
    return t.exp().sum(1).log() + t[:, 0].square()


@pytest.mark.parametrize("unit, scale", [(1.0, False), (1.0, True), (-0.2, True), (30.0, True)])
def test_truth_plus_any_affine_function_is_aligned_exactly(unit, scale):
    estimate = (truth(T) - T @ SLOPE - 11.0) / unit
    alignment = align_affine(estimate, truth(T), T, scale=scale)
    assert rms(alignment(estimate, T) - truth(T)) < 1e-10
    found = torch.cat([alignment.slope, alignment.offset[None], alignment.scale[None]])
    torch.testing.assert_close(found, torch.tensor([2.0, -7.0, 11.0, unit], dtype=F64))


def test_a_wrong_unit_is_forgiven_only_on_request():
    wrong = 2 * truth(T)
    kept, freed = (align_affine(wrong, truth(T), T, scale=scale) for scale in (False, True))
    assert kept.scale == 1 and rms(kept(wrong, T) - truth(T)) > 0.1
    assert rms(freed(wrong, T) - truth(T)) < 1e-10


@pytest.mark.parametrize("scale", [False, True])
def test_the_residual_of_the_alignment_is_orthogonal_to_what_it_may_change(scale):
    estimate = T.cos().sum(1)
    alignment = align_affine(estimate, truth(T), T, scale=scale)
    columns = [T[:, 0], T[:, 1], torch.ones_like(estimate), *[estimate] * scale]
    residual = alignment(estimate, T) - truth(T)
    assert rms(residual) > 0.1
    assert torch.stack([(column * residual).mean() for column in columns]).abs().max() < 1e-10


def test_one_alignment_serves_values_gradients_and_hessians():
    def estimate(t):
        return -0.5 * truth(t) + t @ SLOPE

    alignment = align_affine(estimate(T), truth(T) + 3, T, scale=True)

    def aligned(t):
        return alignment(estimate(t), t)

    torch.testing.assert_close(alignment.gradient(gradient(estimate, T)), gradient(aligned, T))
    torch.testing.assert_close(alignment.hessian(hessian(estimate, T)), hessian(aligned, T))
    torch.testing.assert_close(alignment.gradient(gradient(estimate, T)), gradient(truth, T))
    torch.testing.assert_close(alignment.hessian(hessian(estimate, T)), hessian(truth, T))


def test_arrays_are_accepted_and_left_alone():
    arrays = [x.numpy().copy() for x in (truth(T) + 1, truth(T), T)]
    copies = [x.copy() for x in arrays]
    alignment = align_affine(*arrays)
    assert abs(alignment.offset + 1) < 1e-10
    assert all(np.array_equal(x, y) for x, y in zip(arrays, copies, strict=True))


def current(t):
    """The current of TASEP in the infinite chain, m (1 − m) with m = min(α, β, 1/2)."""
    m = t.amin(1).clamp(max=0.5)
    return m * (1 - m)


def entropy(t):
    """The potential whose Hessian is the Fisher metric of TASEP per site."""
    m = t.amin(1).clamp(max=0.5)
    return torch.xlogy(m, m) + torch.xlogy(1 - m, 1 - m)


@pytest.mark.parametrize(
    "estimate, scale, value, slope, near",
    [
        pytest.param(lambda t: 0 * t[:, 0], False, 0.0519, 0.3265, 1e-3, id="affine"),
        pytest.param(lambda t: t.square().sum(1), True, 0.0294, 0.2077, 1e-3, id="isotropic"),
        # its slope diverges at the edge, so the grid nears the limit slowly
        pytest.param(entropy, True, 0.0064, 0.159, 6e-3, id="Fisher-consistent"),
    ],
)
def test_predictors_without_information_score_their_known_values_on_tasep(
    estimate, scale, value, slope, near
):
    t = midpoints([[0.0, 0.0], [1.0, 1.0]], 400)
    alignment = align_affine(estimate(t), current(t), t, scale=scale)
    assert abs(rms(alignment(estimate(t), t) - current(t)) - value) < 1e-4
    error = alignment.gradient(gradient(estimate, t)) - gradient(current, t)
    assert abs(rms(error[:, 0]) - slope) < near and abs(rms(error[:, 1]) - slope) < near


def test_a_zero_gradient_scores_its_exact_value_on_tasep():
    t = midpoints([[0.0, 0.0], [1.0, 1.0]], 400)
    assert abs(rms(gradient(current, t)[:, 0]) - math.sqrt(7 / 48)) < 1e-3


@pytest.mark.parametrize(
    "estimate, reference, t, message",
    [
        (truth(T)[1:], truth(T), T, r"shapes \(\(199,\), \(200,\), \(200, 2\)\)"),
        (truth(T), truth(T), T[1:], r"shapes \(\(200,\), \(200,\), \(199, 2\)\)"),
        (truth(T) / 0, truth(T), T, "estimate has 200 entries that are not finite"),
        (truth(T), truth(T) * math.nan, T, "reference has 200 entries"),
        (truth(T), truth(T), T * math.inf, "t has 400 entries"),
    ],
)
def test_alignment_refuses_bad_input(estimate, reference, t, message):
    with pytest.raises(ValueError, match=message):
        align_affine(estimate, reference, t)


# The direct estimator on families that are solved exactly

SIZE, FIELDS = 6, [[-1.0], [1.5]]


def spins(h, *shape, seed=1):
    """Independent spins in the natural field h, weight exp(h Σ s)."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(len(h), *shape, dtype=F64, generator=generator)
    up = draw < torch.sigmoid(2 * h.reshape(-1, *[1] * len(shape)))
    return 2 * up.to(torch.int8) - 1


def log_cosh(h):
    """log Z per independent spin."""
    return torch.log(2 * torch.cosh(h[:, 0]))


def log_partition_of_spins(h):
    return SIZE**2 * log_cosh(h)


def zero(theta):
    return 0 * theta[:, 0]


def unit_of(potential, exact, theta):
    """The factor between exact and learned up to an affine function; one if both are in nats."""
    estimate = potential(theta).detach()
    return align_affine(estimate, exact(theta), theta, scale=True).scale.item()


@pytest.fixture(scope="module")
def spin_fit():
    t = uniform(4000, FIELDS)
    return fit_direct(spins(t, SIZE, SIZE), t, box=FIELDS, steps=500, batch=128)


def test_independent_spins_give_log_cosh(spin_fit):
    h = midpoints(FIELDS, 100)
    error = aligned_error(spin_fit.potential, log_partition_of_spins, h)
    assert error / SIZE**2 < 0.012  # an affine function scores 0.19
    assert error < 0.1 * aligned_error(zero, log_partition_of_spins, h)
    assert abs(unit_of(spin_fit.potential, log_partition_of_spins, h) - 1) < 0.1


def test_the_learned_statistic_of_independent_spins_is_their_sum(spin_fit):
    x = spins(uniform(2000, FIELDS, 7), SIZE, SIZE, seed=8)
    total, f = x.sum((1, 2)).double(), spin_fit.statistic(x)
    assert f.shape == (2000, 1) and f.dtype == F64
    covariance = torch.cov(torch.stack([total, f[:, 0]]))
    assert abs(covariance[0, 1] / covariance[0, 0] - 1) < 0.1
    assert covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt() > 0.99
    torch.testing.assert_close(spin_fit.statistic(x.numpy()), f)


def mean_curvatures(potential, bands=5):
    """Mean second derivative over equal bands of the inner eight tenths of the fields."""
    h = hessian(potential, midpoints([[-0.75], [1.25]], 100 * bands))
    return h.reshape(bands, -1).mean(1)


def test_the_hessian_of_the_learned_potential_is_the_variance_of_the_spins(spin_fit):
    found, exact = (mean_curvatures(p) for p in (spin_fit.potential, log_partition_of_spins))
    assert ((found - exact).abs() < 0.2 * SIZE**2).all()  # exact: 0.39 to 0.97 per site
    assert hessian(spin_fit.potential, uniform(500, [[-3.0], [3.0]])).min() >= 0


def test_the_learned_posterior_is_as_likely_as_the_exact_one(spin_fit):
    h = uniform(2000, FIELDS, 7)
    x = spins(h, SIZE, SIZE, seed=8)
    total = x.sum((1, 2)).double()[:, None]
    exact = held_out_loss(total, h, log_partition_of_spins, FIELDS)
    learned = held_out_loss(spin_fit.statistic(x), h, spin_fit.potential, FIELDS)
    assert -0.003 < learned - exact < 0.01 < held_out_loss(0 * total, h, zero, FIELDS) - exact
    assert abs(spin_fit.history["held_out"].min() - exact) < 0.15  # 400 rows


def test_a_fit_is_in_float64_and_its_history_starts_with_the_warm_start(spin_fit):
    assert all(weights.dtype == F64 for weights in spin_fit.potential.state_dict().values())
    history = spin_fit.history
    assert history["step"].tolist() == list(range(0, 501, 50))
    assert history["held_out"].shape == (11,) and np.isfinite(history["held_out"]).all()
    rebuilt = ConvexPotential(**spin_fit.potential.config).double()
    rebuilt.load_state_dict(spin_fit.potential.state_dict())
    h = midpoints(FIELDS, 10)
    assert torch.equal(rebuilt(h), spin_fit.potential(h))


@pytest.mark.parametrize("collective", [False, True])
def test_an_open_ising_chain_gives_log_cosh_of_its_coupling(collective):
    coupling, sites = uniform(3000, FIELDS), 33
    steps = spins(coupling, sites - 1)  # the bonds of an open chain are independent
    first = random_states(3000, 1, seed=2)
    chain = torch.cat([first, steps], 1).cumprod(1).to(torch.int8)
    fit = fit_direct(chain, coupling, box=FIELDS, steps=300, batch=128, collective=collective)
    bonds = (chain[:, 1:] * chain[:, :-1]).sum(1).double()

    def exact(k):
        return (sites - 1) * log_cosh(k)

    grid = midpoints(FIELDS, 100)
    assert aligned_error(fit.potential, exact, grid) < 0.1 * aligned_error(zero, exact, grid)
    assert abs(unit_of(fit.potential, exact, grid) - 1) < 0.1
    assert torch.corrcoef(torch.stack([bonds, fit.statistic(chain)[:, 0]]))[0, 1] > 0.98


COVARIANCE = torch.tensor([[1.0, 0.3], [0.3, 0.25]], dtype=F64)
PLANE = [[-2.0, 0.0], [2.0, 6.0]]


def gaussians(theta, covariance, seed=2):
    """x ~ N(Cθ, C), weight exp(⟨θ, x⟩ − θᵀCθ/2)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(theta.shape, dtype=F64, generator=generator)
    return (theta @ covariance + noise @ torch.linalg.cholesky(covariance).T).float()


def linear(d):
    torch.manual_seed(0)
    return nn.Linear(d, d)


@pytest.fixture(scope="module")
def plane_fit():
    t = uniform(4000, PLANE)
    x = gaussians(t, COVARIANCE)
    return fit_direct(x, t, box=PLANE, network=linear(2), steps=800, grid=20, batch=128)


def quadratic(theta):
    return (theta @ COVARIANCE * theta).sum(1) / 2


def test_gaussian_means_give_half_their_square(plane_fit):
    grid = midpoints(PLANE, 25)
    error = aligned_error(plane_fit.potential, quadratic, grid)
    assert error < 0.15 * aligned_error(zero, quadratic, grid)
    assert abs(unit_of(plane_fit.potential, quadratic, grid) - 1) < 0.12


def test_the_hessian_of_gaussian_means_is_their_covariance_axis_by_axis(plane_fit):
    inner = midpoints([[-1.6, 0.6], [1.6, 5.4]], 60)
    found = hessian(plane_fit.potential, inner).mean(0)
    assert ((found - COVARIANCE).abs() < 0.1).all()


def test_the_statistic_of_gaussian_means_is_the_sample_axis_by_axis(plane_fit):
    theta = uniform(2000, PLANE, 7)
    x = gaussians(theta, COVARIANCE, 8)
    f = plane_fit.statistic(x)
    centred = x.double() - x.double().mean(0)
    slopes = torch.linalg.lstsq(centred, f - f.mean(0)).solution
    assert ((slopes - torch.eye(2, dtype=F64)).abs() < 0.25).all()
    exact = held_out_loss(x.double(), theta, quadratic, PLANE, grid=60)
    learned = held_out_loss(f, theta, plane_fit.potential, PLANE, grid=60)
    assert -0.005 < learned - exact < 0.015


@pytest.mark.parametrize(
    "natural, box",
    [
        pytest.param(torch.log, [[0.3], [3.0]], id="log"),
        pytest.param(torch.reciprocal, [[0.4], [4.0]], id="reciprocal"),
    ],
)
def test_any_coordinates_of_the_box_give_log_z_in_the_natural_ones(natural, box):
    """The prior is uniform in t; read as uniform in θ, 1/t would err by half the trivial score."""
    t, variance = uniform(4000, box), torch.full((1, 1), 4.0, dtype=F64)
    x = gaussians(natural(t), variance)
    options = dict(network=linear(1), natural=natural, steps=500, batch=128)
    fit = fit_direct(x, t, box=box, **options)

    def exact(theta):
        return 2 * theta[:, 0].square()

    theta = midpoints(natural(torch.tensor(box, dtype=F64)).sort(0).values, 100)
    assert aligned_error(fit.potential, exact, theta) < 0.25 * aligned_error(zero, exact, theta)
    assert abs(unit_of(fit.potential, exact, theta) - 1) < 0.3
    learned = held_out_loss(fit.statistic(x), t, fit.potential, box, natural)
    assert abs(learned - held_out_loss(x.double(), t, exact, box, natural)) < 0.01


# Hygiene of a fit


def short_fit(**options):
    t = uniform(300, FIELDS)
    return fit_direct(spins(t, 4, 4), t, box=FIELDS, **(dict(steps=20, batch=32) | options))


def weights_of(fit):
    parts = (fit.potential, fit.network)
    return torch.cat([w.double().flatten() for part in parts for w in part.parameters()])


def test_a_seed_fixes_the_fit_whatever_the_global_generator():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a = short_fit(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    b, c = short_fit(seed=3), short_fit(seed=4)
    assert torch.equal(weights_of(a), weights_of(b))
    assert np.array_equal(a.history["held_out"], b.history["held_out"])
    h = midpoints(FIELDS, 20)
    assert not torch.allclose(a.potential(h), c.potential(h), rtol=1e-3)


def test_a_fit_leaves_the_arrays_and_the_network_of_its_caller_alone():
    t, network = uniform(300, FIELDS), linear(1)
    given = (spins(t, 1).float().numpy(), t.numpy(), np.array(FIELDS))
    arrays, weights = [x.copy() for x in given], network.weight.clone()
    fit = fit_direct(given[0], given[1], box=given[2], network=network, steps=20, batch=32)
    assert all(np.array_equal(x, y) for x, y in zip(given, arrays, strict=True))
    assert torch.equal(network.weight, weights) and network.weight.grad is None
    assert not torch.equal(fit.network.weight, weights)


class Watched(nn.Sequential):
    """Remembers its last input in every copy: a fit ends by looking at the held-out samples."""

    seen = None

    def forward(self, x):
        Watched.seen = x.clone()
        return super().forward(x)


def test_the_returned_weights_are_those_with_the_best_held_out_loss():
    t = uniform(60, FIELDS)
    noise = torch.randn(60, 20, generator=torch.Generator().manual_seed(0))
    x = noise + t.float()  # few samples and a large network: it learns them by heart
    torch.manual_seed(0)
    network = Watched(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 1))
    fit = fit_direct(x, t, box=FIELDS, network=network, steps=100, batch=32)
    rows = (Watched.seen[:, None] == x).all(-1).double().argmax(1)
    held_out = fit.history["held_out"]
    assert len(rows.unique()) == 6 and held_out.argmin() < len(held_out) - 1
    loss = held_out_loss(fit.statistic(x[rows]), t[rows], fit.potential, FIELDS, grid=48)
    assert abs(loss - held_out.min()) < 1e-3 < held_out[-1] - held_out.min()


GOOD = dict(samples=spins(uniform(40, FIELDS), 4, 4), t=uniform(40, FIELDS), box=FIELDS)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(box=[[-1.0], [1.0]]), r"\d+ samples lie outside the box \[\[-1.0\], \[1.0\]\]"),
        (dict(box=[[1.5], [-1.0]]), r"box=\[\[1.5\], \[-1.0\]\]"),
        (dict(box=[-1.0, 1.5]), "box="),
        (dict(box=[[-1.0], [math.nan]]), "box="),
        (dict(t=GOOD["t"][:, 0]), r"t of shape \(40,\)"),
        (dict(t=GOOD["t"][1:]), "40 samples but 39 rows of t"),
        (dict(t=0 * GOOD["t"] + 0.5), "1 distinct parameters; at least two"),
        (dict(t=GOOD["t"][:0], samples=GOOD["samples"][:0]), "0 distinct parameters"),
        (dict(t=GOOD["t"] * math.nan), "t has 40 entries that are not finite"),
    ],
)
def test_a_fit_refuses_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        fit_direct(**(GOOD | change), steps=20, batch=16)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(samples=GOOD["t"].float() * math.nan, network=nn.Linear(1, 1)), "samples"),
        (dict(box=[[-math.inf], [math.inf]]), "box"),
        (dict(natural=torch.log), "natural"),
        (dict(samples=GOOD["samples"][:, 0, :2]), "samples"),
    ],
    ids=["samples not finite", "endless box", "natural not finite", "chain without windows"],
)
def test_a_fit_refuses_what_it_cannot_use(change, message):
    with pytest.raises(ValueError, match=message):
        fit_direct(**(GOOD | change), steps=20, batch=16)


@pytest.mark.parametrize("change", [dict(steps=10), dict(grid=1)], ids=str)
def test_too_few_steps_or_grid_points_are_refused(change):
    with pytest.raises(ValueError, match="allowed are steps >= 20 and grid >= 2"):
        fit_direct(**(GOOD | dict(steps=20, batch=16) | change))


def test_a_grid_too_coarse_for_the_data_is_refused():
    t = uniform(300, FIELDS)
    sharp = dict(samples=spins(t, 32, 32), t=t, box=FIELDS, steps=60, batch=32)
    with pytest.raises(ValueError, match="grid=4 is too coarse"):
        fit_direct(**sharp, grid=4)
    fit_direct(**sharp, grid=400)
