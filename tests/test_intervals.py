"""Laws of error bars: bootstrap, jackknife, leads, and costs at equal success."""

import numpy as np
import pytest
import torch
from scipy import stats

from lib import intervals


def test_the_bootstrap_error_of_a_mean_is_that_of_the_textbook():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = intervals.bootstrap(values)
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std() / 20, rel=0.1)
    assert found.low < values.mean() < found.high
    assert (found.high - found.low) == pytest.approx(3.92 * found.error, rel=0.1)
    assert intervals.bootstrap(values, statistic=np.median).value == np.median(values)


@pytest.mark.parametrize("statistic", [np.mean, np.median, np.std])
def test_the_bootstrap_is_that_of_scipy_where_every_resample_is_a_number(statistic):
    values = np.random.default_rng(1).exponential(size=40)
    found = intervals.bootstrap(values, statistic=statistic, draws=500, seed=4)
    rng = np.random.default_rng(4)
    options = {"n_resamples": 500, "method": "percentile", "random_state": rng}
    scipy = stats.bootstrap((values,), statistic, **options)
    low, high = scipy.confidence_interval
    assert found[2:] == pytest.approx((low, high), rel=1e-12)
    assert found.error == pytest.approx(scipy.standard_error * (499 / 500) ** 0.5, rel=1e-12)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    samples = rng.normal(1.0, 3.0, (400, 50))
    bars = [intervals.bootstrap(x, draws=400, seed=k) for k, x in enumerate(samples)]
    covered = np.mean([bar.low <= 1.0 <= bar.high for bar in bars])
    # ± 1.96 of the deviation of 50 numbers, which their own number underrates by √(49 / 50)
    expected = 2 * stats.t(49).cdf(1.96 * (49 / 50) ** 0.5) - 1
    assert abs(covered - expected) < 3 * (expected * (1 - expected) / 400) ** 0.5


def test_seeds_are_resampled_together():
    x = np.random.default_rng(0).normal(size=50)
    ratio = intervals.bootstrap(x, 2 * x, statistic=lambda a, b: b.sum() / a.sum())
    assert ratio.value == pytest.approx(2) and ratio.error < 1e-12
    assert intervals.bootstrap(torch.from_numpy(x)) == intervals.bootstrap(x)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (([1.0, 2.0], [1.0]), "same seeds"),
        (([],), "at least one"),
        ((3.0,), "at least one"),
        (([1.0, np.inf],), "not finite"),
        (([1.0, 2.0], [np.nan, 0.0]), "not finite"),
    ],
)
def test_values_without_common_seeds_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        intervals.bootstrap(*values)


def test_resamples_that_are_not_a_number_are_left_out():
    drawn = np.random.default_rng(3).normal(size=300)
    holed = np.insert(drawn, [0, 100, 300], [np.nan, np.inf, -np.inf])
    assert intervals.of_draws(0.1, holed) == intervals.of_draws(0.1, drawn)
    never = intervals.of_draws(0.1, [np.nan] * 5)
    assert never.value == 0.1 and np.isnan(never[1:]).all()
    lacking = np.array([1.0, 0.0, 0.0])  # a resample may hold no one at all
    share = intervals.bootstrap(lacking, statistic=lambda x: 1.0 if x.any() else np.nan)
    assert share == (1.0, 0.0, 1.0, 1.0)
    assert intervals.bootstrap([2.0]) == (2.0, 0.0, 2.0, 2.0)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(4).normal(size=30)
    left = [np.delete(values, i).mean() for i in range(30)]
    exact = values.std(ddof=1) / 30**0.5
    assert intervals.of_left_out(left) == pytest.approx(exact, rel=1e-12)
    assert intervals.of_left_out(left[:1]) == 0.0


def test_a_jackknife_over_blocks_is_the_error_of_the_mean_of_the_blocks():
    values = np.random.default_rng(5).normal(size=(40, 40))
    found = intervals.jackknife(np.mean, values, blocks=8)
    blocks = values.reshape(8, 5, 8, 5).mean((1, 3))
    assert found == pytest.approx(blocks.std(ddof=1) / 8, rel=1e-12)
    assert found == pytest.approx(1 / 40, rel=0.3)
    clumped = np.kron(blocks, np.ones((5, 5)))  # 64 independent values, not 1,600
    assert intervals.jackknife(np.mean, torch.from_numpy(clumped), blocks=8) == pytest.approx(
        blocks.std(ddof=1) / 8, rel=1e-12
    )

    def ratio(a, b):
        return a.sum() / b.sum()

    assert intervals.jackknife(ratio, 3 * values**2, values**2) == pytest.approx(0, abs=1e-12)
    for maps, blocks in (((values, values[:5]), 4), ((values,), 1), ((values,), 41)):
        with pytest.raises(ValueError, match="one shape"):
            intervals.jackknife(lambda *m: 0.0, *maps, blocks=blocks)


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
    assert found.cost.value == pytest.approx(0.2) and 0.5 < found.reached < 0.9
    never = intervals.matched([0.5, 1.0], 0 * success, cost)
    assert np.isnan(never.cost).all() and never.reached == 0
    with pytest.raises(ValueError, match="must rise"):
        intervals.matched([1.0, 0.5], success, cost)
    with pytest.raises(ValueError, match="for 3 strengths"):
        intervals.matched([1, 2, 3], success, cost)


def test_a_lead_is_the_gap_of_two_costs_on_the_same_seeds():
    rng, strengths = np.random.default_rng(6), [0.5, 1.0]
    success = np.array([[0] * 40, [1] * 36 + [0] * 4])
    cost = np.abs(rng.normal(1.0, 1.0, (2, 40)))
    rival = success, cost + 0.3
    ahead = intervals.lead(strengths, (success, cost), rival, draws=300)
    assert ahead[:1] == pytest.approx([-0.3]) and ahead.error < 1e-12  # what they share cancels
    alone = intervals.matched(strengths, success, cost).cost
    assert alone.error > 0.05
    never = intervals.lead(strengths, (0 * success, cost), rival, draws=20)
    assert np.isnan(never).all()
    with pytest.raises(ValueError, match="for 2 strengths"):
        intervals.lead(strengths, (success, cost[:, :3]), rival)


def test_a_table_is_read_off_on_the_straight_line_between_its_rows():
    success, columns = [0.0, 0.5, 0.4, 1.0], [[0, 8], [1, 6], [2, 4], [3, 2]]
    assert intervals.read_off(success, columns, 0.25).tolist() == [0.5, 7.0]
    assert intervals.read_off(success, columns, 0.7).tolist() == [2.5, 3.0]
    assert intervals.read_off(success, columns, -1.0).tolist() == [0.0, 8.0]
    assert np.isnan(intervals.read_off(success, columns, 1.1)).all()
