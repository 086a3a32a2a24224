import itertools
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from lib import svd
from lib.diffusion import models, patterns, sampling

SIDE = 32
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


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def two_latents(*shape, seed=0):
    x = draw(*shape, seed=seed)
    return x, 0.8 * x + 0.6 * draw(*shape, seed=seed + 1)


def orthogonal(n, seed=0):
    return torch.linalg.qr(draw(n, n, seed=seed)).Q


def weighted_loss(pair, values, weights, reference="mixed"):
    target = svd.reference_values(pair, weights, reference)
    return svd.losses(pair, values, target) @ torch.tensor(weights, dtype=torch.float64)


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
                warnings.simplefilter("ignore", svd.DegenerateWarning)
                assert svd.decompose(x)[0][0, 0] > 0


def test_degenerate_values_are_reported_with_their_gap():
    left, right = orthogonal(3), orthogonal(3, seed=1)
    values = torch.tensor([[4, 2, 2 - 4e-7], [4, 2, 1]], dtype=torch.float64)
    with pytest.warns(svd.DegenerateWarning, match=r"1 of 2 channels.*gap is 1\.0e-07.*atom 1"):
        svd.decompose(left @ torch.diag_embed(values) @ right)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svd.decompose(draw(20, 3, 16, 16))
        svd.decompose(draw(5, 1, 4))
    gap = svd.gaps(torch.tensor([4.0, 3.0, 1.0, 0.9]))
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
    assert torch.allclose(svd.principal_angles(a, turned), angles, rtol=1e-6, atol=3e-16)
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
    mean, spread = svd.random_distance(n, k)
    assert abs(mean - TABLE[n, k]) < 0.05
    assert 0.03 < spread < 0.3


def test_random_distance_of_lines_is_the_mean_angle_of_random_directions():
    cosine = np.linspace(0, 1, 200001)[:-1] + 2.5e-6
    weight = (1 - cosine**2) ** ((8 - 3) / 2)
    exact = (np.arccos(cosine) * weight).sum() / weight.sum()
    assert abs(svd.random_distance(8, 1, draws=2000)[0] - exact) < 4 * 0.23 / 2000**0.5


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
    order, kept = svd.match_atoms(first, second)
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
    assert torch.isclose(svd.bbp_ratio(theta, n, alpha), torch.tensor(ratio).double())
    overlap = (U[..., :1].mT @ u).square().mean()
    assert abs(overlap - svd.bbp_overlap(ratio)) < 0.08
    value = (S[:, 0] / ((1 - alpha) * n) ** 0.5).mean()
    assert abs(value - svd.bbp_value(ratio)) < 0.08


def test_below_the_threshold_nothing_stands_out():
    ratio = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(svd.bbp_overlap(ratio), torch.zeros(3).double())
    assert torch.equal(svd.bbp_value(ratio), 2 * torch.ones(3).double())


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


# The closed form


@pytest.mark.parametrize("weights", [(1, 3, 0, 0), (3, 1, 0, 0), (2, 1, 0.3, 0.7)])
@pytest.mark.parametrize("shape", [(2, 3, 12, 12), (1, 7, 10), (9, 6)])
def test_with_all_atoms_the_edit_is_linear_interpolation(weights, shape):
    x, z = two_latents(*shape)
    y = svd.integrate(x, z, k=min(shape[-2:]), weights=weights)
    assert (y - (weights[0] * z + weights[1] * x) / sum(weights[:2])).abs().max() < 1e-6


@pytest.mark.parametrize("k", [1, 4, 8])
@pytest.mark.parametrize("weights", [svd.WEIGHTS, (1, 1, 0, 0)])
def test_a_latent_integrated_with_itself_is_itself(k, weights):
    x = draw(2, 8, 8)
    assert torch.allclose(svd.integrate(x, x, k=k, weights=weights), x, atol=1e-12)


