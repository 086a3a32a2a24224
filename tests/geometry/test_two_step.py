"""Laws of the log Z fitted to posterior maps, against exact families."""

import math

import pytest
import torch
from families import (
    BOX,
    F64,
    SIGMA,
    categorical,
    centres,
    exact_maps,
    gaussian_maps,
    hessian,
    mean_parameter,
    rms,
    uniform,
)

from lib.geometry.metric import fisher_metric
from lib.geometry.networks import FreePotential
from lib.geometry.potential import align_affine
from lib.geometry.two_step import centroids, fit_posteriors


def test_perfect_maps_give_back_log_z_and_its_hessian():
    count, t = 60, uniform(1000)
    fit = fit_posteriors(exact_maps(categorical, t, 24, count), t, box=BOX, count=count, steps=700)
    places = centres(16)
    with torch.no_grad():
        values = fit.potential(places)
    aligned = align_affine(values, categorical(places), places)(values, places)
    spread = align_affine(0 * values, categorical(places), places)(0 * values, places)
    assert rms(aligned - categorical(places)) < 0.01 * rms(spread - categorical(places))
    exact = hessian(categorical, places)
    error = (hessian(fit.potential, places) - exact).flatten(1).norm(dim=1)
    assert (error / exact.flatten(1).norm(dim=1)).median() < 0.08
    assert fit.history["held_out"][-1] < 1e-3 < math.log(2)


def test_the_count_turns_the_potential_of_a_bundle_into_that_of_a_sample():
    t = uniform(400)
    maps = exact_maps(categorical, t, 16, 30)
    one, many = (fit_posteriors(maps, t, box=BOX, count=n, steps=150) for n in (1, 30))
    places = centres(8)
    with torch.no_grad():
        torch.testing.assert_close(
            one.potential(places), 30 * many.potential(places), rtol=1e-2, atol=0.05
        )


def test_natural_coordinates_make_other_parameters_exponential():
    """Maps over t with θ = (t₀³/2, t₁): the potential belongs to θ."""

    def natural(t):
        return torch.stack([t[:, 0] ** 3 / 2, t[:, 1]], 1)

    def potential(theta):
        return theta.square().sum(1) / 2

    t = uniform(1000)
    theta, nodes = natural(t), natural(centres(24))
    maps = (20 * (theta @ nodes.T - potential(nodes))).softmax(1).view(-1, 24, 24)
    fit = fit_posteriors(maps, t, box=BOX, count=20, natural=natural, steps=500)
    inner = natural(BOX.mean(0) + 0.8 * (centres(8) - BOX.mean(0)))
    h = hessian(fit.potential, inner)
    assert (h - torch.eye(2, dtype=F64)).abs().flatten(1).amax(1).median() < 0.1
    assert fit.natural is natural


def test_the_statistic_of_a_map_is_the_mean_parameter_up_to_a_constant():
    t = uniform(800)
    maps = exact_maps(categorical, t, 24, 100)
    fit = fit_posteriors(maps, t, box=BOX, count=100, steps=400)
    inner = ((t - BOX.mean(0)).abs() < 1.2).all(1)
    difference = (fit.statistic(maps) - mean_parameter(categorical, t))[inner]
    assert rms(difference - difference.mean(0)) < 0.02
    assert rms(mean_parameter(categorical, t)[inner].std(0)) > 0.1


def test_maps_that_scatter_need_their_own_centroids():
    """The true parameters blur the fit, curvatures fall short; the centroids restore them."""
    t = uniform(1200)
    maps = exact_maps(categorical, t, 24, 100, noise=1.0)
    inner = BOX.mean(0) + 0.7 * (centres(8) - BOX.mean(0))
    exact = hessian(categorical, inner).diagonal(0, 1, 2).sum(1)

    def ratio(labels):
        fit = fit_posteriors(maps, labels, box=BOX, count=100, steps=400)
        return (hessian(fit.potential, inner).diagonal(0, 1, 2).sum(1) / exact).median().item()

    assert ratio(t) < 0.8
    assert ratio(centroids(maps, BOX)) == pytest.approx(1, abs=0.1)


def test_without_the_constraint_the_second_step_may_be_non_convex_and_still_finds_log_z():
    start = FreePotential([-1, -1], [1, 1], 1.0, seed=3).double()
    box = torch.tensor([[-1.0, -0.5], [1.0, 1.5]], dtype=F64)
    t = uniform(600, box)
    assert torch.linalg.eigvalsh(fisher_metric(start, t)).min() < 0
    maps = gaussian_maps(t, 20, box, 10**-0.5)
    fit = fit_posteriors(maps, t, box=box, convex=False, steps=200)
    g = fisher_metric(fit.potential, uniform(100, box, 3) * 0.7)
    assert g.diagonal(0, 1, 2).mean() == pytest.approx(10, rel=0.15)


T20 = uniform(20)
SHARP = gaussian_maps(T20, 16, sigma=SIGMA / 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(maps=2 * SHARP), "sums to 2"),
        (dict(maps=SHARP / 0), "no probabilities"),
        (dict(maps=torch.cat([SHARP + 1, SHARP[:, :1] - 16], 1)), "one map per row|no prob"),
        (dict(maps=1.5 * SHARP - 0.5 * SHARP.flip(1)), "no probabilities"),
        (dict(maps=SHARP[:, :8]), "shape"),
        (dict(maps=SHARP[:19]), "19, 16, 16"),
        (dict(box=[[-20.0, -10.0], [20.0, 30.0]]), "another box"),
        (dict(box=[[-1.0, -1.0], [1.0, 1.0]]), "outside the box"),
        (dict(maps=SHARP.mT), "axes swapped"),
        (dict(count=0), "count=0"),
        (dict(steps=0), "steps=0"),
        (dict(batch=0.5), "batch=0.5"),
        (dict(seed=None), "seed=None"),
        (dict(natural=lambda t: t[:, :1]), "returned"),
        (dict(maps=SHARP + 0j), "maps is complex"),
    ],
)
def test_the_second_step_refuses(change, message):
    given = {**dict(maps=SHARP, t=T20, box=BOX, steps=2), **change}
    with pytest.raises(ValueError, match=message):
        fit_posteriors(given.pop("maps"), given.pop("t"), **given)
