"""Rival statistics, on families whose answer is known."""

import numpy as np
import pytest
import torch

from lib.geometry import baselines

F64 = torch.float64
BOX = torch.tensor([[-1.0, -0.5], [1.0, 1.5]], dtype=F64)


def uniform(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return BOX[0] + (BOX[1] - BOX[0]) * torch.rand(n, 2, dtype=F64, generator=generator)


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
    found = baselines.vae_components(x, steps=150)
    assert found.values.shape == (4000, 2)
    assert abs(np.corrcoef(found.values[:, 0], x.mean((1, 2)))[0, 1]) > 0.9
    variance = found.values.var(0)
    assert variance[0] > variance[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, t: baselines.vae_components(x + 1), r"states \[2.0\]"),
        (lambda x, t: baselines.posterior_mean(x, t[1:]), "10 samples for theta of shape"),
        (lambda x, t: baselines.posterior_mean(x, 0 * t), "column of theta is constant"),
        (lambda x, t: baselines.posterior_mean(x, t, seed=None), "seed=None"),
        (lambda x, t: baselines.posterior_mean(x[:, :2], t), "at least 3 sites"),
    ],
)
def test_the_rivals_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((10, 4, 4)), uniform(10))
