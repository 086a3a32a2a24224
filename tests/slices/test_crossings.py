"""Flips of many paths at once, on paths whose flips are known."""

import numpy as np
import pytest
import torch

from lib.diffusion import mixture
from lib.slices import crossings

BORDERS = torch.tensor([0.1, 0.37, 0.5003, 0.99, 2.0]).double()


def test_first_flips_are_where_they_were_put_and_missing_ones_are_told():
    found = crossings.first_flip(lambda i, s: s > BORDERS[i], 5, tolerance=1e-4)
    assert (found.place[:4] - BORDERS[:4]).abs().max() <= 0.5e-4
    assert found.place[4].isnan() and found.count.tolist() == [1, 1, 1, 1, 0]


def test_of_several_flips_the_first_is_followed_and_all_are_counted():
    found = crossings.first_flip(lambda i, s: (6 * s).long() % 2 == 1, 2, parts=12, tolerance=1e-3)
    assert found.count.tolist() == [6, 6]  # at 1/6 ... 1, the end included
    assert (found.place - 1 / 6).abs().max() <= 0.5e-3


@pytest.mark.parametrize("options", [{"parts": 0}, {"tolerance": 0.0}, {"tolerance": 1.0}])
def test_what_cannot_be_bisected_is_refused(options):
    with pytest.raises(ValueError, match="parts ="):
        crossings.first_flip(lambda i, s: s > 0.5, 1, **options)


def test_the_border_of_two_modes_lies_where_symmetry_puts_it():
    """Modes at ±m: the flow keeps the sign of ⟨x, m⟩, so the border of an arc is in closed form."""
    rng = torch.Generator().manual_seed(3)
    m = 2 * torch.randn(1, 1, 4, 4, generator=rng, dtype=torch.float64)
    a, b = torch.randn(2, 6, 1, 4, 4, generator=rng, dtype=torch.float64)

    def inner(x):
        return (x * m).sum((1, 2, 3))

    def decide(i, s):
        return mixture.second_mode(torch.cat([-m, m]), 0.3, crossings.arc(a[i], b[i], s))

    a, b = -a * inner(a).sign().view(-1, 1, 1, 1), b * inner(b).sign().view(-1, 1, 1, 1)
    found = crossings.first_flip(decide, 6, tolerance=1e-3).place
    cosine = (a * b).sum((1, 2, 3)) / (a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1))
    angle = cosine.arccos()
    ratio = -inner(a) / inner(b)  # sin(s θ) / sin((1 - s) θ) at the border
    exact = torch.atan2(ratio * angle.sin(), 1 + ratio * angle.cos()) / angle
    assert (found - exact).abs().max() <= 1e-3


def test_a_border_that_moves_in_proportion_obeys_the_law_and_others_do_not():
    place, critical = torch.tensor([0.3, 0.6, 0.8, 0.5]), torch.tensor([1.0, 0.5, 2.0, 9.0])

    def decide(i, s, c):
        return s >= place[i] * (1 - c / critical[i])

    found = crossings.moved_borders(decide, 4, (0.5, -0.2), most=4.0)
    assert found.critical[3].isnan() and found.moved[3].isnan().all()
    assert (found.place[:3] - place[:3]).abs().max() <= 1 / 128
    assert (found.critical[:3] / critical[:3] - 1).abs().max() < 0.1
    for share, moved in zip((0.5, -0.2), found.moved[:3].T, strict=True):
        assert crossings.law_ratio(found.place[:3], moved, share) < 0.25
    assert crossings.law_ratio(place, place, 0.5) == 1.0  # the border stays
    assert crossings.law_ratio(place, place * 0.5, 0.5) == 0.0
    assert np.isclose(crossings.law_ratio(place, place * 0.75, 0.5), 1.0)
