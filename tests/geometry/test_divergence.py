"""The one-step estimator in divergence form, on a chain of coins and its own identities."""

import numpy as np
import pytest
import torch

from lib.geometry import divergence, potential
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": [[0.4], [0.6]]}, "outside the box"),
        ({"steps": 3}, "steps=3"),
        ({"natural": lambda t: t * float("nan")}, "not finite"),
        ({"natural": lambda t: t.numpy()}, "returned ndarray"),
        ({"points": 12.5}, "points=12.5"),
        ({"pieces": 1}, "pieces=1"),
        ({"batch": 0}, "batch=0"),
        ({"seed": None}, "seed=None"),
        ({"n": 2}, "2 samples are too few"),
    ],
)
def test_it_refuses_what_the_direct_fit_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        fitted(**({"n": 50} | change))
