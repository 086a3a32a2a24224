"""Laws of comparing maps: ranks, blocks, smoothing and units."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from lib.slices import maps

RNG = np.random.default_rng(0)


def test_agreement_is_spearmans_with_ties():
    x = RNG.integers(6, size=(12, 10)).astype(float)
    y = x + RNG.normal(size=x.shape)
    assert maps.rank_agreement(x, y).value == pytest.approx(spearmanr(x.ravel(), y.ravel())[0])


def test_agreement_sees_ranks_alone():
    x = RNG.normal(size=(9, 9))
    found = maps.rank_agreement(np.exp(3 * x), x)
    assert found.value == pytest.approx(1) and found.error == pytest.approx(0, abs=1e-6)
    assert maps.rank_agreement(-x, x).value == pytest.approx(-1)


def test_a_gap_is_the_difference_of_two_agreements_with_a_paired_error():
    truth, noise = RNG.normal(size=(2, 24, 24))
    near, far = truth + noise, truth + 2 * noise
    gap = maps.rank_gain(near, far, truth)
    alone = [maps.rank_agreement(m, truth) for m in (near, far)]
    assert gap.value == pytest.approx(alone[0].value - alone[1].value)
    assert gap.error < np.hypot(alone[0].error, alone[1].error)
    same = maps.rank_gain(near, near, truth)
    assert same.value == same.error == 0


def test_the_interval_covers_independent_noise_and_widens_with_correlated_blocks():
    covered, independent, blocky = 0, [], []
    for _ in range(60):
        x, y = RNG.normal(size=(2, 24, 24))
        found = maps.rank_agreement(x, y, draws=200)
        covered += found.low <= 0 <= found.high
        independent.append(found.error)
        coarse = [np.kron(v[:6, :6], np.ones((4, 4))) for v in (x, y)]
        blocky.append(maps.rank_agreement(*coarse, draws=200).error)
    assert covered > 48
    assert np.mean(independent) == pytest.approx(1 / 24, rel=0.2)
    assert np.mean(blocky) == pytest.approx(1 / 6, rel=0.25)


@pytest.mark.parametrize(
    "x, y, options, message",
    [
        (np.eye(4), np.eye(5), {}, "one shape"),
        (np.eye(4), np.ones((4, 4)), {}, "constant"),
        (np.eye(4), np.full((4, 4), np.nan), {}, "finite"),
        (np.eye(4), np.eye(4), {"blocks": 5}, "blocks"),
    ],
)
def test_maps_without_ranks_are_refused(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        maps.rank_agreement(x, y, **options)


def test_smoothing_has_the_width_asked_for():
    point = np.zeros((81, 81))
    point[40, 40] = 1
    blurred = maps.smooth(point, 0.05, spacing=1 / 80)
    i = np.arange(81) / 80
    mean = blurred.sum(1) @ i
    assert (blurred.sum(1) @ (i - mean) ** 2) ** 0.5 == pytest.approx(0.05, rel=0.01)
    np.testing.assert_array_equal(maps.smooth(point, 0.0, spacing=1 / 80), point)
    with pytest.raises(ValueError, match="spacing"):
        maps.smooth(point, 0.1, spacing=0.0)


def test_overlap_counts_cells():
    a, b = np.zeros((2, 4, 4), bool)
    assert maps.overlap(a, b) == 1
    a[0, :3], b[0, 1:] = True, True
    assert maps.overlap(a, b) == 0.5


def test_a_map_is_read_between_its_points():
    t = np.stack(np.meshgrid(*[np.linspace(0, 1, 9)] * 2, indexing="ij"), -1)
    values = 2 * t[..., 0] - t[..., 1]
    at = RNG.uniform(size=(20, 2))
    np.testing.assert_allclose(maps.read(values, at), 2 * at[:, 0] - at[:, 1])
