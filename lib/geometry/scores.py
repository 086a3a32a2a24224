"""Score a learned scalar field and its gradient, beside predictors that know nothing."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from lib.geometry.checks import Natural, Potential, Values, float64
from lib.geometry.potential import Alignment, align_affine, identity
from lib.intervals import as_array

Field = Callable[[Values], np.ndarray]  # t (n, d) -> (n,)


def value_and_gradient(function: Potential, t: Values) -> tuple[np.ndarray, np.ndarray]:
    """Values (n,) and gradients (n, d) of a row-wise torch function at t (n, d), in float64."""
    t = float64(t, "t").detach().requires_grad_()
    values = function(t)
    (gradient,) = torch.autograd.grad(values.sum(), t)
    return values.detach().numpy(force=True), gradient.numpy(force=True)


def aligned(
    log_z: Potential, reference: Values, t: Values, *, natural: Natural = identity
) -> tuple[Field, Alignment]:
    """log Z aligned with a reference, scale and all, as a function of t; and the alignment.

    The freedom is affine in θ = natural(t), and one alignment at the points t serves everywhere.
    log_z: θ (n, d) -> (n,). reference: (n,). t: (n, d). Raises as `align_affine`.
    """
    theta = natural(float64(t, "t"))
    alignment = align_affine(log_z(theta).detach(), reference, theta, scale=True)

    def field(t: Values) -> np.ndarray:
        theta = natural(float64(t, "t"))
        return alignment(log_z(theta), theta).numpy(force=True)

    return field, alignment


def rmse(estimate: Values, truth: Values, *, where: Values | slice = slice(None)) -> float:
    """Root mean square of estimate − truth over the points `where`."""
    difference = as_array(estimate)[where] - as_array(truth)[where]
    return float(np.sqrt(np.mean(difference**2)))


def field_scores(field: Sequence[Values], truth: Sequence[Values]) -> np.ndarray:
    """RMSE of the value and of each derivative, shape (1 + d,).

    field, truth: pairs of values (n,) and gradients (n, d), both under one alignment.
    """
    columns = [np.column_stack([as_array(part) for part in pair]) for pair in (field, truth)]
    return np.array([rmse(a, b) for a, b in zip(*(c.T for c in columns), strict=True)])


def affine_fit(t: Values, values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Best affine function of t, with its gradient: the trivial predictor of any potential."""
    t = as_array(t)
    columns = np.column_stack([np.ones(len(t)), t])
    solution = np.linalg.lstsq(columns, as_array(values), rcond=None)[0]
    return columns @ solution, np.broadcast_to(solution[1:], t.shape)


def separable_quadratic(t: Values, values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Best a + Σ (b_i t_i + c_i t_i²), with its gradient: a bowl, no phase transition."""
    t = as_array(t)
    columns = np.column_stack([np.ones(len(t)), t, t**2])
    solution = np.linalg.lstsq(columns, as_array(values), rcond=None)[0]
    d = t.shape[1]
    return columns @ solution, solution[1 : d + 1] + 2 * solution[d + 1 :] * t


def central_slopes(function: Field, t: Values, step: float = 1e-5) -> np.ndarray:
    """Gradient (n, d) of a row-wise function of t (n, d) by central differences."""
    t = as_array(t)
    moves = step * np.eye(t.shape[1])
    return np.stack([(function(t + h) - function(t - h)) / (2 * step) for h in moves], 1)


def first_below(x: Values, values: Values, level: float) -> float:
    """First x at which values fall below the level, by linear interpolation.

    The first x where they start below it, the last where they never get there.
    """
    x, values = as_array(x), as_array(values)
    below = np.flatnonzero(values < level)
    if len(below) == 0 or below[0] == 0:
        return float(x[0 if len(below) else -1])
    k = below[0]
    share = (values[k - 1] - level) / (values[k - 1] - values[k])
    return float(x[k - 1] + share * (x[k] - x[k - 1]))


def slope_falls(field: Field, points: Values, axis: int, level: float) -> float:
    """Coordinate `axis` at which the slope of a field along it first falls below a level.

    points: (n, d) on a line along which that coordinate grows. Where a slope jumps, as across a
    first-order line, the middle of the jump is the level to ask for.
    """
    points = as_array(points)
    return first_below(points[:, axis], central_slopes(field, points)[:, axis], level)


def slope_ends(
    field: Field, points: Values, axis: int, levels: tuple[float, float] = (0.4, 0.2)
) -> float:
    """Coordinate at which a slope that falls steadily would reach zero, its end being rounded off.

    The straight line through the places where it falls below the two levels, high before low.
    points: as in `slope_falls`.
    """
    points = as_array(points)
    slope, (high, low) = central_slopes(field, points)[:, axis], levels
    first, second = (first_below(points[:, axis], slope, level) for level in levels)
    return second + (second - first) * low / (high - low)


def metric_error(estimate: Values, exact: Values, *, least: float = 0.01) -> np.ndarray:
    """Median and 90 % quantile of ‖ĝ − g‖ / ‖g‖ over points where ‖g‖ > least · its maximum.

    estimate, exact: (n, d, d); Frobenius norms.
    """
    estimate, exact = as_array(estimate), as_array(exact)
    size = np.linalg.norm(exact, axis=(1, 2))
    where = size > least * size.max()
    error = np.linalg.norm(estimate - exact, axis=(1, 2))[where] / size[where]
    return np.quantile(error, [0.5, 0.9])
