"""The one-step estimator in divergence form, on a chain of coins and its own identities."""

import numpy as np
import pytest
import torch

from lib.geometry import divergence, potential
from lib.geometry.divergence import PatternEstimate, SlopeAtEstimate, TangentPotential
from lib.geometry.metric import fisher_metric
from lib.kit import cache

BOX = np.array([[0.1], [0.9]])
SITES = 60


def coins(n, seed=0):
    """Chains of independent sites, each occupied with probability t."""
    generator = np.random.default_rng(seed)
    t = generator.uniform(0.1, 0.9, (n, 1))
    return (generator.random((n, SITES)) < t).astype(np.uint8), t


def fitted(n=3000, **change):
    x, t = coins(n)
    settings = {"box": BOX, "natural": torch.logit, "steps": 150, "points": 128, "pieces": 30}
    return divergence.fit_divergence(x, t, **(settings | change))


@pytest.fixture(scope="module")
def coin_fit():
    return fitted()


def test_log_z_of_a_chain_of_coins_is_found(coin_fit):
    theta = torch.logit(torch.linspace(0.15, 0.85, 40, dtype=torch.float64))[:, None]
    exact = SITES * torch.nn.functional.softplus(theta[:, 0])
    align = potential.align_affine(coin_fit.potential(theta).detach(), exact, theta, scale=True)
    assert float(align.scale) == pytest.approx(1, abs=0.15)
    error = align(coin_fit.potential(theta).detach(), theta) - exact
    assert error.abs().max() < 0.02 * (exact.max() - exact.min())


def test_the_statistic_is_the_number_of_heads(coin_fit):
    x, _ = coins(500, seed=1)
    f = coin_fit.statistic(x)[:, 0].numpy()
    heads = x.sum(1)
    assert np.corrcoef(f, heads)[0, 1] > 0.99
    assert np.polyfit(heads, f, 1)[0] == pytest.approx(1, abs=0.2)


def test_a_fit_comes_back_from_the_cache(coin_fit, tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_CACHE", str(tmp_path))
    first, again = (cache.cached(fitted, 400, steps=20) for _ in range(2))
    x, _ = coins(5, seed=2)
    torch.testing.assert_close(first.statistic(x), again.statistic(x))
    theta = torch.zeros(1, 1, dtype=torch.float64)
    torch.testing.assert_close(first.potential(theta), again.potential(theta))


def test_the_result_depends_on_the_seed_alone():
    few = {"n": 200, "steps": 20}
    theta = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    values = [fitted(**few, seed=seed).potential(theta).detach() for seed in (0, 0, 1)]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)
    assert (values[0] - values[2]).abs().max() > 0


def test_the_soft_maximum_is_convex_with_the_gradient_it_states():
    phi = TangentPotential([-1, -3], [2, 5], 10.0, pieces=20, seed=3).double()
    theta = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = phi.rescale(theta)
    slope = torch.func.grad(lambda s: phi.per_site(s).sum())(s)
    torch.testing.assert_close(phi.gradient(s), slope)
    assert torch.linalg.eigvalsh(fisher_metric(phi, theta)).min() > -1e-9
    torch.testing.assert_close(phi(theta), 10 * phi.per_site(s))


def test_one_state_per_plane_makes_it_the_log_z_of_that_site():
    phi = TangentPotential([-1], [1], 1.0, pieces=2).double()
    with torch.no_grad():
        phi.slope.copy_(torch.tensor([[0.0], [1.0]]))
        phi.height.zero_()
        phi.log_softness.zero_()
    theta = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(phi(theta), torch.nn.functional.softplus(theta[:, 0]))


def test_it_starts_as_a_bowl_without_ripples():
    phi = TangentPotential([-1, -1], [1, 1], 1.0, pieces=100)
    side = torch.linspace(-0.6, 0.6, 15, dtype=torch.float64)
    g = fisher_metric(phi.double(), torch.cartesian_prod(side, side))
    assert (torch.linalg.eigvalsh(g) - 2).abs().max() < 1


def test_the_statistic_is_the_slope_at_the_estimate():
    phi, estimate = TangentPotential([-1], [1], 7.0, 9), PatternEstimate(8, 1, SITES)
    network = SlopeAtEstimate(phi.config, estimate.config)
    x, _ = coins(4)
    counts = divergence.window_counts(torch.as_tensor(x))
    estimated = network.estimate(counts)[0]
    torch.testing.assert_close(network(torch.as_tensor(x)), network.potential.gradient(estimated))


def test_features_of_independent_sites_hold_their_log_odds():
    estimate = PatternEstimate(8, 1, 10_000)
    p = torch.tensor([0.2, 0.7])
    bits = (torch.arange(8)[:, None] >> torch.arange(3)) & 1
    counts = torch.stack([(q**bits * (1 - q) ** (1 - bits)).prod(1) for q in p])
    torch.testing.assert_close(estimate.features(counts)[:, -1], torch.logit(p), atol=1e-3, rtol=0)
    difference = (estimate.features(counts)[:, 1] - estimate.features(counts)[:, 0]).exp()
    torch.testing.assert_close(difference, p / (1 - p), atol=1e-3, rtol=1e-3)


def test_the_points_are_spread_evenly_also_in_a_thin_strip():
    points = divergence.kronecker(1000, 2)
    assert len(points[:, 0].unique()) == len(points[:, 1].unique()) == 1000
    for low in np.linspace(0, 0.98, 50):
        inside = (points[:, 0] >= low) & (points[:, 0] < low + 0.02)
        assert abs(int(inside.sum()) - 20) <= 3
    golden = (np.sqrt(5) - 1) / 2
    np.testing.assert_allclose(divergence.kronecker(4, 1)[:, 0], np.arange(4) * golden % 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": [[0.4], [0.6]]}, "outside the box"),
        ({"steps": 3}, "steps=3"),
        ({"natural": lambda t: t * float("nan")}, "not finite"),
    ],
)
def test_it_refuses_what_the_direct_fit_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        fitted(50, **change)
