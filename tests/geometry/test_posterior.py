"""Laws of posterior maps, against exact families."""

import math

import numpy as np
import pytest
import torch
from families import BOX, F64, SIGMA, centres, gaussian_maps, hessian, rms, uniform
from torch import nn

from lib.geometry import posterior
from lib.geometry.boxes import cells, unit_square
from lib.geometry.networks import BundleNetwork
from lib.geometry.two_step import centroids, fit_posteriors

# The feature route


def test_gaussian_features_give_the_exact_posterior():
    grid = 16
    t = centres(grid)
    maps = posterior.from_features(5 + t / SIGMA, t, box=BOX, grid=grid)
    torch.testing.assert_close(maps, gaussian_maps(t, grid), rtol=1e-9, atol=1e-12)


def test_feature_maps_of_scattered_samples_are_the_exact_posterior_too():
    t = uniform(1500)
    maps = posterior.from_features(5 + t / SIGMA, t, box=BOX, grid=12)
    assert (maps - gaussian_maps(t, 12)).abs().max() < 2e-3 * gaussian_maps(t, 12).max()


def test_a_rotated_or_shifted_feature_space_gives_the_same_maps():
    t = uniform(500)
    features = torch.cat([t / SIGMA, torch.ones(500, 3, dtype=F64)], 1)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=F64, generator=torch.manual_seed(0))).Q
    maps = [
        posterior.from_features(x, t, box=BOX, grid=8) for x in (features, features @ turn + 0.3)
    ]
    torch.testing.assert_close(*maps)


@pytest.mark.parametrize("density", [True, False])
def test_doubling_the_samples_doubles_every_log_ratio(density):
    t = uniform(900)
    once, twice, four = (
        posterior.from_features(2 + t / SIGMA, t, box=BOX, grid=8, density=density, count=n)
        .flatten(1)
        .log()
        for n in (1, 2, 4)
    )
    ratio = [x - x[:, :1] for x in (once, twice, four)]
    torch.testing.assert_close(ratio[2] - ratio[1], 2 * (ratio[1] - ratio[0]))
    if density:
        torch.testing.assert_close(ratio[1], 2 * ratio[0])


def test_the_density_correction_removes_the_pull_of_uneven_sampling():
    """Sampling density ∝ e^{−2 t₀} would move a posterior of variance s² by −2 s²."""
    unit = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=F64)
    u = uniform(6000, unit)
    t = torch.stack([-torch.log(1 - u[:, 0] * (1 - math.exp(-2))) / 2, u[:, 1]], 1)
    inside = ((t > 0.35) & (t < 0.65)).all(1)
    shift = {}
    for density in (True, False):
        maps = posterior.from_features(1 + t / 0.1, t, box=unit, grid=20, density=density)
        shift[density] = (centroids(maps, unit) - t)[inside].mean(0)
    assert shift[True].abs().max() < 1e-3
    assert abs(shift[False][0] + 2 * 0.1**2) < 3e-3 and abs(shift[False][1]) < 5e-3


def test_an_empty_cell_takes_the_feature_of_the_nearest_sample():
    t = uniform(2000)
    t = t[~((t[:, 0] > 0.5) & (t[:, 1] > 1.5))]
    for density in (True, False):
        maps = posterior.from_features(3 + t / 2, t, box=BOX, grid=16, density=density)
        torch.testing.assert_close(maps.sum((1, 2)), torch.ones(len(t), dtype=F64))
        assert bool((maps[:, 13:, 13:] == 0).all()) is not density


# The trained route


class GaussianReader(nn.Module):
    """Maps centred at the mean of the two halves of a bundle; learns their precisions only."""

    def __init__(self, grid):
        super().__init__()
        self.log_precision = nn.Parameter(torch.full((2,), 4.0))
        self.register_buffer("cells", cells(grid).float())
        self.grid = grid

    def forward(self, x):
        half = x.shape[3] // 2
        u = torch.stack([x[..., :half].mean((1, 2, 3)), x[..., half:].mean((1, 2, 3))], 1)
        distance = (u[:, None] - self.cells).square() @ self.log_precision.exp()
        return -distance.view(-1, self.grid, self.grid) / 2


