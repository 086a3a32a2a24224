"""Score a learned scalar field and its gradient, beside predictors that know nothing."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from lib.geometry.checks import Potential, Values, float64
from lib.intervals import as_array


def value_and_gradient(function: Potential, t: Values) -> tuple[np.ndarray, np.ndarray]:
    """Values (n,) and gradients (n, d) of a row-wise torch function at t (n, d), in float64."""
    t = float64(t, "t").detach().requires_grad_()
    values = function(t)
    (gradient,) = torch.autograd.grad(values.sum(), t)
    return values.detach().numpy(force=True), gradient.numpy(force=True)


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


def central_slopes(
    function: Callable[[np.ndarray], np.ndarray], t: Values, step: float = 1e-5
) -> np.ndarray:
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


def metric_error(estimate: Values, exact: Values, *, least: float = 0.01) -> np.ndarray:
    """Median and 90 % quantile of ‖ĝ − g‖ / ‖g‖ over points where ‖g‖ > least · its maximum.

    estimate, exact: (n, d, d); Frobenius norms.
    """
    estimate, exact = as_array(estimate), as_array(exact)
    size = np.linalg.norm(exact, axis=(1, 2))
    where = size > least * size.max()
    error = np.linalg.norm(estimate - exact, axis=(1, 2))[where] / size[where]
    return np.quantile(error, [0.5, 0.9])
