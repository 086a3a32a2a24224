"""Laws of atoms: decomposition, subspaces, tracking and the threshold in noise."""

import itertools
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from latents import draw, orthogonal

from lib import svd
from lib.diffusion import models
from lib.svd import atoms

TABLE = {  # mean distance of random subspaces, by (n, k)
    (8, 1): 1.26,
    (8, 4): 1.83,
    (16, 2): 1.81,
    (16, 8): 2.59,
    (28, 16): 3.40,
    (32, 4): 2.56,
    (32, 16): 3.65,
    (64, 8): 3.61,
    (64, 32): 5.15,
}


# Decomposition


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (4, 9), (2, 7, 5)])
def test_latents_are_the_sum_of_their_atoms(shape, dtype, limit):
    x = draw(*shape).to(dtype)
    U, S, Vh = svd.decompose(x)
    assert U.dtype == S.dtype == dtype and S.shape[-1] == min(shape[-2:])
    assert (svd.compose(U, S, Vh) - x).norm() <= limit * x.norm()
    assert bool((S.diff() <= 0).all()) and bool((S >= 0).all())
    eye = torch.eye(S.shape[-1], dtype=dtype)
    assert torch.allclose(U.mT @ U, eye.expand_as(U.mT @ U), atol=20 * limit)
    assert torch.allclose(Vh @ Vh.mT, eye.expand_as(Vh @ Vh.mT), atol=20 * limit)


def test_singular_values_and_atoms_agree_with_a_matrix_at_a_time_in_numpy():
    x = draw(2, 3, 6, 8)
    U, S, Vh = svd.decompose(x)
    for i, j in itertools.product(range(2), range(3)):
        left, values, right = np.linalg.svd(x[i, j].numpy(), full_matrices=False)
        assert np.allclose(S[i, j], values)
        assert np.allclose(U[i, j, :, 2:3] * Vh[i, j, 2], left[:, 2:3] * right[2])


def test_signs_depend_on_the_atom_and_not_on_the_matrix_around_it():
    U, S, Vh = svd.decompose(draw(3, 8, 8))
    largest = U.gather(-2, U.abs().argmax(-2, keepdim=True))
    assert bool((largest > 0).all())
    U2, _, Vh2 = svd.decompose(svd.compose(-U, S * torch.linspace(1.5, 1, 8), -Vh))
    assert torch.allclose(U2, U) and torch.allclose(Vh2, Vh)
    U3, _, Vh3 = svd.decompose(-svd.compose(U, S, Vh))
    assert torch.allclose(U3, U) and torch.allclose(Vh3, -Vh)


def test_rounding_does_not_pick_the_sign_of_an_odd_symmetric_atom():
    odd = torch.tensor([0.6, 0.2, -0.2, -0.6], dtype=torch.float64)
    even = torch.tensor([1.0, 2.0, 2.0, 1.0], dtype=torch.float64)
    for tilt in (1e-7, -1e-7):
        for sign in (1, -1):
            u = sign * odd * torch.tensor([1, 1, 1, 1 + tilt])
            x = torch.outer(u, even) + 0.01 * torch.outer(even, odd)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", atoms.DegenerateWarning)
                assert svd.decompose(x)[0][0, 0] > 0


def test_degenerate_values_are_reported_with_their_gap():
    left, right = orthogonal(3), orthogonal(3, seed=1)
    values = torch.tensor([[4, 2, 2 - 4e-7], [4, 2, 1]], dtype=torch.float64)
    with pytest.warns(atoms.DegenerateWarning, match=r"1 of 2 channels.*gap is 1\.0e-07.*atom 1"):
        svd.decompose(left @ torch.diag_embed(values) @ right)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svd.decompose(draw(20, 3, 16, 16))
        svd.decompose(draw(5, 1, 4))
    gap = atoms.gaps(torch.tensor([4.0, 3.0, 1.0, 0.9]))
    assert torch.allclose(gap, torch.tensor([0.25, 0.25, 0.025, 0.025]))


def test_compose_refuses_parts_that_do_not_fit():
    U, S, Vh = svd.decompose(draw(4, 6))
    with pytest.raises(ValueError, match="do not share k"):
        svd.compose(U, S[:2], Vh)


# Rescaling


def test_rescaling_changes_exactly_one_atom_of_each_channel():
    x = draw(2, 3, 8, 8)
    U, S, Vh = svd.decompose(x)
    S[..., 2] *= 3.5
    assert torch.allclose(svd.rescale(x, 2, 3.5), svd.compose(U, S, Vh))
    assert torch.allclose(svd.rescale(x, 5, 1.0), x)
    gone = svd.decompose(svd.rescale(x, 0, 0.0))[1]
    assert torch.allclose(gone[..., :-1], svd.decompose(x)[1][..., 1:])