def test_losses_are_the_stated_formulas():
    x, z = two_latents(2, 6, 6)
    pair, values = svd.atom_pair(x, z, k=2), draw(2, 4, seed=5)
    target = svd.reference_values(pair, (3, 1, 0.1, 0.1))
    found = svd.losses(pair, values, target)
    for i in range(2):
        (u, s, v), (p, q, w) = (np.linalg.svd(latent[i].numpy()) for latent in (x, z))
        c = values[i].numpy()
        y = sum(s[j] * np.outer(u[:, j], v[j]) for j in range(2, 6))
        y = y + sum(
            c[j] * np.outer(u[:, j], v[j]) + c[2 + j] * np.outer(p[:, j], w[j]) for j in range(2)
        )
        expected = [
            ((y - z[i].numpy()) ** 2).mean(),
            ((y - x[i].numpy()) ** 2).mean(),
            ((c[2:] - 0.75 * q[:2]) ** 2).sum() / (q[:2] ** 2).sum(),
            ((c[:2] - 0.25 * s[:2]) ** 2).sum() / (s[:2] ** 2).sum(),
        ]
        assert np.allclose(found[i], expected)
        sigma = np.linalg.svd(y)[1]
        spectral = svd.losses(pair, values, None)[i, 2:]
        assert np.allclose(
            spectral,
            [
                ((sigma - q) ** 2).sum() / (q[:2] ** 2).sum(),
                ((sigma - s) ** 2).sum() / (s[:2] ** 2).sum(),
            ],
        )


@pytest.mark.parametrize("reference", ["mixed", "literal"])
@pytest.mark.parametrize("keep_tail", [True, False])
def test_no_change_of_the_best_values_lowers_the_loss(reference, keep_tail):
    weights = (2.0, 0.7, 0.3, 0.05)
    x, z = two_latents(2, 3, 8, 10)
    pair = svd.atom_pair(x, z, k=3, keep_tail=keep_tail)
    best = svd.best_values(pair, weights, reference).requires_grad_()
    loss = weighted_loss(pair, best, weights, reference)
    slope = torch.autograd.grad(loss.sum(), best)[0]
    assert slope.abs().max() < 1e-13
    for seed in range(5):
        moved = best + 0.1 * draw(*best.shape, seed=seed)
        assert bool((weighted_loss(pair, moved, weights, reference) > loss).all())


def test_a_huge_pull_brings_the_values_to_their_reference():
    x, z = two_latents(3, 8, 8)
    pair = svd.atom_pair(x, z, k=4)
    for reference, expected in (("mixed", (0.25, 0.75)), ("literal", (1, 1))):
        best = svd.best_values(pair, (3, 1, 1e9, 1e9), reference)
        shares = best / pair.values
        assert torch.allclose(shares[..., :4], torch.tensor(expected[0]).double(), atol=1e-6)
        assert torch.allclose(shares[..., 4:], torch.tensor(expected[1]).double(), atol=1e-6)
    half_pulled = svd.best_values(pair, (3, 1, 1e9, 0), "mixed") / pair.values
    assert torch.allclose(half_pulled[..., 4:], torch.tensor(0.75).double(), atol=1e-6)
    assert (half_pulled[..., :4] - 0.25).abs().max() > 1e-3


def test_a_fixed_mix_survives_the_ablation_of_a_weight():
    pair = svd.atom_pair(*two_latents(8, 8), k=4)
    whole = svd.reference_values(pair, (3, 1, 0.1, 0.1))
    assert torch.equal(svd.reference_values(pair, (0, 1, 0.1, 0.1), omega=0.75), whole)
    assert not torch.allclose(svd.reference_values(pair, (0, 1, 0.1, 0.1)), whole)


