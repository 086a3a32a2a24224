"""Edits compared at equal success, and intervals over seeds.

A method is swept over its strength; what it costs is read off where it succeeds on a given share of
the seeds. Comparing at equal strength would compare the units of the strengths.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """Mean over seeds, its bootstrap standard error, and the ends of the 95 % interval."""

    mean: float
    error: float
    low: float
    high: float


class Matched(NamedTuple):
    """Strength at which a method reaches the wanted success, its cost there, and an error.

    reached: share of bootstrap draws in which the success is reached at all.
    """

    strength: float
    cost: float
    error: float
    reached: float


def bootstrap(
    *values: Sequence[float],
    statistic: Callable[..., float] = np.mean,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of statistic(*values) over seeds, resampled jointly; each of values is (n, ...).

    Raises ValueError for no seed, or values of different lengths.
    """
    arrays = [np.asarray(value, float) for value in values]
    n = len(arrays[0])
    if n < 1 or any(len(array) != n for array in arrays):
        raise ValueError(f"lengths {[len(a) for a in arrays]}: give the same seeds, at least one")
    pick = np.random.default_rng(seed).integers(n, size=(draws, n))
    drawn = np.array([statistic(*(array[rows] for array in arrays)) for rows in pick])
    drawn = drawn[np.isfinite(drawn)]
    ends = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    error = float(drawn.std()) if len(drawn) else np.nan
    return Interval(float(statistic(*arrays)), error, *map(float, ends))


def cost_at(
    strengths: Sequence[float], success: np.ndarray, cost: np.ndarray, *, level: float = 0.8
) -> tuple[float, float]:
    """Smallest strength that reaches `level`, and the cost there, linear between neighbours.

    success, cost: (strengths, n); not reached: (nan, nan). Strengths rise.
    """
    share, price = np.asarray(success, float).mean(1), np.asarray(cost, float).mean(1)
    above = np.flatnonzero(share >= level)
    if not len(above):
        return np.nan, np.nan
    i = above[0]
    if i == 0:
        return float(strengths[0]), float(price[0])
    w = (level - share[i - 1]) / (share[i] - share[i - 1])
    between = lambda values: float((1 - w) * values[i - 1] + w * values[i])  # noqa: E731
    return between(strengths), between(price)


def matched(
    strengths: Sequence[float],
    success: np.ndarray,
    cost: np.ndarray,
    *,
    level: float = 0.8,
    draws: int = 500,
    seed: int = 0,
) -> Matched:
    """`cost_at` with a bootstrap error over seeds, (strengths, n) each.

    Raises ValueError for arrays that do not fit the strengths, or strengths that do not rise.
    """
    success, cost = np.asarray(success, float), np.asarray(cost, float)
    if success.shape != cost.shape or len(success) != len(strengths):
        raise ValueError(
            f"success {success.shape}, cost {cost.shape} for {len(strengths)} strengths: give "
            "(strengths, seeds) for both"
        )
    if np.any(np.diff(strengths) <= 0):
        raise ValueError(f"strengths {list(strengths)} must rise")
    pick = np.random.default_rng(seed).integers(success.shape[1], size=(draws, success.shape[1]))
    costs = [cost_at(strengths, success[:, r], cost[:, r], level=level)[1] for r in pick]
    kept = np.array(costs)[np.isfinite(costs)]
    strength, value = cost_at(strengths, success, cost, level=level)
    error = float(kept.std()) if len(kept) else np.nan
    return Matched(strength, value, error, len(kept) / draws)


def total_variation(before: Mapping, after: Mapping, leave_out: str) -> np.ndarray:
    """Off-target change: mean over the other attributes of ½ Σ |p_after - p_before|, (n,), 0 ... 1.

    before, after: {attribute: class probabilities (n, classes)}; leave_out: the edited attribute.
    Raises ValueError for an unknown attribute or one that is alone.
    """
    if leave_out not in before or len(before) < 2:
        raise ValueError(f"{leave_out!r} must be one of several attributes, here {list(before)}")
    others = [name for name in before if name != leave_out]
    change = [np.abs(np.asarray(after[a]) - np.asarray(before[a])).sum(1) / 2 for a in others]
    return np.mean(change, axis=0)