def test_index_and_factor_may_differ_between_channels():
    x, index = draw(2, 3, 6, 6), torch.tensor([0, 4, 2])
    factor = torch.tensor([[2.0, 1.0, 0.5], [1.0, 3.0, 1.0]])
    y = svd.rescale(x, index, factor)
    for i, j in itertools.product(range(2), range(3)):
        alone = svd.rescale(x[i, j], int(index[j]), float(factor[i, j]))
        assert torch.allclose(y[i, j], alone)


def test_an_energy_matched_move_has_the_same_length_for_every_atom():
    x, eta = draw(4, 3, 8, 8), -0.15
    U, _, Vh = svd.decompose(x)
    for i in range(8):
        move = svd.rescale(x, i, eta, energy_matched=True) - x
        size = x.norm(dim=(-2, -1))
        assert torch.allclose(move.norm(dim=(-2, -1)), 0.15 * size)
        along = torch.einsum("...h,...hw,...w->...", U[..., i], move, Vh[..., i, :])
        assert torch.allclose(along, eta * size)


def test_input_is_left_alone_and_arrays_are_taken():
    x = draw(1, 8, 8)
    kept = x.clone()
    y = svd.rescale(x, 1, 2.0, energy_matched=True)
    svd.integrate(x, 2 * x + draw(1, 8, 8, seed=9), k=3)
    assert torch.equal(x, kept)
    assert torch.equal(svd.rescale(x.numpy(), 1, 2.0, energy_matched=True), y)


# Subspaces


@pytest.mark.parametrize("scale", [1e-12, 1e-8, 1e-3, 1.0])
def test_planted_angles_are_recovered_however_small(scale):
    angles = scale * torch.tensor([0.3, 0.7, 1.4], dtype=torch.float64)
    frame = orthogonal(10)
    a, normal = frame[:, :3], frame[:, 3:6]
    b = a * angles.cos() + normal * angles.sin()
    turned = b @ orthogonal(3, seed=1)
    assert torch.allclose(atoms.principal_angles(a, turned), angles, rtol=1e-6, atol=3e-16)
    assert torch.allclose(svd.grassmann_distance(a, turned), angles.norm(), rtol=1e-6, atol=1e-15)


def test_distance_agrees_with_scipy_and_is_a_symmetric_distance_of_spans():
    a, b = draw(6, 9, 4), draw(6, 9, 4, seed=1)
    d = svd.grassmann_distance(a, b)
    for i in range(6):
        assert np.isclose(d[i], np.linalg.norm(scipy.linalg.subspace_angles(a[i], b[i])))
    assert torch.allclose(d, svd.grassmann_distance(b @ draw(4, 4, seed=2), a))
    assert bool((d <= torch.pi / 2 * 2).all())


def test_the_whole_space_is_at_distance_zero_and_orthogonal_spaces_at_the_largest():
    assert svd.grassmann_distance(orthogonal(8), orthogonal(8, seed=1)) < 1e-13
    frame = orthogonal(8)
    assert torch.isclose(
        svd.grassmann_distance(frame[:, :4], frame[:, 4:]), torch.tensor(torch.pi).double()
    )


@pytest.mark.parametrize(("n", "k"), TABLE)
def test_random_subspaces_are_at_the_tabled_distance(n, k):
    mean, spread = atoms.random_distance(n, k)
    assert abs(mean - TABLE[n, k]) < 0.05
    assert 0.03 < spread < 0.3


def test_random_distance_of_lines_is_the_mean_angle_of_random_directions():
    cosine = np.linspace(0, 1, 200001)[:-1] + 2.5e-6
    weight = (1 - cosine**2) ** ((8 - 3) / 2)
    exact = (np.arccos(cosine) * weight).sum() / weight.sum()
    assert abs(atoms.random_distance(8, 1, draws=2000)[0] - exact) < 4 * 0.23 / 2000**0.5


def test_a_random_subspace_depends_on_its_number_alone():
    few, many = svd.random_subspaces(9, 2, 3, seed=4), svd.random_subspaces(9, 2, 6, seed=4)
    assert torch.equal(many[:3], few)
    assert torch.equal(svd.random_subspaces(9, 2, 3, seed=4, first=3), many[3:])
    assert not torch.allclose(many[0], many[1])


def test_subspaces_refuse_bases_that_are_none():
    with pytest.raises(ValueError, match="k = 5 columns in n = 3"):
        svd.grassmann_distance(draw(3, 5), draw(3, 5, seed=1))
    with pytest.raises(ValueError, match="dependent"):
        svd.grassmann_distance(torch.ones(4, 2), draw(4, 2))
    with pytest.raises(ValueError, match="give both the same"):
        svd.grassmann_distance(draw(4, 2), draw(4, 1))


# Tracking


