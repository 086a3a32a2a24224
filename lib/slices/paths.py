"""Paths between two points of a slice: lengths of their images, and turning."""

import numpy as np

from lib.intervals import Values, as_array


def feature_length(features: Values) -> np.ndarray:
    """Σ_k |f_{k+1} − f_k| of paths of features (b, points, ...), (b,)."""
    x = _paths(features)
    return np.linalg.norm(np.diff(x, axis=1), axis=2).sum(1)


def turning(curves: Values) -> np.ndarray:
    """Total turning Σ_k ∠(v_k, v_{k+1}) of curves (b, points, d), (b,) in radians; straight 0.

    It is ∫ |κ| ds of a polyline. Segments of no length do not turn.
    """
    return _turns(_paths(curves)).sum(1)


def shares_on(mask: Values, curves: Values) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the turning and of the length of curves (b, points, 2) on a mask (g, g), (b,) each.

    Bends are at borders only if they hold more of the turning than of the way. NaN for a curve
    that does not turn.
    """
    x, mask = _paths(curves), as_array(mask) > 0
    on = mask[tuple(np.rint(x * (len(mask) - 1)).astype(int).T)].T
    turns, steps = _turns(x), np.linalg.norm(np.diff(x, axis=1), axis=2)
    middles = (on[:, 1:] + on[:, :-1].astype(float)) / 2
    with np.errstate(invalid="ignore"):
        bent = (turns * on[:, 1:-1]).sum(1) / turns.sum(1)
    return bent, (steps * middles).sum(1) / steps.sum(1)


def _turns(x: np.ndarray) -> np.ndarray:
    """Angles between neighbouring segments, (b, points - 2)."""
    v = np.diff(x, axis=1)
    size = np.linalg.norm(v, axis=2, keepdims=True)
    v = np.divide(v, size, out=np.zeros_like(v), where=size > 0)
    # Half-angles, because the arc cosine of nearly 1 has lost half of its digits.
    apart = np.linalg.norm(v[:, 1:] - v[:, :-1], axis=2)
    together = np.linalg.norm(v[:, 1:] + v[:, :-1], axis=2)
    both = (size[:, 1:] > 0) & (size[:, :-1] > 0)
    return np.where(both[..., 0], 2 * np.arctan2(apart, together), 0.0)


def _paths(values: Values) -> np.ndarray:
    x = as_array(values)
    if x.ndim < 3 or x.shape[1] < 2 or not np.isfinite(x).all():
        raise ValueError(f"paths have shape {x.shape}; expected finite (b, points >= 2, ...)")
    return x.reshape(*x.shape[:2], -1)
