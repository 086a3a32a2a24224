"""Error bars: bootstrap over seeds, jackknife over blocks, leads and costs at equal success.

A method is swept over its strength; what it costs is read off where it succeeds on a given share of
the seeds. Comparing at equal strength would compare the units of the strengths.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

Values = ArrayLike | Tensor  # numbers in an array, a list or a tensor


class Interval(NamedTuple):
    """A statistic, its standard error, and the ends of its central 95 % interval."""

    value: float
    error: float
    low: float
    high: float

    def __repr__(self) -> str:
        ends = f", 95 % within {self.low:.4g} and {self.high:.4g}" if self.low < self.high else ""
        return with_error(self.value, self.error) + ends


class Matched(NamedTuple):
    """Strength at which a method reaches the wanted success, and what it costs there.

    reached: share of bootstrap draws in which the success is reached at all.
    """

    strength: float
    cost: Interval
    reached: float


def with_error(value: float, error: float) -> str:
    """`value ± error`: one digit of the error, two where it begins with 1 or 2.

    The value ends at the same place. Errors beyond 1e-6 to 1e5 keep their powers of ten.
    """
    if not (1e-6 < error < 1e5 and abs(value) < 1e5):
        return f"{value:.4g} ± {error:.1g}"
    mantissa, _, exponent = f"{error:e}".partition("e")
    places = max(0, (mantissa[0] in "12") - int(exponent))
    return f"{value:.{places}f} ± {error:.{places}f}"


def as_numpy(values: Values) -> np.ndarray:
    """An array of a tensor, on any device, or of an array or a list; its type is kept."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def as_array(values: Values) -> np.ndarray:
    """A float64 array of a tensor, on any device, or of an array or a list."""
    return np.asarray(as_numpy(values), np.float64)


def of_draws(value: float, drawn: Values) -> Interval:
    """Interval of a statistic from its resamples (draws,): their deviation and 95 % quantiles.

    Resamples that are not a number (no seed of the draw reaches the success) are left out; without
    any other, error and ends are NaN.
    """
    drawn = np.asarray(drawn, float)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(float(value), np.nan, np.nan, np.nan)
    return Interval(float(value), *map(float, (drawn.std(), *np.quantile(drawn, [0.025, 0.975]))))


def resamples(n: int, draws: int, seed: int) -> np.ndarray:
    """Which of n units each bootstrap draw takes, with replacement, (draws, n)."""
    return np.random.default_rng(seed).integers(n, size=(draws, n))


