"""Clones and separations against two Gaussian classes, where both have a closed form."""

import numpy as np
import pytest
import torch

from lib.diffusion import decisions, mixture


def test_the_clone_curve_has_its_known_values():
    known = {1: 0.602, 1.5: 0.690, 2: 0.775, 3: 0.901, 4: 0.966}
    assert np.allclose(decisions.clone_agreement(list(known)), list(known.values()), atol=6e-4)
    assert np.isclose(decisions.clone_agreement(0.0, 0.1), 0.82)
    assert decisions.clone_agreement(12.0, 0.3) > 0.999
    rng = np.random.default_rng(0)
    first = rng.random(400_000) < 0.3
    x = np.where(first, 1.0, -1.0) * 1.25 + rng.standard_normal(len(first))  # D = 2.5
    p = 1 / (1 + np.exp(-np.log(0.3 / 0.7) - 2.5 * x))
    drawn = (p**2 + (1 - p) ** 2).mean()
    assert np.isclose(decisions.clone_agreement(2.5, 0.3), drawn, atol=2e-3)


@pytest.mark.parametrize(("d", "share"), [(-1.0, 0.5), (1.0, 0.0), (1.0, 1.0)])
def test_impossible_separations_are_refused(d, share):
    with pytest.raises(ValueError, match="share"):
        decisions.clone_agreement(d, share)


def test_the_separation_of_gaussian_classes_is_the_closed_form():
    rng = np.random.default_rng(1)
    n, delta, spread = 4000, np.array([1.5, 0.5, 0, 0, 0, 0]), np.array([1.0, 0.3, 1, 2, 0.5, 1])
    labels = rng.random(n) < 0.4
    x = labels[:, None] * delta + spread * rng.standard_normal((n, 6))
    alphas = np.array([0.01, 0.3, 0.9])[:, None]
    exact = (alphas * delta**2 / (alphas * spread**2 + 1 - alphas)).sum(1) ** 0.5
    assert np.allclose(decisions.separation(x, labels, alphas[:, 0]), exact, rtol=0.06)
    shuffled = decisions.separation(x, rng.permutation(labels), alphas[:, 0])
    assert (shuffled < 0.15).all()


def test_a_half_without_a_class_is_refused():
    with pytest.raises(ValueError, match="two of each"):
        decisions.separation(np.ones((8, 3)), np.zeros(8), [0.5])


def test_clones_of_two_modes_agree_as_often_as_the_curve_says():
    m = torch.full((1, 1, 2, 2), 0.5).double()  # modes of width 0.5, 2 apart
    model = mixture.mixture(torch.cat([-m, m]), 0.5)
    rng = torch.Generator().manual_seed(0)
    sign = torch.randint(2, (600, 1, 1, 1), generator=rng) * 2 - 1
    x = sign * m + 0.5 * torch.randn(600, 1, 2, 2, generator=rng, dtype=torch.float64)
    for t in (200, 400):
        found = decisions.clones(model, x, t, steps=100, batch=600)
        a, b = ((y * m).sum((1, 2, 3)) > 0 for y in found)
        alpha = model.alpha(t)
        d = (alpha * 4 / (alpha * 0.25 + 1 - alpha)) ** 0.5
        assert abs(float((a == b).double().mean()) - decisions.clone_agreement(d)) < 0.06
