"""Reweighting, on a family whose answer is known."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.geometry import reweighting
from lib.geometry.metric import fisher_metric
from lib.geometry.potential import align_affine

F64 = torch.float64
ROOT = Path(__file__).resolve().parents[2]
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


def misfit(potential, theta):
    """RMSE of an affinely aligned potential."""
    align = align_affine(potential(theta), spins_log_z(theta), theta)
    error = align(potential(theta), theta) - spins_log_z(theta)
    return error.square().mean().sqrt().item()


@pytest.fixture(scope="module")
def spin_solution():
    t = uniform(4000)
    return reweighting.reweight(spins(t), t)


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
    shifted = reweighting.reweight(spins(t) + torch.tensor([5.0, -2.0]), t)
    hessians = [part.moments(theta)[2] for part in (spin_solution, shifted)]
    torch.testing.assert_close(*hessians, rtol=1e-4, atol=1e-4)
    scaled = reweighting.reweight(spins(t), 3 * t, natural=lambda t: t / 3)
    torch.testing.assert_close(
        scaled.moments(theta)[2], spin_solution.moments(theta)[2], rtol=1e-4, atol=1e-4
    )


def test_more_samples_come_closer():
    theta, errors = uniform(100, seed=3), []
    for n in (300, 8000):
        t = uniform(n, seed=5)
        errors.append(misfit(reweighting.reweight(spins(t, seed=6), t), theta))
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("cells", [60, 400])
def test_the_error_is_that_of_the_samples(cells):
    """Over independent data sets the deviations from the exact log Z average out, and are small."""
    theta, errors = uniform(40, seed=3), []
    exact = spins_log_z(theta)
    for seed in range(8):
        t = uniform(2000, seed=10 + seed)
        values = reweighting.reweight(spins(t, seed=seed), t, cells=cells)(theta)
        errors.append(align_affine(values, exact, theta)(values, theta) - exact)
    errors = torch.stack(errors)
    spread = errors.std(0)
    assert (errors.mean(0) / spread * 8**0.5).square().mean().sqrt() < 2
    assert spread.max() < 0.03 * exact.std()


def test_labels_that_repeat_are_the_states():
    """With two states the equations read e^{φ₁ − φ₀} from both; Bennett's ratio solves them."""
    theta = torch.tensor([[0.0], [0.3]], dtype=F64).repeat_interleave(torch.tensor([700, 300]), 0)
    f = torch.randn(1000, 1, dtype=F64, generator=torch.Generator().manual_seed(0)) + theta
    found = reweighting.reweight(f, theta, tolerance=1e-12)
    low, high = found(torch.tensor([[0.0], [0.3]]))
    work = 0.3 * f[:, 0] - (high - low) + math.log(3 / 7)
    assert torch.sigmoid(work).sum().item() == pytest.approx(300, abs=1e-6)
    cell = reweighting.label_cells(theta, f, 400)
    assert len(cell.unique()) == 2 and len(cell[:700].unique()) == len(cell[700:].unique()) == 1


def test_any_prior_of_the_labels_serves(spin_solution):
    t = uniform(8000)
    slanted = t[
        torch.rand(len(t), generator=torch.Generator().manual_seed(1)) < 0.6 + 0.4 * t[:, 0]
    ]
    theta = uniform(100, seed=3)
    assert misfit(reweighting.reweight(spins(slanted), slanted), theta) < 2 * misfit(
        spin_solution, theta
    )


def test_cells_are_small_where_samples_know_their_label():
    """Ten times the statistic for positive labels: there most of the cells lie."""
    t = torch.linspace(-1, 1, 1000, dtype=F64)[:, None]
    cell = reweighting.label_cells(t, torch.where(t > 0, 10 * t, t), 40)
    assert len(cell.unique()) == 40
    assert len(cell[t[:, 0] > 0].unique()) > 2 * len(cell[t[:, 0] < 0].unique())


def call(**change):
    t = uniform(50)
    return reweighting.reweight(**({"statistics": spins(t), "t": t} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"statistics": torch.zeros(50, 3)}, "expected .n, d. twice"),
        ({"statistics": torch.full((50, 2), math.nan)}, "not finite"),
        ({"t": torch.full((50, 2), math.inf)}, "not finite"),
        ({"cells": 0}, "cells=0"),
        ({"natural": lambda t: t[:, :1]}, r"natural\(t\) returned"),
        (
            {"statistics": 2000 * uniform(50).sign(), "t": uniform(50).sign()},
            "groups that .* samples bridge",
        ),
    ],
)
def test_reweighting_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        call(**change)


@pytest.mark.parametrize(
    ("theta", "message"),
    [
        ([0.0, 0.0], r"shape \(2,\).*theta\[None\] for one point"),
        (torch.zeros(2, 3), r"shape \(2, 3\); this log Z takes \(n, 2\)"),
        ([[0.0, float("nan")]], r"theta\[0\] = .* not finite"),
    ],
)
def test_log_z_and_its_moments_refuse_what_are_no_points_of_the_fit(theta, message):
    log_z = reweighting.Reweighted(torch.eye(2).double(), torch.zeros(2).double())
    for call in (log_z, log_z.moments):
        with pytest.raises(ValueError, match=message):
            call(theta)


MANY = """
import resource, torch
from lib.geometry.reweighting import Reweighted
own = torch.Generator().manual_seed(0)
small = [torch.zeros(k) for k in range(1000, 3000)]  # a heap with gaps, as a notebook has it
family = Reweighted(torch.randn(8_000, 2, generator=own).double(), torch.zeros(8_000).double())
points = torch.randn(12_800, 2, generator=own).double()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
family.moments(points)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is another elsewhere")
def test_memory_does_not_grow_with_the_number_of_points():
    done = subprocess.run([sys.executable, "-c", MANY], cwd=ROOT, capture_output=True, text=True)
    block = reweighting.ROWS * 8_000 * 8 / 1024  # kB; all blocks together are fifty times as large
    assert int(done.stdout) < 16 * block, done.stderr
