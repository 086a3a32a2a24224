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
    v = np.diff(_paths(curves), axis=1)
    size = np.linalg.norm(v, axis=2, keepdims=True)
    v = np.divide(v, size, out=np.zeros_like(v), where=size > 0)
    # Half-angles, because the arc cosine of nearly 1 has lost half of its digits.
    apart = np.linalg.norm(v[:, 1:] - v[:, :-1], axis=2)
    together = np.linalg.norm(v[:, 1:] + v[:, :-1], axis=2)
    both = (size[:, 1:] > 0) & (size[:, :-1] > 0)
    return np.where(both[..., 0], 2 * np.arctan2(apart, together), 0.0).sum(1)


def _paths(values: Values) -> np.ndarray:
    x = as_array(values)
    if x.ndim < 3 or x.shape[1] < 2 or not np.isfinite(x).all():
        raise ValueError(f"paths have shape {x.shape}; expected finite (b, points >= 2, ...)")
    return x.reshape(*x.shape[:2], -1)
