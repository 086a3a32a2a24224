import numpy as np
import pytest

from lib import intervals


def test_the_bootstrap_error_of_a_mean_is_that_of_the_textbook():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = intervals.bootstrap(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std() / 20, rel=0.1)
    assert found.low < values.mean() < found.high
    assert (found.high - found.low) == pytest.approx(3.92 * found.error, rel=0.1)


def test_seeds_are_resampled_together():
    x = np.random.default_rng(0).normal(size=50)
    ratio = intervals.bootstrap(x, 2 * x, statistic=lambda a, b: b.sum() / a.sum())
    assert ratio.mean == pytest.approx(2) and ratio.error < 1e-12
    with pytest.raises(ValueError, match="same seeds"):
        intervals.bootstrap(x, x[:10])


def test_the_cost_is_read_off_where_the_success_is_reached():
    success = np.array([[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    cost = np.array([[0.0] * 5, [0.1] * 5, [0.4] * 5])
    strength, price = intervals.cost_at([0.2, 0.6, 1.0], success, cost, level=0.8)
    assert strength == pytest.approx(0.6 + 0.4 * 2 / 3) and price == pytest.approx(0.3)
    assert intervals.cost_at([0.2, 0.6, 1.0], success, cost, level=0.0) == (0.2, 0.0)
    assert np.isnan(intervals.cost_at([0.2, 0.6], success[:2], cost[:2])).all()


def test_matching_tells_how_often_the_level_is_reached():
    success = np.array([[0] * 10, [1] * 8 + [0] * 2])
    cost = np.array([[0.0] * 10, [0.2] * 10])
    found = intervals.matched([0.5, 1.0], success, cost)
    assert found.cost == pytest.approx(0.2) and 0.5 < found.reached < 0.9
    never = intervals.matched([0.5, 1.0], 0 * success, cost)
    assert np.isnan(never.cost) and never.reached == 0
    with pytest.raises(ValueError, match="must rise"):
        intervals.matched([1.0, 0.5], success, cost)
    with pytest.raises(ValueError, match="for 3 strengths"):
        intervals.matched([1, 2, 3], success, cost)


def test_total_variation_leaves_the_edited_attribute_out():
    before = {"hat": np.array([[1.0, 0.0]] * 2), "skin": np.array([[0.2, 0.8]] * 2)}
    after = {"hat": np.array([[0.0, 1.0]] * 2), "skin": np.array([[0.2, 0.8], [0.7, 0.3]])}
    assert np.allclose(intervals.total_variation(before, after, "hat"), [0, 0.5])
    assert np.allclose(intervals.total_variation(before, after, "skin"), [1, 1])
    with pytest.raises(ValueError, match="'nose'"):
        intervals.total_variation(before, after, "nose")
