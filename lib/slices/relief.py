"""How a generator stretches a slice: ridges of large stretch, and the phases between them."""

import numpy as np
import torch

from lib.intervals import Values, as_array


def stretch(metric: Values) -> np.ndarray:
    """Largest singular value of J from metrics JᵀJ (..., 2, 2), (...): local Lipschitz constants.

    Its logarithm is the finite-time Lyapunov exponent of the sampler. Raises ValueError for another
    shape and values that are not finite.
    """
    g = as_array(metric)
    if g.ndim < 2 or g.shape[-1] != g.shape[-2] or not np.isfinite(g).all():
        raise ValueError(f"metric has shape {g.shape}; expected finite (..., d, d), as JᵀJ is")
    return np.sqrt(np.linalg.eigvalsh(g)[..., -1].clip(min=0))


def neighbour_trace(values: Values, spacing: float) -> np.ndarray:
    """The plain map that anyone would try first: squared differences to grid neighbours, (g, h).

    values: (g, h, ...) features on a regular grid. Per axis |Δ|² / spacing², averaged over the two
    neighbours of a point, summed over axes: it tends to the trace of the pullback metric JᵀJ.
    Raises ValueError for fewer than two points per axis and a spacing that is not positive.
    """
    values = _on_grid(values, spacing)
    total = np.zeros(values.shape[:2])
    for axis in (0, 1):
        rows = values.transpose(0, axis)
        # row by row, because differences of whole images would double the memory
        steps = [(b - a).square().sum(-1) for a, b in zip(rows[:-1], rows[1:], strict=True)]
        squares = as_array(torch.stack(steps)) / spacing**2
        sides = (np.append(squares, squares[-1:], 0) + np.insert(squares, 0, squares[0], 0)) / 2
        total += sides if axis == 0 else sides.T
    return total


def surface_metric(values: Values, *, refine: int = 3) -> tuple[list[np.ndarray], torch.Tensor]:
    """JᵀJ of a smooth surface through features on a grid: axes of a finer grid, (g', h', 2, 2).

    The surface is the cubic B-spline with the features (g, h, ...) as coefficients: C², exact for
    linear maps, and free of overshoot, so that a border costs what its two sides differ wherever
    it is crossed, and is two cells wide. (A table of neighbour differences has cheap gaps between
    the nodes of an oblique border.) `refine` points of the result for each cell, float64. Raises
    ValueError for fewer than two points per axis.
    """
    values = _on_grid(values, 1.0).double().numpy()
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)), "reflect", reflect_type="odd")
    (rows, d_rows), (columns, d_columns) = (_cubic(n, refine) for n in values.shape[:2])
    g = np.empty((len(rows), len(columns), 2, 2))
    for k in range(len(rows)):  # whole maps of derivatives would multiply the memory
        across, along = (np.tensordot(w[k], padded, 1) for w in (d_rows, rows))
        moves = np.stack([columns @ across, d_columns @ along], 1)
        g[k] = moves @ moves.transpose(0, 2, 1)
    return [np.linspace(0, 1, n) for n in g.shape[:2]], torch.from_numpy(g)


def _cubic(n: int, refine: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of n nodes and one more at each end on the finer axis, and their slopes."""
    from scipy.interpolate import BSpline

    spline = BSpline(np.arange(-3, n + 3), np.eye(n + 2), 3)
    x = np.linspace(0, n - 1, (n - 1) * refine + 1)
    return spline(x), (n - 1) * spline(x, 1)


def _on_grid(values: Values, spacing: float) -> torch.Tensor:
    """Features of a grid as (g, h, features), checked."""
    values = torch.as_tensor(values).detach().cpu()
    if values.ndim < 2 or min(values.shape[:2]) < 2 or not spacing > 0:
        raise ValueError(
            f"values have shape {tuple(values.shape)}, spacing = {spacing}; expected a grid "
            "(g, h, ...) of two points and more per axis and a spacing above zero"
        )
    values = values.reshape(*values.shape[:2], -1)
    return values if values.is_floating_point() else values.double()


def ridges(stretches: Values, *, contrast: float = 3.0) -> np.ndarray:
    """Mask of the ridges of a map of stretches (g, h): above `contrast` times its median.

    The scale is the map's own, so that a map without borders has none; where more than half of a
    map is all but flat, everything else is a ridge. Raises ValueError for values that are not
    finite, another shape, and contrast <= 0.
    """
    stretches = as_array(stretches)
    if stretches.ndim != 2 or not np.isfinite(stretches).all() or not contrast > 0:
        raise ValueError(
            f"stretches have shape {stretches.shape}, contrast = {contrast}; expected a finite map "
            "(g, h) and a contrast above zero"
        )
    return stretches > contrast * np.median(stretches)


def phases(stretches: Values, *, contrast: float = 3.0, smallest: int = 4) -> np.ndarray:
    """Regions of low stretch between the ridges, as labels (g, g): 1, 2, ... by falling area.

    Regions touch along edges, not corners. 0 marks ridges and regions of fewer than `smallest`
    points.
    """
    from scipy.ndimage import label

    labels, _ = label(~ridges(stretches, contrast=contrast))
    areas = np.bincount(labels.ravel())
    order = [k for k in np.argsort(-areas, kind="stable") if k and areas[k] >= smallest]
    renamed = np.zeros(len(areas), int)
    renamed[order] = np.arange(1, len(order) + 1)
    return renamed[labels]


def centres(labels: np.ndarray) -> np.ndarray:
    """Grid index (k, 2) of the point of each phase that is farthest from any other and the edge."""
    from scipy.ndimage import distance_transform_edt

    labels = np.asarray(labels, int)
    depths = [distance_transform_edt(np.pad(labels == k, 1)) for k in range(1, labels.max() + 1)]
    found = [np.unravel_index(np.argmax(d[1:-1, 1:-1]), labels.shape) for d in depths]
    return np.array(found, int).reshape(-1, 2)
