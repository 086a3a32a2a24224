"""Reweighting, on a family whose answer is known."""

import math

import numpy as np
import pytest
import torch

from lib.geometry import reweighting
from lib.geometry.metric import fisher_metric
from lib.geometry.potential import align_affine

F64 = torch.float64
BOX = torch.tensor([[-1.0, -0.5], [1.0, 1.5]], dtype=F64)


def uniform(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return BOX[0] + (BOX[1] - BOX[0]) * torch.rand(n, 2, dtype=F64, generator=generator)


def spins(theta, sites=30, seed=1):
    """Their sums, (n, 2), even numbers: many samples share a statistic."""
    up = torch.sigmoid(2 * theta)
    counts = np.random.default_rng(seed).binomial(sites, up.numpy())
    return torch.from_numpy(2 * counts - sites).double()


def spins_log_z(theta, sites=30):
    """Two independent groups of spins in fields θ₁ and θ₂."""
    return sites * torch.log(2 * torch.cosh(theta)).sum(1)


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
