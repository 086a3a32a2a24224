"""Paths between two points of a slice, as images: other interpolations, lengths and turning."""

import numpy as np
import torch
from torch import Tensor

from lib.intervals import as_array


def spherical(start: Tensor, end: Tensor, points: int) -> Tensor:
    """Spherical interpolation of latents, (b, points, *latent_shape), ends included.

    sin((1 − s) Ω) / sin Ω · start + sin(s Ω) / sin Ω · end, Ω the angle between the two (Shoemake
    1985); for equal directions the straight line. start, end: (b, *latent_shape). Raises ValueError
    for shapes that differ, a zero or opposite pair, and points < 2.
    """
    if start.shape != end.shape or points < 2:
        raise ValueError(
            f"start {tuple(start.shape)}, end {tuple(end.shape)}, points = {points}; expected one "
            "shape and points >= 2"
        )
    a, b = start.flatten(1).double(), end.flatten(1).double()
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    if not bool((cosine > -1 + 1e-9).all()):
        raise ValueError("a pair of latents is zero or opposite: no shortest arc joins it")
    angle = cosine.clamp(max=1 - 1e-12).arccos()[:, None, None]
    s = torch.linspace(0, 1, points, dtype=torch.float64, device=a.device)[None, :, None]
    path = (((1 - s) * angle).sin() * a[:, None] + (s * angle).sin() * b[:, None]) / angle.sin()
    return path.to(start.dtype).unflatten(2, start.shape[1:])


def feature_length(features) -> np.ndarray:
    """Σ_k |f_{k+1} − f_k| of paths of features (b, points, ...), (b,)."""
    x = _paths(features)
    return np.linalg.norm(np.diff(x, axis=1), axis=2).sum(1)


def turning(curves) -> np.ndarray:
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


def _paths(values) -> np.ndarray:
    x = as_array(values)
    if x.ndim < 3 or x.shape[1] < 2 or not np.isfinite(x).all():
        raise ValueError(f"paths have shape {x.shape}; expected finite (b, points >= 2, ...)")
    return x.reshape(*x.shape[:2], -1)
