"""Reweighting, rival statistics and the gaps of Theorem 3.2, on families whose answer is known."""

import math

import numpy as np
import pytest
import torch

from lib.geometry import baselines, reweighting, theorems
from lib.geometry.metric import fisher_metric
from lib.geometry.networks import FreePotential
from lib.geometry.potential import align_affine
from lib.geometry.two_step import fit_posteriors

F64 = torch.float64
BOX = torch.tensor([[-1.0, -0.5], [1.0, 1.5]], dtype=F64)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def uniform(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return BOX[0] + (BOX[1] - BOX[0]) * torch.rand(n, 2, dtype=F64, generator=generator)


def spins_log_z(theta, sites=30):
    """Two independent groups of spins in fields θ₁ and θ₂."""
    return sites * torch.log(2 * torch.cosh(theta)).sum(1)


def spins(theta, sites=30, seed=1):
    """Their sums, (n, 2), even numbers: many samples share a statistic."""
    up = torch.sigmoid(2 * theta)
    counts = np.random.default_rng(seed).binomial(sites, up.numpy())
    return torch.from_numpy(2 * counts - sites).double()


def edges(cells=14):
    return [torch.linspace(low, high, cells + 1, dtype=F64) for low, high in BOX.T]


def misfit(potential, theta):
    """RMSE of an affinely aligned potential."""
    align = align_affine(potential(theta), spins_log_z(theta), theta)
    error = align(potential(theta), theta) - spins_log_z(theta)
    return error.square().mean().sqrt().item()


@pytest.fixture(scope="module")
def spin_solution():
    t = uniform(4000)
    return reweighting.reweight(spins(t), t, edges=edges())


def test_reweighting_gives_log_z_its_slope_and_its_hessian(spin_solution):
    t = uniform(200, seed=3) * 0.9
    assert misfit(spin_solution, t) < 0.1 * misfit(lambda t: 0 * t[:, 0], t)
    value, mean, covariance = spin_solution.moments(t)
    torch.testing.assert_close(value, spin_solution(t))
    torch.testing.assert_close(mean, torch.func.grad(lambda s: spin_solution(s).sum())(t))
    torch.testing.assert_close(covariance, fisher_metric(spin_solution, t), atol=1e-8, rtol=1e-8)
    exact = torch.diag_embed(30 / torch.cosh(t) ** 2)
    assert ((covariance - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))).median() < 0.08


def test_reweighting_does_not_mind_a_shifted_statistic_or_other_coordinates(spin_solution):
    t, theta = uniform(4000), uniform(50, seed=3)
    shifted = reweighting.reweight(spins(t) + torch.tensor([5.0, -2.0]), t, edges=edges())
    hessians = [part.moments(theta)[2] for part in (spin_solution, shifted)]
    torch.testing.assert_close(*hessians, rtol=1e-4, atol=1e-4)
    tripled = [3 * edge for edge in edges()]
    scaled = reweighting.reweight(spins(t), 3 * t, edges=tripled, natural=lambda t: t / 3)
    torch.testing.assert_close(
        scaled.moments(theta)[2], spin_solution.moments(theta)[2], rtol=1e-4, atol=1e-4
    )


def test_more_samples_come_closer():
    theta, errors = uniform(100, seed=3), []
    for n in (300, 8000):
        t = uniform(n, seed=5)
        errors.append(misfit(reweighting.reweight(spins(t, seed=6), t, edges=edges()), theta))
    assert errors[1] < errors[0] / 2


def test_the_linear_head_finds_the_true_statistic_behind_any_linear_mixture():
    t = uniform(3000)
    mixture = torch.tensor([[0.3, -1.0], [2.0, 0.7]], dtype=F64)
    f = baselines.linear_head(spins(t) @ mixture + 4, t)
    truth = spins(t) - spins(t).mean(0)
    assert (f - truth).square().mean().sqrt() < 0.1 * truth.std()


def lattices(theta, side=6, seed=2):
    """Independent spins in a field θ₁; θ₂ does nothing."""
    up = np.random.default_rng(seed).random((len(theta), side, side))
    return (2 * (up < torch.sigmoid(2 * theta[:, :1, None]).numpy()) - 1).astype(np.int8)


