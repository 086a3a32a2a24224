"""Symmetries of the posterior network, and how close it comes to an exact posterior."""

import math

import numpy as np
import pytest
import torch

from lib.geometry import posterior
from lib.geometry.bundles import BundleNetwork
from lib.geometry.cells import cells
from lib.physics import ising


def spins(*shape, seed=0):
    return torch.randint(2, shape, generator=torch.Generator().manual_seed(seed)).float() * 2 - 1


def test_the_order_of_the_members_does_not_matter():
    network, bundle = BundleNetwork(1, 5), spins(3, 4, 6, 6)
    torch.testing.assert_close(network(bundle), network(bundle[:, [2, 0, 3, 1]]))


def test_channels_of_a_member_stay_together():
    network, bundle = BundleNetwork(2, 5), spins(3, 6, 4, 4)
    whole = bundle.unflatten(1, (3, 2))
    torch.testing.assert_close(network(bundle), network(whole[:, [1, 2, 0]].flatten(1, 2)))
    assert not torch.allclose(network(bundle), network(whole.flip(2).flatten(1, 2)))


@pytest.mark.parametrize("periodic", [True, False])
def test_only_on_a_torus_may_a_lattice_be_rolled(periodic):
    network, bundle = BundleNetwork(1, 5, periodic=periodic), spins(3, 1, 6, 6)
    same = torch.allclose(network(bundle), network(bundle.roll((1, 2), (2, 3))), atol=1e-6)
    assert same == periodic


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    one, again, other = (BundleNetwork(1, 4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    x = spins(2, 1, 4, 4)
    assert torch.equal(one(x), again(x)) and not torch.equal(one(x), other(x))


def test_it_nears_the_exact_posterior_of_ising():
    """Held-out cross-entropy against that of the exact posterior, 4 x 4 lattices, one member."""
    box, grid, n = np.array([[0.1, -0.3], [0.6, 0.3]]), 12, 4_000
    t = np.random.default_rng(0).uniform(*box, (n, 2))
    lattices = ising.sample(*t.T, 4, seed=0)
    network = BundleNetwork(1, grid, periodic=True)
    sizes = {"bundle": 1, "neighbours": 1, "bump": None, "steps": 300}
    fitted = posterior.fit(lattices, t, box=box, grid=grid, network=network, **sizes)
    fresh = np.random.default_rng(1).uniform(*box, (1_000, 2))
    lattices = ising.sample(*fresh.T, 4, seed=1)
    maps = fitted.maps(lattices, fresh).flatten(1).double()
    nodes = torch.tensor(box[0]) + torch.tensor(box[1] - box[0]) * cells(grid)
    log_z = torch.tensor(ising.log_partition(*nodes.numpy().T, 4))
    statistics = torch.tensor(ising.observables(lattices)).double()
    exact = (statistics @ nodes.T - log_z).log_softmax(1)
    divergence = (exact.exp() * (exact - maps.log())).sum(1).mean().item()
    information = (exact.exp() * exact).sum(1).mean().item() + 2 * math.log(grid)
    assert divergence < 0.05 * information
