"""Laws of the learned log Z, against exponential families that are solved exactly."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lib.geometry.networks import ConvexPotential
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
    first = 2 * torch.arange(3000, dtype=torch.int8)[:, None].remainder(2) - 1
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
        (dict(box=[[-1.0], [1.0]]), r"\d+ rows of t lie outside the box \[\[-1.0\], \[1.0\]\]"),
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


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(steps=10), "steps=10; give an integer of at least 20"),
        (dict(grid=1), "grid=1; give an integer of at least 2"),
        (dict(grid=12.5), "grid=12.5"),
        (dict(batch=0), "batch=0"),
        (dict(seed=None), "seed=None"),
        (dict(width=0), "width=0"),
    ],
    ids=str,
)
def test_sizes_that_no_fit_can_use_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fit_direct(**(GOOD | dict(steps=20, batch=16) | change))


def test_a_grid_too_coarse_for_the_data_is_refused():
    t = uniform(300, FIELDS)
    sharp = dict(samples=spins(t, 32, 32), t=t, box=FIELDS, steps=60, batch=32)
    with pytest.raises(ValueError, match="grid=4 is too coarse"):
        fit_direct(**sharp, grid=4)
    fit_direct(**sharp, grid=400)


# What a fit is given


def quick(samples, t, **options):
    return fit_direct(samples, t, **(dict(box=FIELDS, steps=20, batch=16) | options))


def test_a_fit_does_not_depend_on_how_its_input_is_written_down():
    t = uniform(60, FIELDS)
    x, h = spins(t, 4, 4), midpoints(FIELDS, 20)
    plain = quick(x, t).potential(h)
    written = {
        "0 and 1": ((x + 1) // 2, t, FIELDS),
        "booleans": (x == 1, t, FIELDS),
        "lists": (x.tolist(), t.tolist(), FIELDS),
        "arrays": (x.double().numpy(), t.numpy(), np.array(FIELDS)),
    }
    for name, (samples, own, box) in written.items():
        assert torch.equal(quick(samples, own, box=box).potential(h), plain), name


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(samples=(GOOD["samples"] + 3) // 2),
            r"states \[1, 2\].*coded -1 and \+1, or 0 and 1",
        ),
        (dict(samples=(GOOD["samples"] - 1) // 2), r"states \[-1, 0\]"),
        (dict(samples=0.5 * GOOD["samples"]), r"states \[-0.5, 0.5\]"),
        (dict(samples=GOOD["samples"] + 0j), "samples is complex"),
        (dict(t=GOOD["t"] + 0j), "t is complex"),
        (dict(samples=GOOD["samples"][:2], t=GOOD["t"][:2]), "2 samples are too few"),
        (dict(network=lambda x: x.mean(1)), "network is of type function"),
        (dict(network=nn.Linear(5, 1)), "cannot read samples"),
        (dict(network=nn.Sequential(nn.Flatten(), nn.Linear(16, 3))), r"returned \(4, 3\)"),
        (dict(natural=lambda t: t.numpy()), "returned ndarray"),
        (dict(natural=lambda t: t[:, 0]), "returned"),
        (dict(natural=lambda t: 0 * t), r"constant over the box in its coordinates \[0\]"),
    ],
    ids=str,
)
def test_a_fit_says_what_it_cannot_learn_from(change, message):
    with pytest.raises(ValueError, match=message):
        fit_direct(**(GOOD | change), steps=20, batch=16)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(8), nn.Dropout(0.5)], ids=["batch", "dropout"])
def test_a_statistic_does_not_depend_on_the_batch_or_on_chance(layer):
    t = uniform(60, FIELDS)
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)) + t.float()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 1))
    state = torch.get_rng_state()
    one, again = (quick(x, t, network=network) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.statistic(x), again.statistic(x))
    rows = torch.cat([one.statistic(row) for row in x.split(1)])
    torch.testing.assert_close(rows, one.statistic(x), rtol=1e-5, atol=1e-5)


def test_parameters_far_from_uniform_are_warned_of():
    t = uniform(400, FIELDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(spins(t, 4), t)
        with pytest.raises(UserWarning, match="coordinate 0 of t is not uniform"):
            quick(spins(t / 3, 4), t / 3)


def test_a_grid_of_very_many_nodes_is_warned_of():
    box = [[0.0] * 3, [1.0] * 3]
    t = uniform(40, box)
    many = pytest.warns(UserWarning, match="grid=48 in 3 dimensions.*110,592 nodes")
    with many, pytest.raises(ValueError, match="network is of type int"):
        fit_direct(t.float(), t, box=box, network=3)


def test_a_statistic_refuses_samples_of_another_kind():
    fit = short_fit()
    with pytest.raises(ValueError, match="the fit read 3 axes"):
        fit.statistic(torch.ones(5, 16))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_samples_on_a_device_are_fitted_there():
    t = uniform(200, FIELDS)
    found = fit_direct(spins(t, 8).cuda(), t.numpy(), box=FIELDS, steps=20, batch=32)
    h = midpoints(FIELDS, 10).cuda()
    assert found.potential(h).is_cuda and found.potential(h).isfinite().all()
    assert found.statistic(spins(t, 8).cuda()).is_cuda
