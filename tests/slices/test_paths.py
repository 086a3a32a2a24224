"""Laws of paths: length and turning."""

import numpy as np
import pytest
import torch

from lib.slices import paths

RNG = np.random.default_rng(0)


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


def test_bends_and_ways_are_shared_out_by_where_they_lie():
    mask = np.zeros((11, 11), bool)
    mask[5] = True
    bent = [[0.0, 0.0], [0.25, 0.0], [0.5, 0.0], [0.5, 0.5], [0.5, 1.0]]  # turns on the mask alone
    away = [[0.0, 0.0], [0.0, 0.5], [0.0, 1.0], [0.25, 1.0], [0.25, 0.5]]
    turning, way = paths.shares_on(mask, [bent, away])
    assert turning.tolist() == [1, 0] and way == pytest.approx([1.125 / 1.5, 0])
    assert np.isnan(paths.shares_on(mask, [[[0, 0], [0.25, 0], [0.5, 0], [1, 0]]])[0]).all()
