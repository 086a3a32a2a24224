"""Laws of the networks: potentials, windows, statistics and maps of bundles."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from lib.geometry import boxes, posterior
from lib.geometry.networks import (
    BundleNetwork,
    ConvexPotential,
    FreePotential,
    LocalStatistic,
    window_counts,
)
from lib.physics import ising

F64 = torch.float64


def uniform(n, box, seed=0):
    low, high = torch.as_tensor(box, dtype=F64)
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, len(low), dtype=F64, generator=generator)


def hessian(potential, theta):
    return torch.func.vmap(torch.func.hessian(lambda t: potential(t[None])[0]))(theta)


def gradient(potential, theta):
    return torch.func.grad(lambda t: potential(t).sum())(theta)


# Potentials


def rough_potential(d=2, seed=0, scale=7.0):
    """A convex network far from its start, so that no law leans on the initial weights."""
    potential = ConvexPotential([-1.0, 2.0, 0.0][:d], [3.0, 2.5, 9.0][:d], scale, 12, seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in potential.parameters():
            weights += 1.5 * torch.randn(weights.shape, dtype=F64, generator=generator)
        potential.log_sharpness.clamp_(0, math.log(potential.SHARPEST))
    return potential


WIDE = [[-9.0, 0.0, -20.0], [11.0, 4.5, 30.0]]  # five times the box of rough_potential


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_hessian_is_positive_semidefinite_inside_and_outside_the_box(d):
    for seed in range(4):
        box = [row[:d] for row in WIDE]
        h = hessian(rough_potential(d, seed), uniform(200, box, seed))
        eigenvalues = torch.linalg.eigvalsh(h)
        assert eigenvalues.min() >= -1e-12 * eigenvalues.max()
        assert (eigenvalues.amax(1) > 1e-3).double().mean() > 0.05


def test_the_potential_lies_below_every_chord():
    potential = rough_potential()
    a, b = (uniform(2000, [row[:2] for row in WIDE], seed) for seed in (1, 2))
    weight = uniform(2000, [[0.0], [1.0]], 3)[:, 0]
    inside = potential(weight[:, None] * a + (1 - weight[:, None]) * b)
    chord = weight * potential(a) + (1 - weight) * potential(b)
    assert (inside - chord).max() < 1e-7 and (inside - chord).min() < -1


def test_the_curvature_along_a_line_adds_up_to_the_change_of_slope():
    """A kink would change the slope where no Hessian sees it."""
    potential, low, high = rough_potential(), *torch.tensor([[-1.0, 2.0], [3.0, 2.5]], dtype=F64)
    line = low + (high - low) * torch.linspace(0, 1, 20001, dtype=F64)[:, None]
    curvature = hessian(potential, line).detach() @ (high - low)
    change = gradient(potential, high[None]) - gradient(potential, low[None])
    added = torch.trapezoid(curvature, dx=1 / 20000, dim=0)
    torch.testing.assert_close(added, change[0].detach(), rtol=1e-4, atol=0)


def test_a_plain_relu_potential_has_no_hessian():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    trap = nn.Sequential(layers, nn.Linear(64, 1), nn.Flatten(0)).double()
    t = uniform(100, [[-1.0, 2.0], [3.0, 2.5]])
    assert hessian(trap, t).abs().max() == 0 and gradient(trap, t).std(0).min() > 0
    assert hessian(ConvexPotential([-1, 2], [3, 2.5], 1).double(), t).diagonal(0, 1, 2).min() > 0


KINDS = (ConvexPotential, FreePotential)


@pytest.mark.parametrize("kind", KINDS)
def test_the_box_only_fixes_the_units_and_the_scale_only_the_size(kind):
    t = uniform(50, [[-1.0, -1.0], [1.0, 1.0]])
    unit = kind([-1, -1], [1, 1], 1).double()
    moved = kind([4, -8], [12, -7.5], 100).double()
    theta = torch.tensor([8.0, -7.75], dtype=F64) + t * torch.tensor([4.0, 0.25], dtype=F64)
    torch.testing.assert_close(moved(theta), 100 * unit(t))


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_and_the_weights_are_all_there_is_to_a_potential(kind):
    potential = kind([-1.0, 2.0], [3.0, 2.5], 7.0, 12, 3).double()
    with torch.no_grad():
        for weights in potential.parameters():
            weights += 0.1
    rebuilt = kind(**potential.config).double()
    t = uniform(50, [[-1.0, 2.0], [3.0, 2.5]])
    assert not torch.equal(rebuilt(t), potential(t))
    rebuilt.load_state_dict(potential.state_dict())
    assert torch.equal(rebuilt(t), potential(t))
    used = torch.autograd.grad(potential(t).sum(), list(potential.parameters()), allow_unused=True)
    assert all(part is not None for part in used)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_give_different_potentials_and_one_seed_the_same(kind):
    state = torch.get_rng_state()
    a, b, c = (kind([0, 0], [1, 1], 1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    t = uniform(20, [[0.0, 0.0], [1.0, 1.0]])
    assert torch.equal(a(t), b(t)) and not torch.allclose(a(t), c(t), rtol=1e-3)


# Windows


def random_states(*shape, seed=0, low=-1):
    generator = torch.Generator().manual_seed(seed)
    up = (torch.rand(shape, generator=generator) < 0.3).to(torch.int8)
    return up if low == 0 else 2 * up - 1


def naive_counts(sample):
    """Frequencies by plain loops; bit 3i + j is site (i, j) of a window, bit i that of a chain."""
    up, sites = (sample > 0).tolist(), range(len(sample))
    if sample.ndim == 2:
        n, offsets = len(up), list(itertools.product(range(3), repeat=2))
        windows = [[up[(r + i) % n][(c + j) % n] for i, j in offsets] for r in sites for c in sites]
    else:
        windows = [up[r : r + 3] for r in sites[:-2]]
    counts = [0.0] * 2 ** len(windows[0])
    for window in windows:
        counts[sum(state << k for k, state in enumerate(window))] += 1 / len(windows)
    return torch.tensor(counts)


@pytest.mark.parametrize("shape", [(5, 6, 6), (5, 3, 3), (5, 17), (5, 3)])
@pytest.mark.parametrize("low", [-1, 0])
def test_window_counts_are_the_naive_counts(shape, low):
    samples = random_states(*shape, low=low)
    counts = window_counts(samples)
    torch.testing.assert_close(counts, torch.stack([naive_counts(x) for x in samples]))
    torch.testing.assert_close(counts.sum(1), torch.ones(5))


def test_lattice_windows_do_not_move_with_the_lattice():
    samples = random_states(20, 7, 7)
    shifted = samples.roll((2, -3), (1, 2))
    assert torch.equal(window_counts(shifted), window_counts(samples))
    assert not torch.equal(window_counts(samples.mT), window_counts(samples))


def test_an_open_chain_is_read_from_left_to_right_and_does_not_wrap():
    left = torch.zeros(1, 9, dtype=torch.uint8)
    left[0, 0] = 1
    expected = torch.zeros(8)
    expected[0b001], expected[0] = 1 / 7, 6 / 7  # bit 0 is the leftmost site of a window
    torch.testing.assert_close(window_counts(left)[0], expected)
    assert window_counts(left.flip(1))[0, 0b100] > 0 and window_counts(left.flip(1))[0, 0b001] == 0


@pytest.mark.parametrize("shape", [(9, 6, 6), (9, 17)])
def test_a_global_flip_complements_the_windows(shape):
    samples = random_states(*shape)
    assert torch.equal(window_counts(-samples), window_counts(samples).flip(1))


def test_window_counts_do_not_depend_on_the_batch():
    samples = random_states(1500, 4, 4)
    parts = torch.cat([window_counts(part) for part in samples.split(7)])
    assert torch.equal(window_counts(samples), parts)


@pytest.mark.parametrize("shape", [(4, 5, 5), (4, 12)])
def test_the_statistic_is_the_mean_of_its_function_over_the_windows(shape):
    samples, statistic = random_states(*shape), LocalStatistic(len(shape) - 1, 2, seed=3)
    if len(shape) == 3:
        padded = torch.cat([samples, samples[:, :2]], 1)
        windows = torch.cat([padded, padded[:, :, :2]], 2).unfold(1, 3, 1).unfold(2, 3, 1)
    else:
        windows = samples.unfold(1, 3, 1)
    bits = 3 ** (len(shape) - 1)
    with torch.no_grad():
        direct = statistic.u(windows.reshape(4, -1, bits).float()).mean(1)
        torch.testing.assert_close(statistic(window_counts(samples)), direct)


# Bundles


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
    nodes = torch.tensor(box[0]) + torch.tensor(box[1] - box[0]) * boxes.cells(grid)
    log_z = torch.tensor(ising.log_partition(*nodes.numpy().T, 4))
    statistics = torch.tensor(ising.observables(lattices)).double()
    exact = (statistics @ nodes.T - log_z).log_softmax(1)
    divergence = (exact.exp() * (exact - maps.log())).sum(1).mean().item()
    information = (exact.exp() * exact).sum(1).mean().item() + 2 * math.log(grid)
    assert divergence < 0.05 * information