def test_strength_moves_in_a_straight_line_from_the_source():
    x, z = two_latents(2, 3, 8, 8)
    whole = svd.integrate(x, z, k=3)
    assert torch.allclose(svd.integrate(x, z, k=3, strength=0.0), x, atol=1e-12)
    for strength in (0.3, 1.5):
        y = svd.integrate(x, z, k=3, strength=strength)
        assert torch.allclose(y, torch.lerp(x, whole, strength), atol=1e-12)
    single = svd.integrate(x.float(), z.float(), k=3, strength=0.0)
    assert single.dtype == torch.float32
    assert (single - x).norm() <= 1e-5 * x.norm()


def test_without_the_tail_only_the_atoms_are_left():
    x, z = two_latents(2, 8, 8)
    y = svd.integrate(x, z, k=2, keep_tail=False)
    assert torch.linalg.matrix_rank(y, rtol=1e-10).tolist() == [4, 4]
    U, S, Vh = svd.decompose(x)
    source = svd.integrate(x, z, k=2, keep_tail=False, strength=0.0)
    assert torch.allclose(source, svd.compose(U[..., :2], S[..., :2], Vh[..., :2, :]))


@pytest.mark.parametrize("closeness", [0.0, 0.9, 1 - 1e-9])
def test_the_gram_matrix_and_weyl_bound_every_edit(closeness):
    x = draw(3, 12, 12)
    z = closeness * x + (1 - closeness**2) ** 0.5 * draw(3, 12, 12, seed=1)
    pair = svd.atom_pair(x, z, k=5)
    level = torch.linalg.eigvalsh(pair.gram)
    assert bool((level <= 2 + 1e-12).all()) and bool((level >= -1e-12).all())
    best = svd.best_values(pair)
    y, change = pair.edit(best), best - pair.values * (torch.arange(10) < 5)
    energy = (change * (pair.gram @ change[..., None])[..., 0]).sum(-1)
    assert torch.allclose(energy, (y - x).square().sum((-2, -1)))
    assert bool((energy <= 2 * change.square().sum(-1) + 1e-12).all())
    moved = (torch.linalg.svdvals(y) - torch.linalg.svdvals(x)).abs().amax(-1)
    assert bool((moved <= torch.linalg.matrix_norm(y - x, 2) + 1e-12).all())


# Baselines


def test_a_free_core_fits_better_than_a_diagonal_and_best_among_cores():
    x, z = two_latents(12, 12)
    goal = torch.lerp(x, z, 0.7)
    full = svd.integrate_full_core(x, z, k=3, omega=0.7)
    diagonal = svd.integrate(x, z, k=3, weights=(0.7, 0.3, 0, 0))
    assert (full - goal).norm() < 0.99 * (diagonal - goal).norm()
    pair = svd.atom_pair(x, z, k=3)
    residual = pair.left.mT @ (goal - full) @ pair.right
    assert residual.abs().max() < 1e-12
    assert torch.allclose(svd.integrate_full_core(x, z, k=6, omega=0.7), goal)


def test_fixed_bases_integrate_what_is_sparse_in_them():
    left, right = svd.cosine_basis(8), svd.cosine_basis(6)
    assert torch.allclose(left.mT @ left, torch.eye(8).double(), atol=1e-14)
    a, b = torch.zeros(2, 8, 6).double(), torch.zeros(2, 8, 6).double()
    a[:, 1, 2], a[:, 4, 4], b[:, 4, 4], b[:, 0, 3] = -3, 2, 5, -1
    x, z = left @ a @ right.mT, left @ b @ right.mT
    y = svd.integrate(x, z, k=2, weights=(3, 1, 0.2, 0.1), bases=(left, right))
    assert torch.allclose(y, torch.lerp(x, z, 0.75), atol=1e-12)
    one = svd.integrate(x, z, k=1, weights=(3, 1, 0, 0), bases=(left, right))
    kept = torch.zeros(2, 8, 6).double()
    kept[:, 1, 2], kept[:, 4, 4] = -0.75, 4.25
    # the tail of x keeps its second coefficient, 2, and the fit subtracts it
    assert torch.allclose(left.mT @ one @ right, kept, atol=1e-12)