def readings(t, deviation, box=BOX, size=4, seed=5):
    """Images whose left half shows t₀ and whose right half t₁, in the unit square."""
    generator = torch.Generator().manual_seed(seed)
    u = unit_square(t, box)
    u = u + deviation * torch.randn(len(t), 2, dtype=F64, generator=generator)
    return u.float().repeat_interleave(size // 2, 1)[:, None].expand(-1, size, -1).contiguous()


def train_reader(bump, deviation, bundle=1, neighbours=1, n=4000, grid=32):
    t = uniform(n)
    return posterior.fit(
        readings(t, torch.tensor(deviation, dtype=F64)),
        t,
        box=BOX,
        grid=grid,
        bundle=bundle,
        neighbours=neighbours,
        bump=bump,
        network=GaussianReader(grid),
        steps=300,
        batch=256,
        rate=0.1,
    )


@pytest.mark.parametrize("bump", [0.08, 0.03, None])
def test_a_trained_map_is_the_posterior_blurred_by_the_bump(bump):
    deviation = (0.04, 0.08)
    fitted = train_reader(bump, deviation)
    variance = (-fitted.network.log_precision).exp()
    expected = torch.tensor(deviation).square() + (bump or 0) ** 2
    expected += (1 / 32**2 / 12) if bump is None else 0  # a target off the centre of its cell
    torch.testing.assert_close(variance.detach(), expected, rtol=0.08, atol=0)


def test_bundles_of_four_quarter_the_variance():
    alone, four = (train_reader(0.02, (0.08, 0.12), k, 8, 6000) for k in (1, 4))
    ratio = (alone.network.log_precision - four.network.log_precision).exp().detach()
    blur = 0.02**2 + 8 / 6000 / math.pi / 2
    expected = (torch.tensor([0.08, 0.12]).square() / 4 + blur) / (
        torch.tensor([0.08, 0.12]).square() + blur
    )
    torch.testing.assert_close(ratio, expected, rtol=0.12, atol=0)


def test_the_bump_limits_the_curvature_that_the_second_step_can_find():
    """With nearly exact data the curvature is bump⁻² in the unit square, whatever the truth."""
    t = uniform(1200, seed=3)
    found = []
    for bump in (0.05, 0.1):
        fitted = train_reader(bump, (0.01, 0.01), grid=24)
        maps = fitted.maps(readings(t, 0.01, seed=6), t)
        fit = fit_posteriors(maps, t, box=BOX, steps=300)
        inner = BOX.mean(0) + 0.5 * (centres(6) - BOX.mean(0))
        found.append((hessian(fit.potential, inner).diagonal(0, 1, 2) * 16).mean().item())
    assert found[0] == pytest.approx(0.05**-2, rel=0.15)
    assert found[1] == pytest.approx(0.1**-2, rel=0.15)


def patterned(t, deviation, seed):
    """Images with mean t₀ and a chequered contrast t₁, in the unit square, and noise."""
    u = unit_square(t, BOX).float()
    board = (-1.0) ** torch.arange(6)[:, None].add(torch.arange(6))
    noise = torch.randn(len(u), 6, 6, generator=torch.Generator().manual_seed(seed))
    return u[:, 0, None, None] + u[:, 1, None, None] * board + deviation * noise


def test_the_default_network_learns_which_way_the_axes_run():
    t, places = uniform(1500), uniform(200, seed=9)
    sizes = {"grid": 16, "bundle": 1, "neighbours": 1, "bump": 0.05, "steps": 200}
    fitted = posterior.fit(patterned(t, 0.3, 0), t, box=BOX, **sizes)
    maps = fitted.maps(patterned(places, 0.3, 1), places)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(200))
    error = (centroids(maps, BOX) - places) / (BOX[1] - BOX[0])
    assert rms(error[:, 0]) < 0.1 and rms(error[:, 1]) < 0.1
    assert fitted.history["held_out"][-1] < -1.5  # nats below the uniform map


class Spy(nn.Module):
    """Keeps the bundles that it is shown; a sample shows its own number."""

    def __init__(self):
        super().__init__()
        self.shown, self.free = [], nn.Parameter(torch.zeros(1))

    def forward(self, x):
        self.shown.append(x[:, :, 0, 0].clone())
        return self.free * x.mean((1, 2, 3))[:, None, None].expand(-1, 4, 4)


def shown_bundles(t, **options):
    numbers = torch.arange(len(t)).float()[:, None, None].expand(-1, 2, 2)
    spy = Spy()
    made = posterior.Posterior(spy, BOX, 4, 3, 5, options.pop("seed", 0), {})
    made.maps(numbers, t)
    return torch.cat(spy.shown).long()


def test_a_bundle_holds_distinct_members_of_the_nearest_neighbours():
    t = uniform(600)
    u = unit_square(t, BOX)
    members = shown_bundles(t)
    nearest = torch.cdist(u, u).argsort(1)[:, :5]
    assert (members[:, :, None] == nearest[:, None]).any(2).all()
    assert all(len(set(row)) == 3 for row in members.tolist())
    share = (members == torch.arange(600)[:, None]).any(1).double().mean()
    assert abs(share - 3 / 5) < 0.08


def test_the_draw_of_a_row_does_not_depend_on_the_rows_after_it():
    t = uniform(300)
    far = torch.tensor([[2.0, 3.0]], dtype=F64)
    near = BOX[0] + 0.1 * (t - BOX[0])
    assert torch.equal(
        shown_bundles(near), shown_bundles(torch.cat([near, far.expand(6, -1)]))[:300]
    )
    assert not torch.equal(shown_bundles(near), shown_bundles(near, seed=1))


