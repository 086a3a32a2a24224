"""Smooth geodesics against closed forms: hyperbolic space, the sphere, and a pinned mixture."""

import math

import numpy as np
import pytest
import torch

from lib.diffusion import spacetime
from lib.geometry.collocation import descend, refined_geodesic, smooth_geodesic

F64 = torch.float64


def row(*values):
    return torch.tensor(values, dtype=F64)


def toy():
    """The potential and two ends (c, log κ) of the paper's toy, log κ = 10 - 20 τ."""
    means, weights = row(-2.5, 0.5, 2.5)[:, None], row(0.275, 0.45, 0.275)
    ends = []
    for tau, x in ((0.35, -2.3), (0.4, 2.0)):
        kappa = math.exp(10 - 20 * tau)
        ends.append(row(x / math.sqrt(kappa / (1 + kappa)), math.log(kappa)))
    return spacetime.mixture_potential(means, 0.75, weights), *ends


def test_the_length_between_normal_laws_is_hyperbolic():
    """Data N(0, I) in three dimensions; r² = 1 / (1 + κ) of the posterior."""
    a, b = row(1, 0.2, -0.5, -math.log(0.2)), row(-0.7, 0.9, 0.4, -math.log(0.35))
    assert spacetime.gaussian_length(a, b) == pytest.approx(3.6819502, abs=5e-8)
    psi = spacetime.mixture_potential(torch.zeros(1, 3, dtype=F64), 1.0, row(1))

    def eta(points):
        precision = points[:, -1:].exp()
        return torch.cat([points[:, :-1] * precision, (1 - precision) / 2], 1)

    exact = eta(spacetime.semicircle(a, b, 33))
    found = smooth_geodesic(psi, eta(torch.lerp(a, b, torch.linspace(0, 1, 33).double()[:, None])))
    assert found.converged and found.length_error < 1e-9
    assert found.length == pytest.approx(spacetime.gaussian_length(a, b), abs=1e-10)
    torch.testing.assert_close(found.at(np.linspace(0, 1, 33)), exact, rtol=0, atol=1e-8)


def test_three_atoms_lie_on_a_sphere():
    atoms, weights = row(-1, 0, 1), row(0.3, 0.4, 0.3)

    def logits(eta):
        return weights.log() + eta[:, :1] * atoms + eta[:, 1:] * atoms**2

    ends = torch.stack([row(-1.5, -0.5), row(2, -1)])
    p, q = logits(ends).softmax(1)
    line = torch.lerp(ends[:1], ends[1:], torch.linspace(0, 1, 9).double()[:, None])
    found = smooth_geodesic(lambda eta: logits(eta).logsumexp(1), line)
    assert found.length == pytest.approx(2 * float((p * q).sqrt().sum().acos()), abs=1e-10)
    assert found.length == pytest.approx(1.960309879, abs=1e-9)


def test_the_mixture_agrees_with_its_pinned_length_and_says_where_nodes_are_too_few():
    psi, a, b = toy()
    path = spacetime.natural(spacetime.semicircle(a, b, 65))
    found = smooth_geodesic(psi, path)
    assert found.converged and found.length == pytest.approx(6.4080796, abs=1e-7)
    few = smooth_geodesic(psi, path, nodes=33)
    assert abs(few.length - found.length) < few.length_error
    assert few.length_error > 10 * found.length_error


def test_nodes_are_doubled_until_two_lengths_agree():
    psi, a, b = toy()
    path = spacetime.natural(spacetime.semicircle(a, b, 65))
    loose, found = (refined_geodesic(psi, path, tolerance=e, nodes=17) for e in (1, 1e-5))
    assert (len(loose.points), len(found.points)) == (33, 65)
    assert found.converged and found.length == pytest.approx(6.4080796, abs=1e-7)
    assert not refined_geodesic(psi, path, tolerance=0).converged


def test_a_descent_arrives_at_the_same_length_and_too_few_knots_stay_above_it():
    psi, a, b = toy()

    def near(length):
        return abs(length - 6.4080796) < 1e-3

    ends = [spacetime.semicircle(a, b, k) for k in (10, 20)]
    few, many = (descend(psi, spacetime.natural, x, near, steps=300) for x in ends)
    assert near(many[1]) and many[2] < 300 and many[0] > 0
    assert few[1] > 6.4080796 + 5e-3 and few[2] == 300


def test_a_straight_start_that_fails_is_flagged():
    psi, a, b = toy()
    line = torch.lerp(a, b, torch.linspace(0, 1, 65).double()[:, None])
    assert not smooth_geodesic(psi, spacetime.natural(line)).converged


@pytest.mark.parametrize("points", [2, 3])
def test_too_short_a_path_is_refused(points):
    with pytest.raises(ValueError, match="at least 4"):
        smooth_geodesic(lambda eta: eta.square().sum(1), torch.rand(points, 2))
