"""Laws of directions found without labels, and of changes as values."""

import copy

import pytest
import torch

from lib import hspace
from lib.diffusion import models
from lib.diffusion.sampling import ddim, time_grid
from lib.hspace import bases, deltas, means, trained
from lib.kit import cache

STEPS = 6  # times 0, 199, 399, 599, 799, 999


@pytest.fixture(scope="module")
def pixel(pixel):
    """The bounded pixel model with its blocks within reach of the hooks."""
    twin = copy.copy(pixel)
    twin.unet = copy.deepcopy(pixel.unet)
    for name in ("mid_block", "time_proj", "time_embedding"):
        setattr(twin.unet, name, getattr(twin.unet.unet, name))
    return twin


def unit(*key):
    v = models.unit_normal((4, 2, 2), *key)
    return v / v.norm()


def test_principal_directions_are_those_of_h_at_each_edited_time(pixel):
    x = pixel.noise(5, 0)
    found = bases.principal(pixel, x, steps=STEPS, t_edit=500, k=2)
    assert sorted(found) == [599, 799, 999]
    with hspace.capture(pixel) as h:
        ddim(pixel, x, steps=STEPS)
    for t, rows in found.items():
        expected, _ = bases.principal_components(h[t], 2)
        torch.testing.assert_close(rows, expected.float(), rtol=1e-2, atol=1e-3)
    with pytest.raises(ValueError, match="above every step"):
        bases.principal(pixel, x, steps=STEPS, t_edit=1000)


def test_pick_takes_the_nearest_candidate_with_its_sign_and_the_labelled_norm():
    labelled = deltas.per_step({9: 3.0 * unit(1), 500: 7.0 * unit(2)})
    other = unit(5)
    found = bases.pick(
        {9: torch.stack([other, -2 * unit(1)]), 500: torch.stack([-unit(2), other])}, labelled
    )
    assert found.cosine == pytest.approx(1.0) and found.index == 0
    for t, v in labelled.items():
        torch.testing.assert_close(found.change[t], v)
    single = bases.pick({500: torch.stack([other, unit(2)])}, labelled)
    assert single.index == 1
    torch.testing.assert_close(single.change[9], 3.0 * unit(2))
    with pytest.raises(ValueError, match="no time in common"):
        bases.pick({7: other[None]}, labelled)


def test_pullback_edit_is_plain_without_a_step_and_moves_with_one(pixel):
    x, v = pixel.noise(3, 0), models.unit_normal(pixel.latent_shape, 3)
    run = {"steps": STEPS, "t": 600, "repeats": 2}
    none = bases.pullback_edit(pixel, x, v / v.norm(), step=0.0, **run)
    torch.testing.assert_close(none, ddim(pixel, x, steps=STEPS), rtol=1e-4, atol=1e-5)
    middle = ddim(pixel, x, steps=STEPS, stop=599)
    with torch.no_grad():
        for _ in range(2):
            both = [pixel.epsilon(y, 599) for y in (middle + v / v.norm(), middle)]
            middle = middle + 2.0 * (both[0] - both[1])
    expected = ddim(pixel, middle, steps=STEPS, start=599)
    ours = bases.pullback_edit(pixel, x, v / v.norm(), step=2.0, **run)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert float((ours - none).abs().max()) > 1e-4


def test_projected_changes_share_nothing_with_the_protected_ones():
    v, other = (
        deltas.per_step({9: unit(1), 99: unit(2)}),
        deltas.per_step({9: unit(3), 99: unit(4)}),
    )
    kept = means.projected(v, [other])
    assert max(abs(float((kept[t] * other[t]).sum())) for t in kept) < 1e-6


def test_agreement_is_the_mean_cosine_of_pairs_of_times():
    a, b = unit(1), unit(2)
    b = b - (a * b).sum() * a
    changes = {0: -a, 500: a, 700: 2 * b, 900: 3 * a}
    found = means.agreement(changes, changes, above=500)
    assert found.across == pytest.approx(1 / 3) and found.same == pytest.approx(1)
    crossed = means.agreement(changes, {500: b, 700: b, 900: -a, 950: a}, above=500)
    assert (crossed.same, crossed.across) == pytest.approx((0, 0), abs=1e-6)
    with pytest.raises(ValueError, match="a pair is needed"):
        means.agreement(changes, changes, above=900)


def test_an_error_that_all_times_share_is_no_agreement_of_two_samples():
    """Two estimates of nothing: each agrees with itself over time, and not with the other."""
    errors = [{t: unit(k) + 0.3 * unit(k, t) for t in (500, 700, 900)} for k in (3, 4)]
    assert means.agreement(errors[0], errors[0]).across > 0.8
    assert abs(means.agreement(*errors).across) < 0.3


def test_changes_are_values_that_a_cache_keeps_and_tells_apart(pixel, tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_CACHE", str(tmp_path))
    shape = hspace.h_shape(pixel)
    change = deltas.per_step({t: models.unit_normal(shape, t) for t in time_grid(STEPS)})
    same = deltas.per_step({t: models.unit_normal(shape, t) for t in time_grid(STEPS)})
    run = {"steps": STEPS, "t_edit": 500}
    key = cache.key(hspace.edit, pixel, pixel.noise(2, 0), change, **run)
    assert key == cache.key(hspace.edit, pixel, pixel.noise(2, 0), same, **run)
    keys = {
        cache.key(hspace.edit, pixel, pixel.noise(2, 0), delta, **run)
        for delta in (
            change,
            deltas.combine({change: 2.0}),
            deltas.constant(change[999]),
            trained.DeltaBlock(pixel),
            trained.DeltaBlock(pixel, seed=1),
        )
    }
    assert len(keys) == 5
    kept = [
        cache.cached(means.mean_epsilon, pixel, pixel.noise(2, 0), change, **run) for _ in range(2)
    ]
    assert list(kept[0]) == list(kept[1]) and torch.equal(kept[0][999], kept[1][999])
    torch.testing.assert_close(kept[1](torch.zeros(1), 990), kept[0][999])
