"""Laws of paths: spherical interpolation, length and turning."""

import numpy as np
import pytest
import torch

from lib.slices import paths

RNG = np.random.default_rng(0)


def test_spherical_paths_keep_the_norm_and_the_pace():
    a, b = torch.as_tensor(RNG.standard_normal((2, 3, 1, 4, 4)))
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    path = paths.spherical(a, b, 9)
    assert path.shape == (3, 9, 1, 4, 4)
    torch.testing.assert_close(path[:, 0], a)
    torch.testing.assert_close(path[:, -1], b)
    norms = path.flatten(2).norm(dim=2)
    torch.testing.assert_close(norms, norms[:, :1].expand(-1, 9))
    steps = path.diff(dim=1).flatten(2).norm(dim=2)
    torch.testing.assert_close(steps, steps[:, :1].expand(-1, 8))


def test_spherical_paths_of_equal_directions_are_straight():
    a = torch.as_tensor(RNG.standard_normal((1, 1, 2, 2)))
    middle = paths.spherical(a, 2 * a, 3)[:, 1]
    torch.testing.assert_close(middle, 1.5 * a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor, message", [(-1.0, "opposite"), (0.0, "zero")])
def test_pairs_without_an_arc_are_refused(factor, message):
    a = torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match=message):
        paths.spherical(a, factor * a, 4)
    with pytest.raises(ValueError, match="points"):
        paths.spherical(a, a, 1)


def test_a_regular_polygon_turns_by_its_outer_angles():
    angle = np.linspace(0, np.pi, 13)
    half_circle = np.stack([np.cos(angle), np.sin(angle)], 1)[None]
    assert paths.turning(half_circle) == pytest.approx([11 * np.pi / 12])
    assert paths.feature_length(half_circle) == pytest.approx([24 * np.sin(np.pi / 24)])


def test_straight_paths_do_not_turn_even_where_points_coincide():
    line = np.linspace([0.1, 0.2], [0.7, 0.3], 5)
    curve = np.concatenate([line, line[-1:]])[None]
    assert paths.turning(curve) == pytest.approx([0.0], abs=1e-7)
    back = np.concatenate([line, line[::-1][1:]])[None]
    assert paths.turning(back) == pytest.approx([np.pi])


def test_length_adds_up_over_all_features():
    images = RNG.standard_normal((2, 4, 3, 2, 2))
    expected = [
        sum(np.linalg.norm(b - a) for a, b in zip(p[:-1], p[1:], strict=True)) for p in images
    ]
    assert paths.feature_length(torch.as_tensor(images)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="points >= 2"):
        paths.turning(images[:, :1])