def bootstrap(
    *values: Values,
    statistic: Callable[..., float] = np.mean,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of statistic(*values) over seeds, resampled jointly; each of values is (n, ...).

    The percentile bootstrap (Efron and Tibshirani 1993, chapter 13). Raises ValueError for no seed,
    values of different lengths, or values that are not finite.
    """
    # scipy.stats.bootstrap draws the same rows, but gives NaN for the whole interval where a single
    # resample is not a number, and refuses one seed; a test holds that the two agree elsewhere.
    arrays = [as_array(value) for value in values]
    n = len(arrays[0]) if arrays[0].ndim else 0
    if n < 1 or any(a.ndim < 1 or len(a) != n for a in arrays):
        raise ValueError(f"shapes {[a.shape for a in arrays]}: give the same seeds, at least one")
    if not all(np.isfinite(a).all() for a in arrays):
        raise ValueError("values are not finite: leave those seeds out of all of them first")
    drawn = [statistic(*(a[pick] for a in arrays)) for pick in resamples(n, draws, seed)]
    return of_draws(statistic(*arrays), drawn)


def of_left_out(left: Values) -> float:
    """Jackknife standard error from T₋ᵢ (k,), one of k units left out: √((k−1)/k Σ (T₋ᵢ − mean)²).

    Zero for fewer than two units (Efron and Tibshirani 1993, Eq. 11.5).
    """
    left = np.asarray(left, float)
    k = len(left)
    return float(np.sqrt((k - 1) / k * np.square(left - left.mean()).sum())) if k > 1 else 0.0


def jackknife(statistic: Callable[..., float], *maps: Values, blocks: int = 4) -> float:
    """Standard error of statistic(*maps), leaving out blocks × blocks rectangles in turn.

    Neighbouring values of a map are not independent, so whole rectangles are. statistic takes the
    values (m,) of every map (g, h) at the same m points. Raises ValueError for shapes that differ
    and blocks without points.
    """
    arrays = [as_array(m) for m in maps]
    shape = arrays[0].shape
    if any(a.shape != shape for a in arrays) or len(shape) != 2 or not 2 <= blocks <= min(shape):
        raise ValueError(
            f"maps have shapes {[a.shape for a in arrays]}, blocks = {blocks}; expected one shape "
            "(g, h), and at least 2 blocks and at most as many as the shorter side has points"
        )
    down, across = (np.arange(n) * blocks // n for n in shape)
    place = np.add.outer(blocks * down, across)
    return of_left_out([statistic(*(a[place != b] for a in arrays)) for b in range(blocks**2)])


def read_off(success: Values, columns: Values, level: float) -> np.ndarray:
    """Columns (strengths, k) where success (strengths,) first reaches `level`, (k,).

    Linear between neighbouring strengths; NaN where no strength reaches it.
    """
    success, columns = np.asarray(success, float), np.asarray(columns, float)
    above = np.flatnonzero(success >= level)
    if not len(above):
        return np.full(columns.shape[1], np.nan)
    i = above[0]
    if i == 0:
        return columns[0]
    w = (level - success[i - 1]) / (success[i] - success[i - 1])
    return (1 - w) * columns[i - 1] + w * columns[i]


def cost_at(
    strengths: Sequence[float], success: Values, cost: Values, *, level: float = 0.8
) -> tuple[float, float]:
    """Smallest strength that reaches `level`, and the cost there, linear between neighbours.

    success, cost: (strengths, n); not reached: (nan, nan). Strengths rise.
    """
    share, price = (np.asarray(x, float).mean(1) for x in (success, cost))
    strength, value = read_off(share, np.stack([np.asarray(strengths, float), price], 1), level)
    return float(strength), float(value)


def matched(
    strengths: Sequence[float],
    success: Values,
    cost: Values,
    *,
    level: float = 0.8,
    draws: int = 500,
    seed: int = 0,
) -> Matched:
    """`cost_at` with a bootstrap interval over seeds, (strengths, n) each.

    Raises ValueError for arrays that do not fit the strengths, or strengths that do not rise.
    """
    success, cost = _swept(strengths, success, cost)
    picks = resamples(success.shape[1], draws, seed)
    costs = [cost_at(strengths, success[:, p], cost[:, p], level=level)[1] for p in picks]
    strength, value = cost_at(strengths, success, cost, level=level)
    return Matched(strength, of_draws(value, costs), float(np.isfinite(costs).mean()))


def lead(
    strengths: Sequence[float],
    own: tuple[Values, Values],
    rival: tuple[Values, Values],
    *,
    level: float = 0.8,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Cost at equal success of one method less a rival's, on the same seeds; negative: it is ahead.

    own, rival: (success, cost), (strengths, n) each. Seeds are drawn for both together, so that
    what they share cancels. Raises ValueError as `matched`.
    """
    pair = (*_swept(strengths, *own), *_swept(strengths, *rival))

    def gap(*drawn: np.ndarray) -> float:
        a, b, c, d = (x.T for x in drawn)
        price = [cost_at(strengths, *x, level=level)[1] for x in ((a, b), (c, d))]
        return price[0] - price[1]

    return bootstrap(*(x.T for x in pair), statistic=gap, draws=draws, seed=seed)


def _swept(
    strengths: Sequence[float], success: Values, cost: Values
) -> tuple[np.ndarray, np.ndarray]:
    """Success and cost of a sweep, checked."""
    success, cost = np.asarray(success, float), np.asarray(cost, float)
    if success.ndim != 2 or success.shape != cost.shape or len(success) != len(strengths):
        raise ValueError(
            f"success {success.shape}, cost {cost.shape} for {len(strengths)} strengths: give "
            "(strengths, seeds) for both"
        )
    if np.any(np.diff(strengths) <= 0):
        raise ValueError(f"strengths {list(strengths)} must rise")
    return success, cost
