"""The statistic by swaps and log Z by reweighting, on families that are solved by enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch

from lib.geometry import swaps
from lib.geometry.boxes import centres
from lib.geometry.metric import fisher_metric
from lib.geometry.potential import align_affine

F64 = torch.float64
BOX = torch.tensor([[0.0, -0.8], [0.6, 0.8]], dtype=F64)  # (β, h) of a 3 x 3 torus


def torus(size=3):
    """All states of a periodic magnet and their (Σ s s', Σ s), by counting."""
    states = torch.tensor(list(itertools.product((-1, 1), repeat=size**2))).view(-1, size, size)
    bonds = states * (states.roll(1, 1) + states.roll(1, 2))
    return states, torch.stack([bonds.sum((1, 2)), states.sum((1, 2))], 1).double()


STATES, STATISTICS = torus()


def exact_log_z(theta):
    return (theta @ STATISTICS.T).logsumexp(1)


def covariance(f, theta):
    """Of the values f of all states, in equilibrium at each θ."""
    chances = (theta @ STATISTICS.T).softmax(1)
    return torch.stack([torch.cov(f.T, aweights=p, correction=0) for p in chances])


def exact_metric(theta):
    return covariance(STATISTICS, theta)


def drawn(n, seed=0):
    """Labels uniform in the box, and the number of a state drawn exactly at each."""
    generator = torch.Generator().manual_seed(seed)
    t = BOX[0] + (BOX[1] - BOX[0]) * torch.rand(n, 2, dtype=F64, generator=generator)
    chances = (t @ STATISTICS.T).softmax(1)
    return t, torch.multinomial(chances, 1, generator=generator)[:, 0]


def features(rows):
    """Seven numbers of a state: its two statistics mixed, powers of the magnetisation, others."""
    x = STATES[rows].double()
    up, bond = x.mean((1, 2)), (x * x.roll(1, 1)).mean((1, 2)) + (x * x.roll(1, 2)).mean((1, 2))
    corner = (x * x.roll((1, 1), (1, 2))).mean((1, 2))
    return torch.stack([up + bond, up - 2 * bond, up**2, up.abs(), corner, 0 * up + 3, bond], 1)


def grid():
    axes = [torch.linspace(low + 0.04, high - 0.04, 7, dtype=F64) for low, high in BOX.T]
    return torch.cartesian_prod(*axes)


FEW = dict(partners=20, cells=50)  # neither matters for a law


def fitted(n, seed=0, **options):
    t, rows = drawn(n, seed)
    return swaps.fit_swaps(features(rows), t, **(FEW | options))


def error(potential):
    """RMSE of log Z after the affine alignment."""
    values = potential(grid()).detach()
    align = align_affine(values, exact_log_z(grid()), grid())
    return (align(values, grid()) - exact_log_z(grid())).square().mean().sqrt().item()


def slopes(fit):
    """d f / d(Σ s s', Σ s), the identity where f is the true statistic up to a constant."""
    f = fit.statistic(features(torch.arange(len(STATES))))
    columns = torch.cat([STATISTICS, torch.ones(len(STATES), 1, dtype=F64)], 1)
    return torch.linalg.lstsq(columns, f).solution[:2]


@pytest.fixture(scope="module")
def small():
    return fitted(4_000)


@pytest.fixture(scope="module")
def large():
    return fitted(20_000, partners=40, cells=200)


def test_the_planted_statistic_is_found_as_samples_grow(small, large):
    far, near = ((slopes(fit) - torch.eye(2, dtype=F64)).norm().item() for fit in (small, large))
    assert near < 0.1 and near < far


def test_log_z_and_its_hessian_are_those_of_the_enumeration(large):
    nothing = error(lambda theta: 0 * theta[:, 0])
    assert error(large.potential) < 0.05 * nothing
    exact, found = exact_metric(grid()), fisher_metric(large.potential, grid())
    relative = (found - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))
    assert relative.median() < 0.06


def test_the_metric_is_the_covariance_of_the_learned_statistic(large):
    """Of the states in equilibrium, the second route: no potential takes part."""
    f = large.statistic(features(torch.arange(len(STATES))))
    theta = grid()[::8]
    exact, found = covariance(f, theta), fisher_metric(large.potential, theta)
    assert ((found - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))).max() < 0.12


def test_neither_units_nor_order_nor_mixing_nor_idle_columns_of_the_features_matter(small):
    t, rows = drawn(4_000)
    z = features(rows)
    generator = torch.Generator().manual_seed(1)
    mixing = torch.eye(7, dtype=F64) + 0.2 * torch.randn(7, 7, dtype=F64, generator=generator)
    others = {
        "order": z[:, torch.randperm(7, generator=generator)],
        "units": 1e3 * z + 5,
        "mixing": z @ mixing,
        "repeated": torch.cat([z, z[:, :3]], 1),
    }
    for name, other in others.items():
        fit = swaps.fit_swaps(other, t, **FEW)
        difference = fit.potential(grid()) - small.potential(grid())
        gauge = align_affine(difference, 0 * difference, grid())
        assert gauge(difference, grid()).abs().max() < 1e-4, name
        torch.testing.assert_close(
            fisher_metric(fit.potential, grid()),
            fisher_metric(small.potential, grid()),
            rtol=1e-4,
            atol=1e-4,
        )


