import numpy as np
import pytest
import torch

from lib.diffusion import patterns, sampling
from lib.svd import atoms, properties


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@pytest.fixture(scope="module")
def model():
    return patterns.Patterns(16)


def test_a_trajectory_holds_the_latents_of_every_time(model):
    noise = model.noise(18, 0)  # more than one batch
    path = properties.trajectory(model, noise, steps=10)
    grid = properties.times(model, 10)
    assert path.shape == (11, 18, 1, 16, 16) and torch.equal(path[0], noise)
    for i in (3, 9):
        assert torch.allclose(path[i], sampling.ddim(model, noise, steps=10, stop=grid[i]))
    assert torch.allclose(path[-1], sampling.ddim(model, noise, steps=10))


def test_an_inverse_trajectory_runs_through_the_same_times(model):
    images = sampling.ddim(model, model.noise(17, 0), steps=10).clamp(-1, 1)
    path = properties.inverse_trajectory(model, images, steps=10)
    grid = properties.times(model, 10)
    assert torch.equal(path[-1], images)
    for i in (0, 4, 9):
        own = sampling.invert(model, images, steps=10, stop=grid[i])
        assert torch.allclose(path[i], own)


def test_paths_of_the_null_have_the_right_ends_and_share_noise_or_not():
    clean, noise = draw(4, 1, 32, 32), draw(4, 1, 32, 32, seed=1)
    alphas = [1e-12, 0.5, 1.0]
    straight = properties.straight_path(clean, noise, alphas)
    assert torch.allclose(straight[0], noise, atol=1e-5) and torch.equal(straight[-1], clean)
    assert torch.allclose(straight[1], (clean + noise) * 0.5**0.5)
    fresh = properties.fresh_path(clean, [0.5, 0.5], seed=3)
    own = (fresh - 0.5**0.5 * clean) / 0.5**0.5
    assert abs(float((own[0] * own[1]).mean())) < 0.05 and abs(float(own.std()) - 1) < 0.05


def test_subspace_distance_is_zero_for_scaled_latents_and_random_for_noise():
    x = draw(12, 3, 16, 16)
    assert properties.subspace_distance(x, 3 * x, k=4).max() < 1e-7
    d = properties.subspace_distance(x, draw(12, 3, 16, 16, seed=1), k=4)
    mean, spread = atoms.random_distance(16, 4)
    assert d.shape == (12,) and abs(float(d.mean()) - mean) < 4 * spread / (12 * 6) ** 0.5


def test_neighbourhoods_of_a_straight_path_are_its_own_null():
    alphas = [0.01, 0.3, 0.7]
    path = properties.straight_path(draw(5, 2, 16, 16), draw(5, 2, 16, 16, seed=1), [*alphas, 1.0])
    path[0] = draw(5, 2, 16, 16, seed=1)
    rho = properties.neighbourhood(path, alphas, k=3, seed=0)
    assert {r.shape for r in rho.values()} == {(3, 5)}
    assert np.allclose(rho["model"][1:], rho["straight path"][1:])
    assert (rho["model"] < rho["fresh noise"])[:-1].all()  # at the end both meet the image
    assert abs(rho["other seed"][0].mean() - 1) < 0.1  # two independent noises: random


def test_random_and_shuffled_moves_have_the_length_of_an_atom_move_and_rank_one():
    x, eta = draw(3, 2, 8, 8), 0.15
    size = eta * torch.linalg.matrix_norm(x)
    for moved in (
        properties.random_move(x, eta, seed=4),
        atoms.rescale(x, 2, eta, energy_matched=True, shift=3),
        atoms.rescale(x, torch.tensor([1, 7]), eta, energy_matched=True, shift=1),
    ):
        change = torch.linalg.svdvals(moved - x)
        assert torch.allclose(change[..., 0], size) and change[..., 1:].max() < 1e-10
    plain = atoms.rescale(x, 2, eta, energy_matched=True)
    assert torch.allclose(atoms.rescale(x, 2, eta, energy_matched=True, shift=0), plain)
    wrong = atoms.rescale(x, 2, eta, energy_matched=True, shift=3) - x
    assert ((wrong * (plain - x)).sum((-2, -1)).abs() < 1e-10).all()
    first = properties.random_move(x[:1], eta, seed=4)
    assert torch.allclose(first, properties.random_move(x, eta, seed=4)[:1])


