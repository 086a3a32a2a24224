"""When a border appears while the sampler runs, and when the decision it belongs to settles."""

import numpy as np

from lib.intervals import Values, as_array, as_numpy


def stands_out(images: Values, labels: Values) -> float:
    """Step (from 1) from which a border keeps half of its final contrast; NaN for none.

    Contrast: the mean distance of neighbours on two sides of the final border over that of other
    neighbours, less 1. It needs no ridges, for which a grid has to be finer than the phases are
    wide. images: predicted ones at each step, (steps, g, h, ...). labels: at the end, (g, h).
    """
    contrasts = np.array([_contrast(as_array(x), as_numpy(labels)) for x in images])
    if not contrasts[-1] > 0:
        return np.nan
    return _from_then_on(contrasts >= contrasts[-1] / 2)


def _contrast(x: np.ndarray, labels: np.ndarray) -> float:
    """Of one step, NaN where nothing flips or all does."""
    apart, flips = [], []
    for axis in (0, 1):
        step = np.diff(x, axis=axis)
        apart.append(np.linalg.norm(step.reshape(*step.shape[:2], -1), axis=2).ravel())
        flips.append((np.diff(labels.astype(int), axis=axis) != 0).ravel())
    apart, flips = np.concatenate(apart), np.concatenate(flips)
    if flips.all() or not flips.any():
        return np.nan
    return float(apart[flips].mean() / apart[~flips].mean() - 1)


def settles(verdicts: Values, *, share: float = 0.9) -> float:
    """Step (from 1) from which a share of points (steps, n) keeps its final verdict."""
    verdicts = as_numpy(verdicts)
    return _from_then_on((verdicts == verdicts[-1]).mean(1) >= share)


def _from_then_on(holds: np.ndarray) -> float:
    """First step from which something holds to the end."""
    broken = np.flatnonzero(~holds)
    first = broken[-1] + 1 if len(broken) else 0
    return float(first + 1) if first < len(holds) else np.nan