def test_labels_in_other_units_and_other_coordinates_give_the_same_log_z(small):
    t, rows = drawn(4_000)
    other = swaps.fit_swaps(features(rows), t.exp(), natural=torch.log, **FEW)
    torch.testing.assert_close(
        other.potential(grid()), small.potential(grid()), rtol=1e-6, atol=1e-6
    )
    tenfold = swaps.fit_swaps(features(rows), 10 * t, **FEW)
    torch.testing.assert_close(
        tenfold.potential(10 * grid()), small.potential(grid()), rtol=1e-6, atol=1e-6
    )


def test_any_prior_of_the_labels_serves():
    t, rows = drawn(20_000)
    few = torch.rand(len(t), generator=torch.Generator().manual_seed(2)) < 0.1 + 0.9 * (
        t[:, 0] > 0.3
    )
    kept = swaps.fit_swaps(features(rows[few]), t[few], partners=40, cells=200)
    assert error(kept.potential) < 0.08 * error(lambda theta: 0 * theta[:, 0])


def test_labels_that_say_nothing_give_a_flat_log_z():
    t, rows = drawn(4_000)
    fit = swaps.fit_swaps(features(rows), t.flip(0), **FEW)
    assert (
        fisher_metric(fit.potential, grid()).norm(dim=(1, 2)).max()
        < 0.05 * exact_metric(grid()).norm(dim=(1, 2)).max()
    )
    assert abs(fit.history["loss"][-1] - math.log(2)) < 1e-3


def test_one_coordinate_and_arrays_are_read():
    t = np.random.default_rng(0).uniform(-1, 1, (4_000, 1))
    up = np.random.default_rng(1).binomial(12, 1 / (1 + np.exp(-2 * t)))
    fit = swaps.fit_swaps(up / 12, t, **FEW)
    axis = torch.linspace(-0.9, 0.9, 9, dtype=F64)[:, None]
    exact = 12 / torch.cosh(axis[:, 0]) ** 2
    found = fisher_metric(fit.potential, axis)[:, 0, 0]
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0)


def test_the_loss_is_convex_newton_ends_at_its_bottom(small):
    loss = small.history["loss"]
    assert loss[0] == pytest.approx(math.log(2)) and loss[-1] < loss[0]
    t, rows = drawn(4_000)
    f = small.statistic(features(rows))
    i, j = swaps.pairs(t, 20)

    def swapped(gain):
        odds = (gain * (f[i] - f[j]) * (t[i] - t[j])).sum(1)
        return torch.nn.functional.softplus(-odds).mean().item()

    assert swapped(1.0) < min(swapped(0.99), swapped(1.01))
    assert swapped(1.0) == pytest.approx(loss[-1], abs=1e-6)


T, ROWS = drawn(40)
GOOD = {"features": features(ROWS), "t": T}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": GOOD["features"][:30]}, "30 rows of features and 40 labels"),
        ({"features": GOOD["features"][:10], "t": T[:10]}, "20 or more"),
        ({"features": GOOD["features"][:, 0]}, r"features has shape \(40,\)"),
        ({"t": T[:, 0]}, r"t\[:, None\] for one parameter"),
        ({"features": [[1, 2], [3]] * 20}, "features holds rows of unequal length"),
        ({"natural": np.log}, "natural = .*torch.log"),
        ({"features": torch.full((40, 2), math.nan)}, "features.* is not finite"),
        ({"features": torch.ones(40, 3)}, "the features are constant"),
        ({"features": GOOD["features"] * 1j}, "complex"),
        ({"t": torch.full((40, 2), math.inf)}, "t.* is not finite"),
        ({"t": T * torch.tensor([1.0, 0.0])}, r"the same for all labels in its coordinates \[1\]"),
        ({"natural": lambda t: t[:, :1]}, r"natural\(t\) returned"),
        ({"natural": lambda t: t * torch.tensor([0.0, 1.0])}, r"in its coordinates \[0\]"),
        ({"partners": 0}, "partners=0"),
        ({"cells": 2.5}, "cells=2.5"),
    ],
)
def test_what_cannot_be_read_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        swaps.fit_swaps(**(GOOD | change))


def test_other_features_than_those_of_the_fit_are_refused(small):
    with pytest.raises(ValueError, match=r"the fit read \(n, 7\)"):
        small.statistic(torch.zeros(3, 2))


def surprise(fit, z, t, grid=16):
    """Mean of −log p(t|x) against the uniform density on the box, in nats."""
    nodes, f = centres(BOX, grid), fit.statistic(z)
    evidence = (f @ nodes.T - fit.potential(nodes)).logsumexp(1) - math.log(len(nodes))
    return (evidence - (f * t).sum(1) + fit.potential(t)).mean().item()


def test_the_likelihood_of_all_labels_knows_the_statistic_better_than_swaps():
    """Mean squared error of A over data sets: swaps are consistent, the likelihood is efficient."""
    errors = []
    for seed in range(6):
        t, rows = drawn(1_000, seed)
        z = features(rows)
        fit = swaps.fit_swaps(z, t, **FEW)
        more = swaps.refined(fit, z, t, box=BOX, grid=16)
        assert more.history["loss"][0] == pytest.approx(surprise(fit, z, t), abs=1e-9)
        assert surprise(more, z, t) < surprise(fit, z, t)
        errors.append([(slopes(f) - torch.eye(2, dtype=F64)).norm().item() for f in (fit, more)])
    before, after = np.square(errors).mean(0)
    assert after < 0.9 * before
