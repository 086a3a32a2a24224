"""Laws of mixing two latents, and of making them."""

import math

import numpy as np
import pytest
import torch
from latents import draw, two_latents

from lib import svd
from lib.diffusion import sampling
from lib.svd import mixing

SIDE = 32


# Baselines


def test_a_free_core_fits_better_than_a_diagonal_and_best_among_cores():
    x, z = two_latents(12, 12)
    goal = torch.lerp(x, z, 0.7)
    full = mixing.integrate_full_core(x, z, k=3, omega=0.7)
    diagonal = svd.integrate(x, z, k=3, weights=(0.7, 0.3, 0, 0))
    assert (full - goal).norm() < 0.99 * (diagonal - goal).norm()
    pair = svd.atom_pair(x, z, k=3)
    residual = pair.left.mT @ (goal - full) @ pair.right
    assert residual.abs().max() < 1e-12
    assert torch.allclose(mixing.integrate_full_core(x, z, k=6, omega=0.7), goal)


def test_fixed_bases_integrate_what_is_sparse_in_them():
    left, right = mixing.cosine_basis(8), mixing.cosine_basis(6)
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

    assert np.allclose(mixing.cosine_basis(7).mT, scipy.fft.dct(np.eye(7), axis=0, norm="ortho"))


def test_principal_bases_of_one_latent_are_its_singular_vectors():
    x = draw(6, 8)
    U, _, Vh = svd.decompose(x)
    left, right = mixing.principal_bases(x)
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


def test_paths_without_a_direction_are_refused():
    x, z = draw(3, 2, 4, 4), draw(3, 2, 4, 4, seed=1)
    opposite = torch.cat([z[:2], -x[2:]])  # one sample among others
    for path, weight, other in (
        ("rescaled", 0.5, opposite),
        ("rescaled", 1.0, 0 * x),
        ("spherical", 0.5, opposite),
        ("spherical", 0.3, 0 * x),
    ):
        with pytest.raises(ValueError, match="opposite"):
            svd.interpolate(x, other, weight, path=path)
        assert bool(svd.interpolate(x, other, weight).isfinite().all())
    assert torch.allclose(svd.interpolate(x, -x, 0.25, path="rescaled"), x)
    for weight in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite weight"):
            svd.interpolate(x, z, weight)
