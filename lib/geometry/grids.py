"""Metrics tabulated on a grid."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from lib.geometry.checks import Metric, Values, as_points, check_positive, float64

# A symmetric 2 x 2 matrix is m I + a diag(1, -1) + b offdiag(1, 1).
_BASIS = torch.tensor(
    [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]], [[0.0, 1.0], [1.0, 0.0]]],
    dtype=torch.float64,
)

# Orders of the derivatives along the two axes: value, slopes, second derivatives.
_ORDERS = [0, 1, 0, 2, 1, 0], [0, 0, 1, 0, 1, 2]


@dataclass(frozen=True)
class GridMetric:
    """A twice differentiable metric exp(S(t)), S a bicubic spline; made by `from_grid`.

    Callable as (n, 2) -> (n, 2, 2); `jet` adds the exact first and second derivatives. Outside the
    grid the metric keeps the value at the nearest point of the border.
    """

    axes: tuple[Tensor, Tensor]
    coefficients: (
        Tensor  # (cells, 3, 4, 4): components (m, a, b) of S, falling powers of the offset
    )

    @property
    def box(self) -> Tensor:
        """Corners of the tabulated rectangle, (2, 2)."""
        return torch.stack([torch.stack([x[0], x[-1]]) for x in self.axes], 1)

    def __call__(self, t: Values) -> Tensor:
        """Metric at t, (n, 2) -> (n, 2, 2)."""
        cell, offsets = self._locate(as_points(t).to(self.coefficients))
        left, right = (torch.stack([u * u * u, u * u, u, torch.ones_like(u)], -1) for u in offsets)
        products = (left[:, :, None] * right[:, None]).flatten(1)
        p = (self.coefficients[cell].flatten(2) * products[:, None]).sum(2)
        cosh, sinh = _hyperbolic(p[:, 1] ** 2 + p[:, 2] ** 2)[:2]
        scale = p[:, 0].exp()
        parts = torch.stack([scale * cosh, scale * sinh * p[:, 1], scale * sinh * p[:, 2]], -1)
        return _assemble(parts)

    def jet(self, t: Values) -> tuple[Tensor, Tensor, Tensor]:
        """g (n, 2, 2), ∂g (n, 2, 2, 2) and ∂²g (n, 2, 2, 2, 2), derivative axes last, no graph."""
        t = as_points(t).detach().to(self.coefficients)
        cell, offsets = self._locate(t)
        inside = [
            ((x >= axis[0]) & (x <= axis[-1])).to(t.dtype)
            for x, axis in zip(t.unbind(1), self.axes, strict=True)
        ]
        left, right = (_powers(u, i) for u, i in zip(offsets, inside, strict=True))
        products = left[:, _ORDERS[0], :, None] * right[:, _ORDERS[1], None]
        table = self.coefficients[cell].flatten(2) @ products.flatten(2).mT  # (n, 3, 6)
        p, dp, ddp = table[..., 0], table[..., 1:3], table[..., [3, 4, 4, 5]].unflatten(-1, (2, 2))
        value, first, second = _exponential_jet(p)
        d_parts = first @ dp
        dd_parts = dp.mT[:, None] @ (second @ dp[:, None])
        dd_parts = dd_parts + (first @ ddp.flatten(2)).unflatten(-1, (2, 2))
        return _assemble(value), _assemble(d_parts), _assemble(dd_parts)

    def _locate(self, t: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Index of the cell of each point and the offsets from its lower corner."""
        cell, offsets = 0, []
        for x, axis in zip(t.unbind(1), self.axes, strict=True):
            x = x.clamp(axis[0], axis[-1])
            i = (torch.searchsorted(axis, x.detach().contiguous(), right=True) - 1).clamp(
                0, len(axis) - 2
            )
            cell = cell * (len(axis) - 1) + i
            offsets.append(x - axis[i])
        return cell, offsets


