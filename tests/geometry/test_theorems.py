"""Theorems 3.1 and 3.2 measured on exact families, and what both are made of."""

import math

import numpy as np
import pytest
import torch
from families import BOX, F64, SIGMA, categorical, centres, exact_maps, hessian, uniform
from torch import nn

from lib.geometry import theorems
from lib.geometry.networks import ConvexPotential
from lib.geometry.potential import bregman
from lib.geometry.theorems import posterior_convergence

SQUARE = torch.tensor([[-1.0, -0.5], [1.0, 1.5]], dtype=F64)


def test_the_divergence_of_log_z_is_the_kl_divergence():
    t, t0 = uniform(200, seed=1), uniform(200, seed=2)

    def outcomes(t):
        return torch.cat([torch.zeros(len(t), 1, dtype=F64), t + torch.tensor([0, math.log(2)])], 1)

    p, q = outcomes(t0).log_softmax(1), outcomes(t).log_softmax(1)
    torch.testing.assert_close(bregman(categorical, t, t0), (p.exp() * (p - q)).sum(1))
    assert bregman(categorical, t, t0).min() > 0
    assert bregman(categorical, t, t).abs().max() == 0
    torch.testing.assert_close(
        bregman(lambda s: s.square().sum(1) / 2, t, t0), (t - t0).square().sum(1) / 2
    )
    torch.testing.assert_close(
        bregman(categorical, t, t0[:1]), bregman(categorical, t, t0[:1].expand(200, -1))
    )


def test_affine_functions_change_neither_divergence_nor_map_nor_hessian():
    t, t0 = uniform(100, seed=1), uniform(100, seed=2)
    network = ConvexPotential(*BOX.tolist(), 5.0).double()

    def moved(s):
        return network(s) + s @ torch.tensor([3.0, -7.0], dtype=F64) + 11

    torch.testing.assert_close(bregman(moved, t, t0), bregman(network, t, t0))
    torch.testing.assert_close(exact_maps(moved, t, 8, 5), exact_maps(network, t, 8, 5))
    torch.testing.assert_close(hessian(moved, t), hessian(network, t))


def gaussian_potential(t):
    return (t * SIGMA).square().sum(1) / 2


def draws(family, t0, repeats, n):
    """Statistics of independent samples, (repeats, n, 2)."""
    generator = torch.Generator().manual_seed(4)
    if family is gaussian_potential:
        noise = torch.randn(repeats, n, 2, dtype=F64, generator=generator)
        return t0 * SIGMA**2 + SIGMA * noise
    weights = torch.tensor([1.0, t0[0].exp(), 2 * t0[1].exp()], dtype=F64)
    outcomes = torch.multinomial(weights.expand(repeats, 3), n, True, generator=generator)
    return nn.functional.one_hot(outcomes, 3)[:, :, 1:].double()


@pytest.mark.parametrize("family", [gaussian_potential, categorical])
def test_the_root_of_the_normalised_posterior_tends_to_the_divergence_and_no_other(family):
    t0 = torch.tensor([0.4, 0.7], dtype=F64)
    f = draws(family, t0, 60, 16_384)
    found = posterior_convergence(family, f, t0, box=BOX, grid=24, least=64)
    low, high = found.interval
    assert low - 0.03 < -0.5 < high + 0.02 and high - low < 0.1
    for wrong in (lambda t: 1.2 * family(t), lambda t: (t**4).sum(1)):
        assert posterior_convergence(family, f, t0, box=BOX, claimed=wrong, least=64).slope > -0.3


def test_the_evidence_is_integrated_at_every_number_of_samples():
    """Of a Gaussian with mean statistic ∇φ(t₀) all is known: p^{1/N} is e^{−D} (N/2π)^{d/2N} ..."""
    t0, f = torch.zeros(2, dtype=F64), torch.zeros(1, 4096, 2, dtype=F64)
    box = torch.tensor([[-2.0, -2.0], [2.0, 2.0]])
    found = posterior_convergence(gaussian_potential, f, t0, box=box, grid=48)
    t = centres(48, box)
    root = torch.exp(-gaussian_potential(t))
    for n, error in list(zip(found.counts, found.error[0], strict=True))[4::4]:
        density = (16 * n / (2 * math.pi) * SIGMA.prod()) ** (1 / n)
        expected = ((density - 1) * root).square().mean().sqrt().item()
        assert error == pytest.approx(expected, rel=0.02)


def test_the_gauge_of_log_z_does_not_show_in_the_theorem():
    """φ + ⟨b, t⟩ + a with f + b is the same family."""
    t0, shift = torch.tensor([0.4, 0.7], dtype=F64), torch.tensor([2.0, -3.0], dtype=F64)
    f = draws(categorical, t0, 3, 64)
    plain = posterior_convergence(categorical, f, t0, box=BOX, grid=8)
    moved = posterior_convergence(
        lambda t: categorical(t) + t @ shift + 5, f + shift, t0, box=BOX, grid=8
    )
    np.testing.assert_allclose(moved.error, plain.error, rtol=1e-8)


def test_the_theorem_refuses_what_it_cannot_measure():
    f, t0 = torch.zeros(2, 8, 2), torch.zeros(2)
    for change, message in [
        (dict(statistics=f[0]), "shapes"),
        (dict(t0=t0 + 9), "not inside"),
        (dict(least=8), "least=8"),
    ]:
        given = {**dict(statistics=f, t0=t0, box=BOX), **change}
        with pytest.raises(ValueError, match=message):
            posterior_convergence(
                gaussian_potential, given.pop("statistics"), given.pop("t0"), **given
            )
    with pytest.raises(ValueError, match="shape"):
        bregman(categorical, torch.zeros(3, 2), torch.zeros(2, 2))


def test_affine_functions_open_neither_gap():
    def moved(t):
        return categorical(t) + t @ torch.tensor([3.0, -7.0], dtype=F64) + 11

    def first(t):
        return categorical(t)

    assert theorems.divergence_gap(first, moved, box=SQUARE, grid=8) < 1e-12
    assert theorems.hessian_gap(first, moved, box=SQUARE, grid=8) < 1e-12


def test_the_gaps_of_two_gaussian_families_are_what_integration_says():
    def parabola(a):
        return lambda t: a * t.square().sum(1) / 2

    assert theorems.hessian_gap(parabola(1.0), parabola(3.0), box=SQUARE) == pytest.approx(
        2 * math.sqrt(2)
    )
    square = (uniform(20_000, SQUARE, 1) - uniform(20_000, SQUARE, 2)).square().sum(1) / 2
    exact = ((-square).exp() - (-3 * square).exp()).square().mean().sqrt().item()
    found = theorems.divergence_gap(parabola(1.0), parabola(3.0), box=SQUARE)
    assert found == pytest.approx(exact, rel=0.02)


def test_ripples_close_the_divergence_gap_and_not_the_hessian_gap():
    def rippled(k):
        return lambda t: t.square().sum(1) / 2 + torch.cos(k * t[:, 0]) / (2 * k**2)

    def plain(t):
        return t.square().sum(1) / 2

    gaps = [theorems.divergence_gap(plain, rippled(k), box=SQUARE, grid=20) for k in (4.0, 32.0)]
    assert gaps[1] < gaps[0] / 6
    assert theorems.hessian_gap(plain, rippled(32.0), box=SQUARE, grid=50) > 0.45


def test_the_gaps_refuse_what_is_no_box():
    with pytest.raises(ValueError, match="lower corner first"):
        theorems.hessian_gap(categorical, categorical, box=[[1.0], [0.0]])