def test_the_posterior_mean_follows_the_parameter_that_samples_show_and_no_other():
    t = uniform(4000)
    mean = baselines.posterior_mean(lattices(t), t, steps=150)
    assert mean.values.shape == (4000, 2) and mean.parameters > 1000
    correlation = [np.corrcoef(mean.values[:, k], t[:, k])[0, 1] for k in (0, 1)]
    assert correlation[0] > 0.95 and mean.values[:, 1].std() < 0.35 * t[:, 1].std()
    magnetisation = lattices(t).mean((1, 2))
    assert np.corrcoef(mean.values[:, 0], np.arctanh(0.98 * magnetisation))[0, 1] > 0.97


def test_the_first_component_of_the_autoencoder_is_the_magnetisation():
    t = uniform(4000)
    x = lattices(t)
    found = baselines.vae_components(x, 2, steps=150)
    assert found.values.shape == (4000, 2)
    assert abs(np.corrcoef(found.values[:, 0], x.mean((1, 2)))[0, 1]) > 0.9
    variance = found.values.var(0)
    assert variance[0] > variance[1]


def test_affine_functions_open_neither_gap():
    def moved(t):
        return spins_log_z(t, 2) + t @ torch.tensor([3.0, -7.0], dtype=F64) + 11

    def first(t):
        return spins_log_z(t, 2)

    assert theorems.divergence_gap(first, moved, box=BOX, grid=8) < 1e-12
    assert theorems.hessian_gap(first, moved, box=BOX, grid=8) < 1e-12


def test_the_gaps_of_two_gaussian_families_are_what_integration_says():
    def parabola(a):
        return lambda t: a * t.square().sum(1) / 2

    assert theorems.hessian_gap(parabola(1.0), parabola(3.0), box=BOX) == pytest.approx(
        2 * math.sqrt(2)
    )
    square = (uniform(20_000, seed=1) - uniform(20_000, seed=2)).square().sum(1) / 2
    exact = ((-square).exp() - (-3 * square).exp()).square().mean().sqrt().item()
    found = theorems.divergence_gap(parabola(1.0), parabola(3.0), box=BOX)
    assert found == pytest.approx(exact, rel=0.02)


def test_ripples_close_the_divergence_gap_and_not_the_hessian_gap():
    def rippled(k):
        return lambda t: t.square().sum(1) / 2 + torch.cos(k * t[:, 0]) / (2 * k**2)

    def plain(t):
        return t.square().sum(1) / 2

    gaps = [theorems.divergence_gap(plain, rippled(k), box=BOX, grid=20) for k in (4.0, 32.0)]
    assert gaps[1] < gaps[0] / 6
    assert theorems.hessian_gap(plain, rippled(32.0), box=BOX, grid=50) > 0.45


def test_without_the_constraint_the_second_step_may_be_non_convex_and_still_finds_log_z():
    start = FreePotential([-1, -1], [1, 1], 1.0, seed=3).double()
    t = uniform(600)
    assert torch.linalg.eigvalsh(fisher_metric(start, t)).min() < 0
    cell = (torch.arange(20, dtype=F64) + 0.5) / 20
    centres = BOX[0] + (BOX[1] - BOX[0]) * torch.cartesian_prod(cell, cell)
    maps = (-5 * (t[:, None] - centres).square().sum(2)).softmax(1).view(-1, 20, 20)
    fit = fit_posteriors(maps, t, box=BOX, convex=False, steps=200)
    g = fisher_metric(fit.potential, uniform(100, seed=3) * 0.7)
    assert g.diagonal(0, 1, 2).mean() == pytest.approx(10, rel=0.15)


def call(**change):
    t = uniform(50)
    return reweighting.reweight(**({"statistics": spins(t), "t": t, "edges": edges(4)} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"statistics": torch.zeros(50, 3)}, "expected .n, d. twice"),
        ({"statistics": torch.full((50, 2), math.nan)}, "not finite"),
        ({"edges": edges(4)[:1]}, "there are 1 edges"),
        ({"edges": [torch.tensor([0.0, 0.5]), edges(4)[1]]}, r"outside edges\[0\]"),
        ({"edges": [torch.tensor([1.0, -1.0]), edges(4)[1]]}, r"edges\[0\] .* increasing"),
    ],
)
def test_reweighting_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        call(**change)


def test_the_rivals_refuse():
    with pytest.raises(ValueError, match="components=9, latent=8"):
        baselines.vae_components(np.ones((10, 4, 4)), 9)
    with pytest.raises(ValueError, match="10 samples for theta of shape"):
        baselines.posterior_mean(np.ones((10, 4, 4)), torch.zeros(9, 2))
    with pytest.raises(ValueError, match="lower corner first"):
        theorems.hessian_gap(spins_log_z, spins_log_z, box=[[1.0], [0.0]])