def from_grid(axes: Sequence[Values], values: Values, *, floor: float = 0.0) -> GridMetric:
    """Interpolate a tabulated 2 x 2 metric so that it stays positive and twice differentiable.

    Log-Euclidean: a C² bicubic spline (not-a-knot) of the matrix logarithm of values + floor · I,
    exponentiated in closed form; positive by construction, error of fourth order in the spacing.

    axes: two increasing arrays of at least four points. values: (len(axes[0]), len(axes[1]), 2, 2),
    `indexing="ij"`; sets dtype and device. floor: regulariser in the units of the metric.
    Raises ValueError on shapes that do not match, an axis that does not increase, or values +
    floor · I that are somewhere not finite or not positive (says where).
    """
    values = torch.as_tensor(values)
    values = values if values.is_floating_point() else values.double()
    axes = [torch.as_tensor(x).to(values.device, values.dtype) for x in axes]
    _check_table(axes, values)
    t = torch.cartesian_prod(*axes)
    g = values.reshape(-1, 2, 2)
    g = (g + g.mT) / 2 + floor * torch.eye(2, dtype=g.dtype, device=g.device)
    check_positive(g, t)
    spectrum, frame = torch.linalg.eigh(g)
    logarithm = (frame * spectrum.log()[:, None]) @ frame.mT
    diagonal = logarithm.diagonal(dim1=1, dim2=2)
    parts = torch.stack([diagonal.sum(1) / 2, diagonal.diff(dim=1)[:, 0] / -2, logarithm[:, 0, 1]])
    table = parts.detach().cpu().double().numpy().reshape(3, *values.shape[:2])
    x, y = (axis.detach().cpu().double().numpy() for axis in axes)
    rows = CubicSpline(x, table, axis=1).c  # (4, cells of x, 3, points of y)
    coefficients = CubicSpline(y, rows, axis=3).c  # (4, cells of y, 4, cells of x, 3)
    coefficients = coefficients.transpose(3, 1, 4, 2, 0).reshape(-1, 3, 4, 4)
    coefficients = torch.from_numpy(np.ascontiguousarray(coefficients)).to(values)
    return GridMetric(tuple(axes), coefficients)


def tabulate(metric: Metric, axes: Sequence[Values], *, floor: float = 0.0) -> GridMetric:
    """Interpolate a metric from its values on a grid: cheap where paths ask for it very often.

    metric: (n, 2) -> (n, 2, 2), tensors. axes, floor: as of `from_grid`. Asks the metric again at
    the centres of up to 2,048 cells and warns where the table makes a small step there longer or
    shorter by more than a quarter: a ridge narrower than the cells, through which paths slip. (Not
    one of a few hundredths of a cell that passes by nodes and centres alike: `curve_length` of
    some paths by the metric itself is the second route.)
    Raises ValueError as `from_grid`, and on other than two axes or a metric of another shape.
    """
    if len(axes) != 2:
        raise ValueError(f"{len(axes)} axes given; a table has two, each of at least 4 points")
    if not _is_metric(metric, axes):
        raise ValueError(
            "the metric must answer a tensor of points (n, 2) by a tensor (n, 2, 2), and at the "
            "first node it does not; a NumPy one is wrapped as lambda t: torch.as_tensor(f(t))"
        )
    first, second = (float64(axis, "axes") for axis in axes)
    values = metric(torch.cartesian_prod(first, second))
    table = from_grid((first, second), values.reshape(len(first), -1, 2, 2), floor=floor)
    centres = torch.cartesian_prod(*((x[1:] + x[:-1]) / 2 for x in (first, second)))
    own = torch.Generator().manual_seed(0)
    _check_between(
        table, metric, centres[torch.randperm(len(centres), generator=own)[:2048]], floor
    )
    return table


def _is_metric(metric: Metric, axes: Sequence[Values]) -> bool:
    g = metric(torch.cartesian_prod(*(float64(axis, "axes")[:1] for axis in axes)))
    return isinstance(g, Tensor) and g.shape == (1, 2, 2)


def _check_between(table: GridMetric, metric: Metric, t: Tensor, floor: float) -> None:
    """Warn where a length by the table and one by the metric itself differ by a quarter."""
    g = metric(t).double().cpu() + floor * torch.eye(2, dtype=torch.float64)
    check_positive(g, t)
    inverse = torch.linalg.inv(torch.linalg.cholesky(table(t).double().cpu()))
    lengths = torch.linalg.eigvalsh(inverse @ g @ inverse.mT).log() / 2  # of a unit step
    off, worst = lengths.abs().amax(1).max(0)
    if off > math.log(1.25):
        warnings.warn(
            f"between its nodes the table is wrong by a factor {off.exp():.3g} in length, at t = "
            f"{[round(x, 4) for x in t[worst].tolist()]}: a ridge narrower than the cells? Crowd "
            "nodes there, or measure paths by the metric itself with `geodesics.curve_length`",
            stacklevel=3,
        )