def test_cosine_basis_is_that_of_scipy():
    import scipy.fft

    assert np.allclose(svd.cosine_basis(7).mT, scipy.fft.dct(np.eye(7), axis=0, norm="ortho"))


def test_principal_bases_of_one_latent_are_its_singular_vectors():
    x = draw(6, 8)
    U, _, Vh = svd.decompose(x)
    left, right = svd.principal_bases(x)
    assert torch.allclose((left.mT @ U).abs(), torch.eye(6).double(), atol=1e-8)
    assert torch.allclose((right[:, :6].mT @ Vh.mT).abs(), torch.eye(6).double(), atol=1e-8)


@pytest.mark.parametrize("path", ["linear", "rescaled", "spherical"])
def test_interpolations_start_at_the_source_and_end_at_the_target(path):
    x, z = two_latents(4, 3, 5, 5)
    assert torch.allclose(svd.interpolate(x, z, 0.0, path=path), x)
    assert torch.allclose(svd.interpolate(x, z, 1.0, path=path), z)
    assert torch.allclose(svd.interpolate(x, x, 0.3, path=path), x)
    assert torch.equal(svd.interpolate(x, z, 0.3), torch.lerp(x, z, 0.3))


def test_curved_interpolations_keep_norm_and_angle():
    x, z = draw(3, 2, 4, 4), draw(3, 2, 4, 4, seed=1)
    norms = [part.flatten(1).norm(dim=1) for part in (x, z)]
    stretched = svd.interpolate(x, z, 0.3, path="rescaled").flatten(1)
    assert torch.allclose(stretched.norm(dim=1), 0.7 * norms[0] + 0.3 * norms[1])
    assert torch.allclose(
        torch.cosine_similarity(stretched, torch.lerp(x, z, 0.3).flatten(1)), torch.ones(3).double()
    )
    z = z * (norms[0] / norms[1])[:, None, None, None]
    turned = svd.interpolate(x, z, 0.3, path="spherical").flatten(1)
    assert torch.allclose(turned.norm(dim=1), norms[0])
    whole = torch.cosine_similarity(x.flatten(1), z.flatten(1)).arccos()
    assert torch.allclose(torch.cosine_similarity(x.flatten(1), turned).arccos(), 0.3 * whole)


# Latents from a generator


def test_noise_matching_is_exact_when_the_image_is_known(gaussian):
    known = type(gaussian)(spread=0.0)
    noise = draw(5, 1, 4, 4)

    def at(t):
        return known.alpha(t) ** 0.5 * known.mean + (1 - known.alpha(t)) ** 0.5 * noise

    for t_from, t_to in ((500, 400), (400, 500), (300, 300)):
        matched = svd.match_noise(known, at(t_from), t_from, t_to, batch=2)
        assert torch.allclose(matched, at(t_to), atol=1e-10)


def test_noise_matching_refuses_bad_times_and_shapes(gaussian):
    z = gaussian.noise(2, 0)
    with pytest.raises(ValueError, match="training times in 0 ... 999"):
        svd.match_noise(gaussian, z, 1000, 400)
    with pytest.raises(ValueError, match="training times in 0 ... 999"):
        svd.match_noise(gaussian, z, 400, -1)
    with pytest.raises(ValueError, match="this model has"):
        svd.match_noise(gaussian, z[:, :, :2], 400, 300)
    with pytest.raises(ValueError, match="not finite"):
        svd.match_noise(gaussian, z / 0, 400, 300)


def test_a_prompt_pair_needs_a_model_with_text(gaussian):
    with pytest.raises(ValueError, match="unconditional"):
        svd.latent_pair(gaussian, gaussian.noise(1, 0), "a", "b", steps=5, stop=500)


@pytest.fixture(scope="module")
def mixture():
    return patterns.Patterns(SIDE)