def test_chains_are_folded_row_by_row():
    t = uniform(40)
    chains = torch.arange(16.0).expand(40, 16)
    options = dict(box=BOX, grid=4, bundle=1, neighbours=1, bump=0.1, steps=2, batch=4)
    seen = []

    class Look(Spy):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    posterior.fit(chains, t, network=Look(), **options)
    torch.testing.assert_close(seen[0][0, 0], torch.arange(16.0).view(4, 4))


def test_training_and_held_out_samples_are_never_bundled_together():
    t = uniform(400)
    numbers = torch.arange(400.0)[:, None, None].expand(-1, 2, 2)
    spy, groups = Spy(), {True: set(), False: set()}
    spy.register_forward_pre_hook(lambda m, x: groups[m.training].update(x[0].flatten().tolist()))
    options = dict(box=BOX, grid=4, bump=0.1, steps=300, batch=64)
    posterior.fit(numbers, t, network=spy, **options)
    assert not groups[True] & groups[False]
    assert len(groups[True]) == 360 and len(groups[False]) == 40


def small_fit(network=None, **options):
    t = uniform(200)
    settings = dict(box=BOX, grid=6, bump=0.1, bundle=2, neighbours=4, steps=20, batch=8)
    network = network or BundleNetwork(1, 6, width=4)
    fitted = posterior.fit(readings(t, 0.1), t, network=network, **{**settings, **options})
    return fitted, fitted.maps(readings(t, 0.1), t)


def test_one_seed_gives_one_answer():
    assert torch.equal(small_fit()[1], small_fit()[1])
    assert not torch.equal(small_fit()[1], small_fit(seed=1)[1])


def test_the_corners_of_a_box_given_in_lists_belong_to_it():
    corners = [[0.1, 0.1], [0.7, 0.7], [0.1, 0.7], [0.7, 0.1]]
    t = (5 * corners, torch.tensor(5 * corners), np.float32(5 * corners))
    for own in t:
        options = dict(box=[[0.1, 0.1], [0.7, 0.7]], grid=4, bundle=1, neighbours=1, bump=0.1)
        fitted = posterior.fit(torch.zeros(20, 4, 4), own, steps=1, batch=2, **options)
        assert fitted.maps(torch.zeros(20, 4, 4), own).shape == (20, 4, 4)


def test_a_network_with_dropout_follows_the_seed_and_leaves_the_global_generator_alone():
    def made():
        torch.manual_seed(0)
        layers = nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 36), nn.Unflatten(1, (6, 6))
        return nn.Sequential(*layers)

    (first, maps), (again, same) = (small_fit(made()) for _ in range(2))
    assert torch.equal(maps, same) and first.history == again.history
    network, state = made(), torch.get_rng_state()
    small_fit(network)
    assert torch.equal(state, torch.get_rng_state())


# Bad input

T20 = uniform(20)
X20 = torch.zeros(20, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(bundle=9), "bundle=9, neighbours=8"),
        (dict(bundle=0), "bundle=0"),
        (dict(neighbours=19), "20 samples.*neighbours=19"),
        (dict(bump=0.0), "bump=0"),
        (dict(bump=-0.1), "bump=-0.1"),
        (dict(grid=1), "grid=1"),
        (dict(steps=0), "steps=0"),
        (dict(seed=None), "seed=None"),
        (dict(t=T20[:19]), "20 samples but 19"),
        (dict(t=T20 + 10), "outside the box"),
        (dict(t=T20[:, :1]), "t of shape"),
        (dict(t=T20 / 0), "not finite"),
        (dict(samples=torch.zeros(20, 15)), "9 or 16 sites"),
        (dict(samples=torch.zeros(20)), "samples has shape"),
        (dict(samples=X20 / 0), "not finite"),
        (dict(network=nn.Conv2d(4, 1, 1)), "network returned"),
        (dict(network=nn.Conv2d(3, 1, 1)), "network cannot read"),
        (dict(network=torch.sin), "network is of type builtin"),
    ],
)
def test_the_trained_route_refuses(change, message):
    given = {**dict(samples=X20, t=T20, box=BOX, grid=4, bump=0.1, steps=2, batch=4), **change}
    with pytest.raises(ValueError, match=message):
        posterior.fit(given.pop("samples"), given.pop("t"), **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(features=torch.cat([torch.ones(19, 3), torch.zeros(1, 3)])), "row 19"),
        (dict(features=torch.full((20, 3), float("nan"))), "finite"),
        (dict(features=torch.ones(19, 3)), "give one for each"),
        (dict(features=torch.ones(20)), "shape"),
        (dict(t=T20 + 10), "outside the box"),
        (dict(box=BOX[[1, 0]]), "lower corner"),
        (dict(count=0), "count=0"),
        (dict(grid=40), "coarser grid"),
    ],
)
def test_the_feature_route_refuses(change, message):
    given = {**dict(features=torch.ones(20, 3), t=T20, box=BOX, grid=3), **change}
    with pytest.raises(ValueError, match=message):
        posterior.from_features(given.pop("features"), given.pop("t"), **given)
