"""Shortest paths under a metric, a batch at a time: true, dual-affine and frozen-metric geodesics.

Every length and energy here is the midpoint rule on the segments of a polyline,
L = Σ_k √(v_kᵀ g(m_k) v_k) and E = N Σ_k v_kᵀ g(m_k) v_k with v_k = x_{k+1} − x_k,
m_k = (x_k + x_{k+1}) / 2 and N segments: second order in the spacing, and E >= L² exactly.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.geometry.checks import Metric, as_points, check_positive
from lib.geometry.lengths import curve_energy, curve_length, equidistant, measure
from lib.geometry.metric import fisher_metric, metric_slope
from lib.geometry.relaxation import block_size, relax, segment_jet


@dataclass(frozen=True)
class Path:
    """Paths of a batch of end points, float64, with the lengths of the continuous polylines."""

    points: Tensor  # (b, points, d), end points included
    length: Tensor  # (b,)
    length_error: Tensor  # (b,), bound on what finer quadrature of the same polyline changes
    straight_length: Tensor  # (b,), of the straight line in the given coordinates
    converged: Tensor  # (b,) bool


def geodesic(
    metric: Metric,
    start,
    end,
    *,
    points: int = 64,
    box=None,
    floor: float = 0.0,
    global_check: int | None = None,
    max_iterations: int = 100,
) -> Path:
    start, end = _ends(start, end, points)
    box = _check_box(box if box is not None else getattr(metric, "box", None), start, end)
    lifted = _lift(metric, floor)
    straight = _straight(start, end, points)
    check_positive(lifted(straight.flatten(0, 1)).detach(), straight.flatten(0, 1))
    x, converged = straight.clone(), torch.ones(len(start), dtype=torch.bool)
    apart = (start != end).any(1)
    x[apart], converged[apart] = relax(lifted, straight[apart], box, TOL, max_iterations)
    return _path(lifted, x, straight[:, [0, -1]], converged)


def mixture_geodesic(
    potential: Callable[[Tensor], Tensor],
    start,
    end,
    *,
    points: int = 64,
    max_iterations: int = 100,
) -> Path:
    """Dual-affine (mixture) geodesics: straight in η = ∇ log Z, equally spaced in η.

    Each point solves ∇ log Z(t) = (1 − s) η_start + s η_end, the minimum of the convex function
    log Z(t) − ⟨η, t⟩, by Newton with backtracking from the straight line (Amari, Information
    Geometry and Its Applications, 2016, section 2.2).

    Args:
        potential: convex log Z, (n, d) -> (n,), twice differentiable.
        start, end: (b, d).
        points: points per path with both ends, at least 3.
        max_iterations: Newton steps.

    Returns:
        `Path`, lengths under the Fisher metric of the potential. Flags and warnings as `geodesic`.

    Raises:
        ValueError: shapes differ, points < 3, or the Hessian is not positive on the straight line.
    """
    start, end = _ends(start, end, points)
    metric = _lift(lambda t: fisher_metric(potential, t), 0.0)
    straight = _straight(start, end, points)
    t = straight.flatten(0, 1)
    check_positive(metric(t), t)
    eta = _straight(_gradient(potential, start), _gradient(potential, end), points).flatten(0, 1)
    t, solved = _invert_gradient(potential, eta, t, max_iterations)
    x = t.reshape(straight.shape)
    x[:, 0], x[:, -1] = start, end
    return _path(metric, x, straight, solved.reshape(straight.shape[:2]).all(1))


def frozen_geodesic(
    metric: Metric,
    start,
    end,
    *,
    points: int = 90,
    smoothing: float = 0.1,
    max_iterations: int = 100,
) -> Path:
    """What a descent converges to that detaches the metric, as the published script does.

    The stationary state Σ_k ∂v_k (2 g(m_k) v_k) + smoothing · ∂ Σ_k |v_{k+1} − v_k|² = 0 with
    g(m_k) held fixed in the derivative but taken at the path itself: for a Hessian metric and no
    smoothing that is the dual-affine path, not the shortest one. Newton with backtracking on this
    residual. Arguments, `Path` and errors as in `geodesic`.
    """
    start, end = _ends(start, end, points)
    straight = _straight(start, end, points)
    check_positive(metric(straight.flatten(0, 1)).detach(), straight.flatten(0, 1))
    blocks = [
        _frozen_newton(metric, x, smoothing, max_iterations)
        for x in straight.split(block_size(straight))
    ]
    x, converged = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return _path(metric, x, straight, converged)


def _ends(start, end, points: int) -> tuple[Tensor, Tensor]:
    start, end = as_points(start, "start"), as_points(end, "end")
    if start.shape != end.shape or start.dtype != end.dtype:
        raise ValueError(
            f"start is {tuple(start.shape)} {start.dtype}, end is {tuple(end.shape)} {end.dtype}; "
            "expected two (b, d) of one dtype"
        )
    if points < 3:
        raise ValueError(f"points = {points}; expected at least 3: two ends and one between")
    return start.detach(), end.detach()


def _check_box(box, start: Tensor, end: Tensor) -> Tensor | None:
    if box is None:
        return None
    box = torch.as_tensor(box).to(start)
    if box.shape != (2, start.shape[1]) or not (box[0] < box[1]).all():
        raise ValueError(f"box = {box.tolist()}; expected (2, d): lower corner below upper corner")
    for name, t in (("start", start), ("end", end)):
        outside = ((t < box[0]) | (t > box[1])).any(1)
        if outside.any():
            row = int(outside.nonzero()[0])
            raise ValueError(f"{name}[{row}] = {t[row].tolist()} lies outside box {box.tolist()}")
    return box


TOL = 1e-6


def _lift(metric: Metric, floor: float) -> Metric:
    """The regularised metric g + floor · I, with its derivatives where the metric has them."""
    if floor == 0:
        return metric

    def lifted(t: Tensor) -> Tensor:
        return metric(t) + floor * torch.eye(t.shape[1], dtype=t.dtype, device=t.device)

    def jet(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g, first, second = metric.jet(t)
        return g + floor * torch.eye(t.shape[1], dtype=t.dtype, device=t.device), first, second

    if hasattr(metric, "jet"):
        lifted.jet = jet
    return lifted


def _straight(start: Tensor, end: Tensor, points: int) -> Tensor:
    s = torch.linspace(0, 1, points, dtype=start.dtype, device=start.device)[:, None]
    return torch.lerp(start[:, None], end[:, None], s)


def _path(metric: Metric, x: Tensor, straight: Tensor, converged: Tensor) -> Path:
    if not converged.all():
        rows = (~converged).nonzero()[:, 0]
        warnings.warn(
            f"{len(rows)} of {len(x)} paths did not converge (first: path {int(rows[0])}); "
            "see .converged",
            stacklevel=3,
        )
    length, error, _ = measure(metric, x)
    length = length.sum(1)
    return Path(x, length, error, measure(metric, straight)[0].sum(1), converged)


def _gradient(potential, t: Tensor) -> Tensor:
    """Mean parameters η = ∇ log Z(t), (n, d)."""
    with torch.no_grad():
        return torch.func.grad(lambda s: potential(s).sum())(t)


def _invert_gradient(potential, eta: Tensor, t: Tensor, max_iterations: int):
    """Points where ∇ log Z = eta, by Newton with backtracking from t; (t, solved)."""
    result, solved = t.clone(), torch.zeros(len(t), dtype=torch.bool, device=t.device)
    eps = torch.finfo(t.dtype).eps
    span = (eta - _gradient(potential, t)).norm(dim=1)
    enough = eps**0.5 * span + 1e3 * eps * eta.norm(dim=1)
    live, share = torch.arange(len(t), device=t.device), t.new_ones(len(t))
    for _ in range(max_iterations):
        with torch.no_grad():
            residual = _gradient(potential, t) - eta
            step = -torch.linalg.solve_ex(fisher_metric(potential, t), residual)[0]
            finished = residual.norm(dim=1) <= enough
            trial = t + torch.where(finished, 1.0, share)[:, None] * step
            (value, new), linear = map(potential, (t, trial)), (eta * t).sum(1)
        drop = share * (residual * step).sum(1)
        rounding = 16 * eps * (value.abs() + linear.abs())
        accept = new - (eta * (trial - t)).sum(1) <= value + 1e-4 * drop + rounding
        t = torch.where((accept | finished)[:, None], trial, t)
        share = torch.where(accept, (4 * share).clamp(max=1), share / 4)
        result[live], solved[live] = t, finished
        if finished.all():
            break
        live, t, eta, enough, share = (a[~finished] for a in (live, t, eta, enough, share))
    return result, solved


def _frozen_newton(metric, x: Tensor, smoothing: float, max_iterations: int):
    """Zero of the detached gradient of one block of curves; (x, converged)."""
    unit = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    bend = unit.diff(dim=0).diff(dim=0)
    smooth = 2 * smoothing * (bend.T @ bend)[1:-1]
    result, converged = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    live, share = torch.arange(len(x), device=x.device), x.new_ones(len(x))
    state = _frozen_residual(metric, x, smooth)
    for _ in range(max_iterations):
        r, flux = state[:2]
        step = torch.linalg.solve_ex(_frozen_jacobian(*state[2:], smooth), -r.flatten(1))[0]
        size = r.flatten(1).norm(dim=1)
        small = size <= torch.finfo(x.dtype).eps ** 0.5 * flux
        trial = x.clone()
        trial[:, 1:-1] += torch.where(small, 1.0, share)[:, None, None] * step.view_as(r)
        result[live], converged[live] = torch.where(small[:, None, None], trial, x), small
        if small.all():
            break
        live, x, trial, size, share = (a[~small] for a in (live, x, trial, size, share))
        state, new = [a[~small] for a in state], _frozen_residual(metric, trial, smooth)
        accept = new[0].flatten(1).norm(dim=1) < (1 - 1e-4 * share) * size
        share = torch.where(accept, (2 * share).clamp(max=1), share / 2)
        x = torch.where(accept[:, None, None], trial, x)
        state = [
            torch.where(accept.view(-1, *[1] * (a.ndim - 1)), a, b)
            for a, b in zip(new, state, strict=True)
        ]
    return result, converged


def _frozen_residual(metric, x: Tensor, smooth: Tensor):
    """Detached gradient (b, k, d), size of the flux 2 g v, and blocks ∂flux/∂m, ∂flux/∂v."""
    m, v = (x[:, 1:] + x[:, :-1]) / 2, x.diff(dim=1)
    parts = segment_jet(metric, m.flatten(0, 1), v.flatten(0, 1))
    _, _, flux, _, cross, g = (a.unflatten(0, m.shape[:2]) for a in parts)
    r = flux[:, :-1] - flux[:, 1:] + torch.einsum("ac,bci->bai", smooth, x - x[:, :1])
    return r, flux.flatten(1).norm(dim=1), cross.mT, 2 * g


def _frozen_jacobian(cross: Tensor, rigid: Tensor, smooth: Tensor) -> Tensor:
    """Dense Jacobian (b, k d, k d) of the detached gradient; not symmetric."""
    b, k, d = len(cross), cross.shape[1] - 1, cross.shape[2]
    identity = torch.eye(d, dtype=cross.dtype, device=cross.device)
    j = torch.einsum("ac,ij->acij", smooth[:, 1:-1], identity).repeat(b, 1, 1, 1, 1)
    from_left, from_right = cross / 2 - rigid, cross / 2 + rigid
    i = torch.arange(k, device=cross.device)
    j[:, i, i] += from_right[:, :-1] - from_left[:, 1:]
    j[:, i[1:], i[:-1]] += from_left[:, 1:-1]
    j[:, i[:-1], i[1:]] -= from_right[:, 1:-1]
    return j.transpose(2, 3).reshape(b, k * d, k * d)