@pytest.fixture(scope="module")
def opposite(mixture):
    """Sources without a prompt and targets that ask for the other sign, at time 400."""
    noise = mixture.noise(64, 0)
    image = sampling.ddim(mixture, noise, steps=50)
    cases = {}
    for pattern, names in ((mixture.coarse, ("left", "right")), (mixture.fine, ("up", "down"))):
        sign = (image * pattern).mean((1, 2, 3)).sign()
        target = [names[int(s > 0)] for s in sign]
        x, z = svd.latent_pair(mixture, noise, None, target, steps=50, stop=400)
        cases[names[0]] = (x, z, target, pattern, sign)
    return cases


def success(mixture, case, latents, prompt=None):
    _, _, _, pattern, sign = case
    images = sampling.ddim(mixture, latents, steps=50, start=400, prompt=prompt)
    return float(((images * pattern).mean((1, 2, 3)) * sign < 0).double().mean())


def test_an_edit_flips_what_a_prompt_switch_no_longer_can(mixture, opposite):
    case = opposite["left"]
    x, z, target, *_ = case
    assert success(mixture, case, x) == 0
    assert success(mixture, case, z) == 1
    assert success(mixture, case, x, target) <= 0.05
    weights = (0.85, 0.15, 0.1, 0.1)
    assert success(mixture, case, svd.integrate(x, z, k=16, weights=weights)) >= 0.9


def test_interpolation_mixed_free_and_literal_edits_succeed_in_this_order(mixture, opposite):
    case = opposite["up"]
    x, z, *_ = case
    line = success(mixture, case, svd.interpolate(x, z, 0.85))
    weights = (0.85, 0.15, 0.1, 0.1)
    mixed = success(mixture, case, svd.integrate(x, z, k=16, weights=weights))
    free = success(mixture, case, svd.integrate(x, z, k=16, weights=(0.85, 0.15, 0, 0)))
    literal = svd.integrate(x, z, k=16, weights=weights, reference="literal")
    assert line > mixed > free > success(mixture, case, literal)


def test_both_latents_come_from_one_noise_and_meet_at_one_level(mixture):
    noise = mixture.noise(2, 3)
    x, z = svd.latent_pair(mixture, noise, "left", "right", steps=11, stop=395)
    for latents, prompt in ((x, "left"), (z, "right")):
        own = sampling.ddim(mixture, noise, steps=11, stop=399, prompt=prompt)
        assert torch.equal(latents, own)
    _, earlier = svd.latent_pair(mixture, noise, "left", "right", steps=11, stop=395, shift=2)
    raw = sampling.ddim(mixture, noise, steps=11, stop=599, prompt="right")
    matched = svd.match_noise(mixture, raw, 599, 399, prompt="right")
    assert torch.equal(earlier, matched) and not torch.allclose(earlier, raw, atol=0.01)
    with pytest.raises(ValueError, match="leaves the grid: use -4 ... 6"):
        svd.latent_pair(mixture, noise, "left", "right", steps=11, stop=395, shift=7)


def test_the_coarse_pattern_leads_the_atoms_only_below_its_crossing_time(mixture):
    noise = mixture.noise(32, 0)
    crossing = int(svd.crossing_time(0.6 * SIDE, SIDE, mixture.alphas))
    for time, low, high in ((crossing + 300, 6, 31), (crossing - 100, 0, 1)):
        x = sampling.ddim(mixture, noise, steps=50, stop=time, prompt="left")
        index, _ = svd.aligned_atom(x, mixture.coarse)
        assert low <= float(index.double().median()) <= high


# The network


def closed_gap_and_relative(network, x, z, before):
    pair, weights = network.pair(x, z), network.config["weights"]
    with torch.no_grad():
        loss = weighted_loss(pair, network(pair), weights, network.config["reference"]).mean()
    best = svd.best_values(pair, weights, network.config["reference"])
    oracle = weighted_loss(pair, best, weights, network.config["reference"]).mean()
    return float((loss - oracle) / (before - oracle)), float((loss - oracle) / oracle)