def _check_table(axes: list[Tensor], values: Tensor) -> None:
    expected = (*(len(x) for x in axes), 2, 2)
    if len(axes) != 2 or tuple(values.shape) != expected:
        raise ValueError(
            f"values has shape {tuple(values.shape)}; expected {expected}, the lengths of two axes "
            'followed by a 2 x 2 metric, indexing="ij"'
        )
    for k, x in enumerate(axes):
        if x.ndim != 1 or len(x) < 4 or not (x.diff() > 0).all():
            raise ValueError(f"axes[{k}] must be 1-D, strictly increasing, with at least 4 points")


def _powers(u: Tensor, inside: Tensor) -> Tensor:
    """Falling powers of u with their two derivatives, (n, 3, 4); constant outside the grid."""
    one, zero = torch.ones_like(u), torch.zeros_like(u)
    value = torch.stack([u**3, u**2, u, one], -1)
    first = torch.stack([3 * u**2, 2 * u, one, zero], -1) * inside[:, None]
    second = torch.stack([6 * u, 2 * one, zero, zero], -1) * inside[:, None]
    return torch.stack([value, first, second], 1)


def _hyperbolic(w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """cosh √w, s = sinh √w / √w, s' and s'' with respect to w >= 0."""
    small = w < 0.5
    safe = torch.where(small, 1.0, w)
    root = safe.sqrt()
    cosh = root.cosh()
    sinh = root.sinh() / root
    slope = (cosh - sinh) / (2 * safe)
    bend = (sinh / 2 - 3 * slope) / (2 * safe)
    near = torch.where(small, w, 0.0)
    series = [torch.zeros_like(w) for _ in range(4)]
    for j in reversed(range(10)):
        weights = (
            1 / math.factorial(2 * j),
            1 / math.factorial(2 * j + 1),
            (j + 1) / math.factorial(2 * j + 3),
            (j + 1) * (j + 2) / math.factorial(2 * j + 5),
        )
        series = [s * near + c for s, c in zip(series, weights, strict=True)]
    far = (cosh, sinh, slope, bend)
    return tuple(torch.where(small, s, f) for s, f in zip(series, far, strict=True))


def _exponential_jet(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Components of exp(m I + a diag(1, -1) + b offdiag(1, 1)) and their derivatives in (m, a, b).

    exp = e^m (c I + s (a diag + b offdiag)), c = cosh √w, s = sinh √w / √w, w = a² + b².
    """
    m, a, b = p.unbind(1)
    c, s, s1, s2 = _hyperbolic(a**2 + b**2)
    ab = 2 * a * b * s1
    value = [c, s * a, s * b]
    in_a = [s * a, s + 2 * a**2 * s1, ab]
    in_b = [s * b, ab, s + 2 * b**2 * s1]
    mixed_a, mixed_b = (2 * x * (s1 + 2 * y**2 * s2) for x, y in ((a, b), (b, a)))
    in_aa = [in_a[1], a * (6 * s1 + 4 * a**2 * s2), 2 * b * (s1 + 2 * a**2 * s2)]
    in_ab = [ab, mixed_b, mixed_a]
    in_bb = [in_b[2], mixed_a, b * (6 * s1 + 4 * b**2 * s2)]
    stack = [[value, in_a, in_b], [in_a, in_aa, in_ab], [in_b, in_ab, in_bb]]
    scale = m.exp()
    second = torch.stack([torch.stack([torch.stack(v, -1) for v in r], -1) for r in stack], -1)
    second = second * scale[:, None, None, None]
    return second[:, :, 0, 0], second[:, :, :, 0], second


def _assemble(parts: Tensor) -> Tensor:
    """Components (n, 3, ...) to matrices (n, 2, 2, ...)."""
    return torch.einsum("no...,oij->nij...", parts, _BASIS.to(parts))