def test_atoms_are_paired_by_the_best_of_all_permutations():
    first, second = svd.decompose(draw(5, 5)), svd.decompose(draw(5, 5, seed=1))
    overlap = ((first[0].mT @ second[0]) * (first[2] @ second[2].mT)).abs()
    best = max(itertools.permutations(range(5)), key=lambda p: overlap[range(5), p].sum())
    order, kept = atoms.match_atoms(first, second)
    assert order.tolist() == list(best)
    assert torch.allclose(kept, overlap[range(5), best])


def test_an_atom_is_followed_while_its_rank_changes():
    left, right = orthogonal(6)[:, :3], orthogonal(7, seed=1)[:, :3]
    values = torch.tensor([[5, 4, 1], [5, 3, 4], [2, 3, 4], [1, 2, 5.0]], dtype=torch.float64)
    x = torch.stack([torch.stack([(left * s) @ right.mT] * 2) for s in values])
    x = x + 1e-3 * draw(*x.shape, seed=2)
    tracked = svd.track(x, [900, 700, 400, 100])
    ranks = (-values).argsort(1).argsort(1)  # of the planted atoms at each time
    labels = (-values[-1]).argsort()  # atom that stands first, second, third at the end
    assert torch.equal(tracked.index[:, 0, :3], ranks[:, labels])
    assert torch.equal(tracked.index[:, 1, :3], tracked.index[:, 0, :3])
    assert torch.equal(tracked.index[-1, 0], torch.arange(6))
    assert bool((tracked.overlap[..., :3] > 0.99).all())


def test_tracking_refuses_times_that_rise():
    with pytest.raises(ValueError, match="must fall"):
        svd.track(draw(3, 4, 4), [100, 200, 300])
    with pytest.raises(ValueError, match="2 times for 3"):
        svd.track(draw(3, 4, 4), [300, 200])


def test_a_pattern_is_found_among_the_atoms():
    left, right = orthogonal(8), orthogonal(8, seed=1)
    u, v = left[:, 3], right[:, 5]
    x = 0.1 * draw(2, 3, 8, 8) + 9 * torch.outer(left[:, 0], right[:, 0])
    index, overlap = svd.aligned_atom(x - 4 * torch.outer(u, v), torch.outer(u, v))
    assert index.shape == overlap.shape == (2, 3)
    assert bool((index == 1).all()) and bool((overlap > 0.8).all())


# Threshold in noise


@pytest.mark.parametrize("n", [16, 32, 64])
@pytest.mark.parametrize("ratio", [1.25, 1.5, 2.0, 3.0, 5.0])
def test_noisy_signals_follow_the_overlap_and_value_laws(n, ratio):
    u, v = (svd.random_subspaces(n, 1, 200, seed=1, first=f) for f in (0, 200))
    alpha = 0.3
    theta = ratio * ((1 - alpha) * n / alpha) ** 0.5
    noise = torch.stack([models.unit_normal((n, n), 2, i) for i in range(200)]).double()
    x = alpha**0.5 * theta * u @ v.mT + (1 - alpha) ** 0.5 * noise
    U, S, _ = svd.decompose(x)
    assert torch.isclose(atoms.bbp_ratio(theta, n, alpha), torch.tensor(ratio).double())
    overlap = (U[..., :1].mT @ u).square().mean()
    assert abs(overlap - svd.bbp_overlap(ratio)) < 0.08
    value = (S[:, 0] / ((1 - alpha) * n) ** 0.5).mean()
    assert abs(value - (ratio + 1 / ratio)) < 0.08


def test_below_the_threshold_nothing_stands_out():
    ratio = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(svd.bbp_overlap(ratio), torch.zeros(3).double())


def test_crossing_time_is_the_last_time_above_the_threshold(gaussian):
    theta = torch.tensor([0.01, 3.4, 7.6, 9.3, 13.2])
    times = svd.crossing_time(theta, 32, gaussian.alphas)
    assert times.tolist()[0] == -1 and times.tolist() == sorted(times.tolist())
    for strength, t in zip(theta[1:].tolist(), times.tolist()[1:], strict=True):
        after, before = gaussian.alpha(t), gaussian.alpha(t + 1)
        assert (after / (1 - after)) ** 0.5 >= 32**0.5 / strength
        assert (before / (1 - before)) ** 0.5 < 32**0.5 / strength
    assert np.allclose(times[1:], [168, 316, 357, 426], atol=3)


def test_crossing_time_refuses_a_schedule_that_runs_the_other_way(gaussian):
    with pytest.raises(ValueError, match="fall with t"):
        svd.crossing_time(5.0, 32, gaussian.alphas.flip(0))


def test_rescaling_refuses_atoms_that_are_not_there():
    for index in (4, -1, 1.5):
        with pytest.raises(ValueError, match="atoms are numbered 0 ... 3"):
            svd.rescale(draw(4, 6), index, 2.0)
    with pytest.raises(ValueError, match="factor = nan"):
        svd.rescale(draw(4, 6), 0, float("nan"))