@pytest.mark.parametrize("start", ["reference", "random"])
@pytest.mark.parametrize("n", [8, 16])
@pytest.mark.parametrize("reference", ["mixed", "literal"])
def test_a_network_trained_on_one_pair_reaches_the_closed_form(n, start, reference):
    x, z = two_latents(1, 2, n, n)
    network = svd.AttributeVectorIntegration(
        2, n // 2, weights=(2, 1, 0.2, 0.1), reference=reference, positive=False, start=start
    )
    pair = network.pair(x, z)
    with torch.no_grad():
        before = weighted_loss(pair, network(pair), (2.0, 1.0, 0.2, 0.1), reference).mean()
    gap, relative = closed_gap_and_relative(network, x, z, before)
    assert gap == pytest.approx(1) and relative > 1e-3
    network.fit(x, z, steps=500)
    gap, relative = closed_gap_and_relative(network, x, z, before)
    assert abs(gap) <= 0.01 and abs(relative) <= 1e-3
    closed = svd.integrate(x, z, k=n // 2, weights=(2, 1, 0.2, 0.1), reference=reference)
    assert (network.integrate(x, z) - closed).norm() <= 0.01 * (closed - x).norm()


def test_an_untrained_network_starts_at_the_mixed_reference():
    x, z = two_latents(2, 3, 8, 8)
    network = svd.AttributeVectorIntegration(3, 4, weights=(3, 1, 0.1, 0.1))
    pair = network.pair(x, z)
    assert torch.allclose(network(pair), svd.reference_values(pair, (3, 1, 0.1, 0.1)))
    assert torch.allclose(network.integrate(x, z, strength=0.0), x)


def test_history_is_the_mean_of_the_weighted_losses():
    x, z = two_latents(3, 2, 8, 8)
    for reference in ("mixed", "literal", "spectrum"):
        network = svd.AttributeVectorIntegration(2, 4, reference=reference, start="random")
        pair = network.pair(x, z)
        with torch.no_grad():
            values = network(pair)
        target = (
            None if reference == "spectrum" else svd.reference_values(pair, reference=reference)
        )
        expected = (svd.losses(pair, values, target) @ torch.tensor(svd.WEIGHTS).double()).mean()
        network.fit(x, z, steps=20)
        assert torch.isclose(network.history[0], expected)
        assert network.history.shape == (20,) and network.history[-1] < network.history[0]


def test_coefficients_are_not_negative_unless_allowed():
    x, z = two_latents(4, 1, 8, 8)
    for positive in (True, False):
        network = svd.AttributeVectorIntegration(1, 4, positive=positive, start="random")
        with torch.no_grad():
            lowest = network(network.pair(x, z)).min()
        assert (lowest >= 0) == positive


def test_each_channel_has_a_network_of_its_own():
    x, z = two_latents(2, 2, 8, 8)
    other = z.clone()
    other[:, 1] = draw(2, 8, 8, seed=7)
    first, second = (
        svd.AttributeVectorIntegration(2, 3).fit(x, goal, steps=30).integrate(x, goal)
        for goal in (z, other)
    )
    assert torch.equal(first[:, 0], second[:, 0])
    assert not torch.allclose(first[:, 1], second[:, 1])


def test_a_network_trained_on_many_seeds_helps_the_held_out_ones(opposite):
    x, z, *_ = opposite["up"]
    weights = (0.85, 0.15, 0.1, 0.1)
    network = svd.AttributeVectorIntegration(1, 16, alpha=0.2, weights=weights)
    held = network.pair(x[48:], z[48:])
    with torch.no_grad():
        before = weighted_loss(held, network(held), weights).mean()
    network.fit(x[:48], z[:48], steps=300)
    with torch.no_grad():
        after = weighted_loss(held, network(held), weights).mean()
    floor = weighted_loss(held, svd.best_values(held, weights), weights).mean()
    assert floor < after < before - 0.2 * (before - floor)


def test_the_network_is_free_of_the_noise_level():
    x, z = two_latents(1, 1, 8, 8)
    loud = svd.AttributeVectorIntegration(1, 4, alpha=0.0, start="random").integrate(x, z)
    soft = svd.AttributeVectorIntegration(1, 4, alpha=0.75, start="random")
    assert torch.allclose(soft.integrate(x / 2, z / 2), loud / 2)


def test_a_network_is_rebuilt_from_its_configuration_and_weights():
    x, z = two_latents(1, 2, 8, 8)
    network = svd.AttributeVectorIntegration(2, 3, reference="literal", seed=5).fit(x, z, steps=5)
    twin = svd.AttributeVectorIntegration(**network.config)
    twin.load_state_dict(network.state_dict())
    assert torch.equal(twin.integrate(x, z), network.integrate(x, z))
    again = svd.AttributeVectorIntegration(**network.config).fit(x, z, steps=5)
    assert torch.equal(again.integrate(x, z), network.integrate(x, z))


# Bad input


BAD = {
    "k above the rank": (dict(k=9), r"k = 9 atoms of \(8, 8\): use 1 ... 8"),
    "no atom": (dict(k=0), "k = 0"),
    "negative weight": (dict(weights=(1, -1, 0, 0)), "four finite numbers"),
    "three weights": (dict(weights=(1, 1, 1)), "four finite numbers"),
    "no weight": (dict(weights=(0, 0, 0, 0)), "not all of them 0"),
    "weights without a mix": (dict(weights=(0, 0, 1, 1)), "give omega"),
    "mix above one": (dict(omega=1.5), "omega = 1.5"),
    "spectrum in closed form": (dict(reference="spectrum"), "'mixed' or 'literal'"),
    "strength not finite": (dict(strength=float("nan")), "strength = nan"),
    "bases of another size": (dict(bases=(torch.eye(7), torch.eye(8))), "bases must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_integration_refuses(case):
    options, message = BAD[case]
    x, z = two_latents(2, 8, 8)
    with pytest.raises(ValueError, match=message):
        svd.integrate(x, z, **{"k": 3, **options})


def test_latents_of_another_shape_or_not_finite_are_refused():
    x, z = two_latents(2, 8, 8)
    with pytest.raises(ValueError, match=r"x is \(2, 8, 8\), z \(1, 8, 8\)"):
        svd.integrate(x, z[:1], k=3)
    with pytest.raises(ValueError, match="give equal shapes"):
        svd.interpolate(x, z[:1], 0.5)
    broken = z.clone()
    broken[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"z\[1, 2, 3\] is not finite"):
        svd.integrate(x, broken, k=3)
    with pytest.raises(ValueError, match="not finite"):
        svd.decompose(broken)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        svd.decompose(draw(3))


def test_rescaling_refuses_atoms_that_are_not_there():
    for index in (4, -1, 1.5):
        with pytest.raises(ValueError, match="atoms are numbered 0 ... 3"):
            svd.rescale(draw(4, 6), index, 2.0)
    with pytest.raises(ValueError, match="factor = nan"):
        svd.rescale(draw(4, 6), 0, float("nan"))


def test_the_network_refuses_what_it_was_not_made_for():
    x, z = two_latents(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"expected \(n, 2, h, w\)"):
        svd.AttributeVectorIntegration(2, 3).fit(x, z)
    with pytest.raises(ValueError, match="reference = 'other'"):
        svd.AttributeVectorIntegration(3, 3, reference="other")
    with pytest.raises(ValueError, match="start = 'zero'"):
        svd.AttributeVectorIntegration(3, 3, start="zero")
    with pytest.raises(ValueError, match="alpha"):
        svd.AttributeVectorIntegration(3, 3, alpha=1.0)
    with pytest.raises(ValueError, match="steps = 0"):
        svd.AttributeVectorIntegration(3, 3).fit(x, z, steps=0)