def test_a_pattern_has_the_rank_of_its_atom_and_its_own_strength():
    u, v = (torch.linalg.qr(draw(8, 8, seed=s)).Q for s in (0, 1))
    x = sum((9.0 - i) * torch.outer(u[:, i], v[:, i]) for i in range(8)).expand(2, 3, 8, 8)
    pattern = torch.stack([torch.outer(u[:, i], v[:, i]) for i in (0, 4, 5)]).expand(2, 3, 8, 8)
    assert properties.pattern_ranks(x, pattern).tolist() == [4.0, 4.0]  # mean of 1, 5, 6
    assert torch.allclose(properties.signal(2.5 * pattern), torch.full((2,), 2.5).double())


def test_the_crossing_is_the_noisiest_time_of_small_rank():
    ranks = torch.tensor([[20.0, 2.0, 9.0], [3.0, 9.0, 9.0], [1.0, 1.0, 9.0]])
    assert properties.first_rank_time(ranks, [900, 500, 100]).tolist() == [500, 900, -1]


def test_half_of_the_faces_decide_the_crossing():
    ranks = np.array([[9, 9, 9, 9], [1, 1, 9, 9], [1, 1, 3, 9], [1, 1, 1, 1]], float)
    assert properties.crossing(ranks, [900, 600, 300, 100]) == 300
    assert properties.crossing(torch.from_numpy(ranks[:1]), [900]) == -1


def test_the_error_of_a_crossing_holds_the_spread_of_faces_and_the_grid():
    grid = [900, 800, 700, 600]
    alike = torch.tensor([[9.0], [9.0], [1.0], [1.0]]).expand(4, 6)
    time, error = properties.crossed(alike, grid)
    assert time == 0.7 and error == pytest.approx(0.1 / 12**0.5)  # uniform within a step
    mixed = torch.where(torch.arange(6) < 3, alike, 1.0)
    assert properties.crossed(mixed, grid)[1] > 0.05


def test_rank_order_is_that_of_a_rising_atom():
    ranks = torch.tensor([[9.0, 1.0, 3.0], [5.0, 2.0, 3.0], [1.0, 3.0, 3.0]])
    assert properties.rank_order(ranks, [3, 2, 1]).tolist() == [1.0, -1.0, 0.0]


def test_followed_attributes_are_found_where_they_are_planted():
    pattern = 60 * torch.outer(draw(16, seed=5), draw(16, seed=6)).expand(6, 2, 16, 16)
    pattern = pattern / torch.linalg.matrix_norm(pattern, keepdim=True) * 40
    bare, alphas = 0.1 * draw(6, 2, 16, 16), [0.01, 0.5, 0.9]
    path = properties.straight_path(bare + pattern, draw(6, 2, 16, 16, seed=1), [*alphas, 1.0])
    own = {"a": torch.arange(6) < 4}
    ranks = properties.followed(path, {"a": (bare, bare + pattern)}, own, alphas, seed=0)
    assert {k: r["a"].shape[1] for k, r in ranks.items()} == {"drawn": 4, "noised": 6, "without": 6}
    assert (ranks["drawn"]["a"][-1] == 1).all() and (ranks["noised"]["a"][-1] == 1).all()
    assert ranks["without"]["a"][-1].mean() > 3
    lacking = {"a": own["a"] & False}
    none = properties.followed(path, {"a": (bare, bare + pattern)}, lacking, alphas, seed=0)
    assert none["drawn"]["a"].shape == (2, 1)


def test_planted_vectors_are_found_as_the_law_says():
    found = properties.planted_overlaps(32, (0.3, 2.0, 5.0), 100, seed=1)
    law = atoms.bbp_overlap((0.3, 2.0, 5.0)).numpy()
    assert found.shape == (3, 100) and np.abs(found.mean(1) - law).max() < 0.12


def test_moves_alike_are_the_same_in_all_channels():
    x = draw(2, 3, 8, 8)
    moved = properties.random_move(x, 0.1, seed=1, alike=True) - x
    unit = moved / torch.linalg.matrix_norm(moved, keepdim=True)
    assert torch.allclose(unit[:, 0], unit[:, 2]) and not torch.allclose(unit[0], unit[1])


def test_a_scrambled_pattern_keeps_its_strength_and_leaves_its_place():
    pattern = draw(2, 3, 8, 8)
    moved = properties.scrambled(pattern, seed=1)
    assert torch.allclose(properties.signal(moved), properties.signal(pattern))
    assert not torch.equal(moved, pattern)
