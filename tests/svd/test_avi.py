"""Laws of Attribute Vector Integration: the closed form, and the network that predicts it."""

import numpy as np
import pytest
import torch
from latents import draw, two_latents

from lib import svd


def weighted_loss(pair, values, weights, reference="mixed"):
    target = svd.reference_values(pair, weights, reference)
    return svd.losses(pair, values, target) @ torch.tensor(weights, dtype=torch.float64)


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
        2, n // 2, weights=(2, 1, 0.2, 0.1), reference=reference, start=start
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


def test_coefficients_are_not_negative_unless_the_start_is_random():
    x, z = two_latents(4, 1, 8, 8)
    for start in ("reference", "random"):
        network = svd.AttributeVectorIntegration(1, 4, start=start)
        torch.nn.init.constant_(network.offsets[-1], -3.0)
        with torch.no_grad():
            lowest = network(network.pair(x, z)).min()
        assert (lowest >= 0) == (start == "reference")


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
