"""The metric from scattered labels without a model: nearest pairs, local linear regression."""

import numpy as np
from scipy.spatial import cKDTree

from lib.intervals import Values, as_array

COUNTS = (6, 10, 16, 25, 40, 64, 100)  # neighbours that local regression may take


def nearest_pairs(features: Values, t: Values, at: Values) -> np.ndarray:
    """tr JᵀJ at points `at` (m, 2): median of |Δx|² / |Δt|² of four nearest pairs, (m,).

    features: (n, F) of samples with labels t (n, 2).
    """
    x, t = as_array(features), as_array(t)
    tree = cKDTree(t)
    gap, pair = tree.query(t, 2)
    ratio = np.square(x - x[pair[:, 1]]).sum(1) / gap[:, 1] ** 2
    return np.median(ratio[tree.query(as_array(at), 4)[1]], 1)


def local_regression(features: Values, t: Values, at: Values) -> np.ndarray:
    """tr JᵀJ at points `at` (m, 2) from planes fitted to the features around them, (m,).

    Weights fall to zero at the farthest of k neighbours; k predicts samples that are left out best.
    The squared slopes of noise are not subtracted.
    """
    x, t, at = as_array(features), as_array(t), as_array(at)
    counts = [k for k in COUNTS if k < len(t)]
    if not counts:
        raise ValueError(f"{len(t)} samples: local regression takes more than {COUNTS[0]}")
    left = [np.square(_planes(x, t, t, k, skip=1)[:, 0] - x).sum() for k in counts]
    return np.square(_planes(x, t, at, counts[int(np.argmin(left))])[:, 1:]).sum((1, 2))


def _planes(x: np.ndarray, t: np.ndarray, at: np.ndarray, k: int, skip: int = 0) -> np.ndarray:
    """Value and slopes (m, 3, F) of weighted planes through k neighbours, without the nearest."""
    gap, near = (a[:, skip:] for a in cKDTree(t).query(at, k + skip))
    weight = (1 - (gap / gap[:, -1:] / 1.0001) ** 2)[..., None]
    design = np.concatenate([np.ones((len(at), k, 1)), t[near] - at[:, None]], 2)
    inner = (design * weight).transpose(0, 2, 1)
    return np.linalg.solve(inner @ design + 1e-9 * np.eye(3), inner @ x[near])
