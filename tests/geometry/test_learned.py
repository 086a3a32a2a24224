"""Routes from features to log Z on Gaussians whose metric is known."""

import numpy as np
import pytest
import torch

from lib.geometry import boxes, learned, metric

BOX = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
T = torch.as_tensor(boxes.uniform_box(BOX, 500, 0))
INNER = torch.tensor([[0.4, 0.5], [0.6, 0.4]], dtype=torch.float64)
SIGMA = 0.2


def test_components_have_unit_spread_and_keep_distances():
    x = torch.as_tensor(np.random.default_rng(0).standard_normal((40, 3, 2, 2)))
    scores, spread = learned.components(x)
    assert float(scores.square().sum(1).mean()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(
        torch.cdist(scores, scores) * spread, torch.cdist(*[x.flatten(1)] * 2)
    )


def test_each_route_finds_the_metric_of_a_gaussian_of_linear_mean():
    noise = torch.randn(T.shape, generator=torch.Generator().manual_seed(0)).double()
    exact = torch.eye(2).double() / SIGMA**2
    phi, width = learned.from_posteriors(T / SIGMA, T, box=BOX, grid=16, steps=400)
    found = {"posteriors": phi, "swaps": learned.from_swaps(T + SIGMA * noise, T)}
    for name, phi in found.items():
        g = metric.fisher_metric(phi, INNER)
        assert float((g - exact).norm(dim=(1, 2)).max()) < 0.5 * float(exact.norm()), name
    assert width == pytest.approx(SIGMA, rel=0.25)


def test_one_step_knows_which_direction_is_seen():
    seen = torch.cat([2 * T[:, :1], 0.1 * T[:, 1:]], 1).float()
    phi = learned.from_noisy(seen, T, 0.3, box=BOX, grid=16, steps=150)
    g = metric.fisher_metric(phi, INNER).mean(0)
    assert float(g[0, 0]) > 5 * float(g[1, 1]) >= 0
