"""Compare two maps of one slice: rank correlation with a block bootstrap, smoothing, unit, error.

Neighbouring values of a map are not independent, so errors come from resampling whole blocks.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.stats import rankdata
from torch import Tensor

from lib.intervals import Interval, Values, as_array, of_draws, resamples

Evaluate = Callable[[Tensor], Tensor]  # coordinates (n, 2) -> values (n, ...)
Moment = np.ndarray | float  # a sum over blocks, or one for each draw


def rank_agreement(
    estimate: Values, truth: Values, *, blocks: int = 6, draws: int = 1000, seed: int = 0
) -> Interval:
    """Spearman's ρ of two maps (g, h), resampled by blocks × blocks rectangles of the slice.

    The ranks are those of the whole map; a draw takes as many rectangles as there are, with
    replacement. Raises ValueError for shapes that differ, values that are not finite, a constant
    map and blocks without points.
    """
    return of_draws(*_resampled(estimate, truth, blocks, draws, seed))


def rank_gain(
    estimate: Values,
    rival: Values,
    truth: Values,
    *,
    blocks: int = 6,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """Spearman's ρ of a map with the true one less that of a rival, both on the same rectangles.

    Arguments and errors as in `rank_agreement`.
    """
    own, other = (_resampled(m, truth, blocks, draws, seed) for m in (estimate, rival))
    return of_draws(own[0] - other[0], own[1] - other[1])


def _resampled(
    estimate: Values, truth: Values, blocks: int, draws: int, seed: int
) -> tuple[float, np.ndarray]:
    """Spearman's ρ of two maps, and of each draw of rectangles (draws,)."""
    x, y = _maps(estimate, truth)
    if not 2 <= blocks <= min(x.shape):
        raise ValueError(
            f"blocks = {blocks} for maps of shape {x.shape}; choose 2 ... {min(x.shape)}"
        )
    ranks = [rankdata(v).reshape(v.shape) for v in (x, y)]
    a, b = (r - r.mean() for r in ranks)
    moments = [_block_sums(m, blocks) for m in (np.ones_like(a), a, b, a * a, b * b, a * b)]
    pick = resamples(blocks**2, draws, seed)
    resampled = _correlation(*(m[pick].sum(1) for m in moments))
    return float(_correlation(*(m.sum() for m in moments))), resampled


def _correlation(n: Moment, a: Moment, b: Moment, aa: Moment, bb: Moment, ab: Moment) -> Moment:
    """Pearson's coefficient from sums of 1, a, b, a², b², a b."""
    covariance = ab / n - a * b / n**2
    return covariance / np.sqrt((aa / n - (a / n) ** 2) * (bb / n - (b / n) ** 2))


def _block_sums(values: np.ndarray, blocks: int) -> np.ndarray:
    """Sums over blocks × blocks rectangles, (blocks²,)."""
    rows = [part.sum(0) for part in np.array_split(values, blocks, 0)]
    return np.array([part.sum() for row in rows for part in np.array_split(row, blocks)])


def smooth(values: Values, width: float, *, spacing: float) -> np.ndarray:
    """A map (g, h) under a Gaussian of standard deviation `width`, in units of the slice.

    spacing: of the map's points. What lies beyond the edge repeats the edge.
    """
    if not width >= 0 or not spacing > 0:
        raise ValueError(f"width = {width}, spacing = {spacing}: widths are >= 0, spacings above 0")
    return gaussian_filter(as_array(values), width / spacing, mode="nearest")


def read(values: Values, at: Values) -> np.ndarray:
    """A map (g, g) on the slice, bilinear at points (n, 2), (n,)."""
    values = as_array(values)
    places = as_array(at).T * (len(values) - 1)
    return map_coordinates(values, places, order=1, mode="nearest")


def _maps(*maps: Values) -> list[np.ndarray]:
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
    if np.shape(mask) != np.shape(other):
        raise ValueError(f"masks have shapes {np.shape(mask)} and {np.shape(other)}; give one")
    union = np.logical_or(mask, other).sum()
    return float(np.logical_and(mask, other).sum() / union) if union else 1.0
