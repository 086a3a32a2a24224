"""Compare two maps of one slice: rank correlation with a block bootstrap, smoothing, unit, error.

Neighbouring values of a map are not independent, so errors come from resampling whole blocks.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata
from torch import Tensor

Evaluate = Callable[[Tensor], Tensor]  # coordinates (n, 2) -> values (n, ...)


class Estimate(NamedTuple):
    """A value, its bootstrap standard error and its central 95 % interval."""

    value: float
    error: float
    interval: tuple[float, float]


def rank_agreement(
    estimate, truth, *, blocks: int = 6, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Spearman's ρ of two maps (g, h), resampled by blocks × blocks rectangles of the slice.

    The ranks are those of the whole map; a draw takes as many rectangles as there are, with
    replacement. Raises ValueError for shapes that differ, values that are not finite, a constant
    map and blocks without points.
    """
    return _estimate(*_resampled(estimate, truth, blocks, draws, seed))


def rank_gain(
    estimate, rival, truth, *, blocks: int = 6, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Spearman's ρ of a map with the true one less that of a rival, both on the same rectangles.

    Arguments and errors as in `rank_agreement`.
    """
    own, other = (_resampled(m, truth, blocks, draws, seed) for m in (estimate, rival))
    return _estimate(own[0] - other[0], own[1] - other[1])


def _resampled(estimate, truth, blocks: int, draws: int, seed: int) -> tuple[float, np.ndarray]:
    """Spearman's ρ of two maps, and of each draw of rectangles (draws,)."""
    x, y = _maps(estimate, truth)
    if not 2 <= blocks <= min(x.shape):
        raise ValueError(
            f"blocks = {blocks} for maps of shape {x.shape}; choose 2 ... {min(x.shape)}"
        )
    ranks = [rankdata(v).reshape(v.shape) for v in (x, y)]
    a, b = (r - r.mean() for r in ranks)
    moments = [_block_sums(m, blocks) for m in (np.ones_like(a), a, b, a * a, b * b, a * b)]
    pick = np.random.default_rng(seed).integers(blocks**2, size=(draws, blocks**2))
    resampled = _correlation(*(m[pick].sum(1) for m in moments))
    return float(_correlation(*(m.sum() for m in moments))), resampled


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(float(value), float(resampled.std(ddof=1)), (float(low), float(high)))


def _correlation(n, a, b, aa, bb, ab):
    """Pearson's coefficient from sums of 1, a, b, a², b², a b."""
    covariance = ab / n - a * b / n**2
    return covariance / np.sqrt((aa / n - (a / n) ** 2) * (bb / n - (b / n) ** 2))


def _block_sums(values: np.ndarray, blocks: int) -> np.ndarray:
    """Sums over blocks × blocks rectangles, (blocks²,)."""
    rows = [part.sum(0) for part in np.array_split(values, blocks, 0)]
    return np.array([part.sum() for row in rows for part in np.array_split(row, blocks)])


def bootstrap(
    values,
    *,
    statistic: Callable = np.mean,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A statistic of independent values (n,), such as paired differences, resampled.

    statistic: (..., n), axis=-1 -> (...,). Raises ValueError for values that are empty or not
    finite.
    """
    values = as_array(values)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"values have shape {values.shape}; expected (n,), finite, n >= 1")
    pick = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    return _estimate(statistic(values, axis=-1), statistic(values[pick], axis=-1))


def block_jackknife(statistic: Callable, *maps, blocks: int = 4) -> float:
    """Standard error of statistic(*maps), leaving out blocks × blocks rectangles in turn.

    √((k − 1) / k Σ (T₋ᵢ − mean)²) over the k rectangles. statistic takes the values (m,) of every
    map (g, h) at the same m points. Raises ValueError for shapes that differ and blocks without
    points.
    """
    arrays = [as_array(m) for m in maps]
    shape = arrays[0].shape
    if any(a.shape != shape for a in arrays) or not 2 <= blocks <= min(shape):
        raise ValueError(
            f"maps have shapes {[a.shape for a in arrays]}, blocks = {blocks}; expected one shape "
            f"(g, h) and 2 ... {min(shape)} blocks"
        )
    rows, columns = (np.arange(n) * blocks // n for n in shape)
    place = np.add.outer(blocks * rows, columns)
    left = np.array([statistic(*(a[place != b] for a in arrays)) for b in range(blocks**2)])
    return float(np.sqrt((1 - 1 / blocks**2) * np.square(left - left.mean()).sum()))


def smooth(values, width: float, *, spacing: float) -> np.ndarray:
    """A map (g, h) under a Gaussian of standard deviation `width`, in units of the slice.

    spacing: of the map's points. What lies beyond the edge repeats the edge.
    """
    if not width >= 0 or not spacing > 0:
        raise ValueError(f"width = {width}, spacing = {spacing}: widths are >= 0, spacings above 0")
    return gaussian_filter(as_array(values), width / spacing, mode="nearest")


def unit_ratio(estimate, truth) -> tuple[float, float]:
    """Geometric mean of estimate / truth over two positive maps, and its spread as a factor."""
    x, y = _maps(estimate, truth)
    if min(x.min(), y.min()) <= 0:
        raise ValueError(
            "a ratio in the geometric mean needs positive maps; give traces of metrics"
        )
    logs = np.log(x / y)
    return float(np.exp(logs.mean())), float(np.exp(logs.std()))


def _maps(*maps) -> list[np.ndarray]:
    arrays = [as_array(m) for m in maps]
    shapes = [a.shape for a in arrays]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ValueError(f"maps have shapes {shapes}; expected one shape (g, h)")
    for array in arrays:
        if not np.isfinite(array).all() or np.ptp(array) == 0:
            raise ValueError("a map is constant or not finite: it has no ranks to compare")
    return arrays


def overlap(mask: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks; 1 where both are empty, ValueError for two shapes."""
    _same_shape(mask, other)
    union = np.logical_or(mask, other).sum()
    return float(np.logical_and(mask, other).sum() / union) if union else 1.0


def relative_error(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square error of a map over the standard deviation of the true one.

    Raises ValueError for shapes that differ and a constant truth.
    """
    estimate, truth = as_array(estimate), as_array(truth)
    if estimate.size == truth.size:  # a last axis of one feature may be left out
        estimate = estimate.reshape(truth.shape)
    _same_shape(estimate, truth)
    deviation = truth - truth.mean((0, 1), keepdims=True)
    if not np.linalg.norm(deviation) > 0:
        raise ValueError("the true map is constant or not finite: there is no unit for its error")
    return float(np.linalg.norm(estimate.ravel() - truth.ravel()) / np.linalg.norm(deviation))


def _same_shape(a, b) -> None:
    if np.shape(a) != np.shape(b):
        raise ValueError(f"maps have shapes {np.shape(a)} and {np.shape(b)}; expected one shape")


def as_array(values) -> np.ndarray:
    """A float64 array of a tensor or an array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, np.float64)
