"""Shortest paths under a metric, a batch at a time: true, dual-affine and frozen-metric geodesics.

Every length is that of the continuous polyline (`lengths`): none is shorter than the distance.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor

from lib.geometry.boxes import as_box, in_box
from lib.geometry.checks import Metric, Values, check_positive
from lib.geometry.graphs import graph_distance
from lib.geometry.lengths import (
    SCAN,
    as_ends,
    bends,
    excess,
    in_double,
    in_own_precision,
    measure,
)
from lib.geometry.lengths import curve_length as curve_length
from lib.geometry.lengths import equidistant as equidistant
from lib.geometry.metric import fisher_metric, metric_slope
from lib.geometry.relaxation import Relaxation, block_size, chosen, segment_jet

COARSE_SCAN = SCAN // 3  # fewest panels per curve while it still moves
STEPPED = 1e-5  # of a length: what it may grow by on a finer set of nodes
SETTLED = 1e-4  # of a length: error of its quadrature
RESOLVED = 1e-3  # of a length: what more points would take off


@dataclass(frozen=True)
class Path:
    """Paths of a batch of end points, float64, with the lengths of the continuous polylines."""

    points: Tensor  # (b, points, d), end points included
    length: Tensor  # (b,)
    length_error: Tensor  # (b,), bound on what finer quadrature of the same polyline changes
    straight_length: Tensor  # (b,), of the straight line in the given coordinates
    converged: Tensor  # (b,) bool

    @property
    def detour(self) -> Tensor:
        """By which share the straight line is longer, (b,)."""
        return self.straight_length / self.length - 1


def geodesic(
    metric: Metric,
    start: Values,
    end: Values,
    *,
    points: int = 64,
    box: Values | None = None,
    floor: float = 0.0,
    global_check: int | None = None,
    max_iterations: int = 100,
) -> Path:
    """Levi-Civita geodesics between pairs of points, all pairs together.

    Minimises N Σ_k L_k², L_k the length of segment k of the continuous polyline by adaptive
    quadrature, over its inner points: the minimum is the shortest polyline, its N segments equally
    long (Lobashev et al. 2025, Eq. 25, with the speed free to vary within a segment). Damped Newton
    from coarse to fine; the metric is differentiated, not frozen; each step is one solve of a
    block-tridiagonal matrix, damped towards the Sobolev gradient where that is not positive.

    A path has converged when a Newton step would shorten it by less than 1e-9 of its length (1e-6
    for a metric in float32), the quadrature of its length is settled to 1e-4, on a finer set of
    nodes too, and more points would shorten it by less than 1e-3. It is a local minimum: a global
    one where `global_check` is fine enough. Others are kept, flagged and warned about.

    metric: (n, d) -> (n, d, d), twice differentiable in t; a `GridMetric` is fastest.
    start, end: (b, d); coincident ends give length zero. points: per path with both ends, >= 3.
    box: (2, d) corners that no point leaves; default the metric's own, if any.
    floor: everything, lengths too, is under g + floor · I.
    global_check: nodes per axis of a grid whose shortest paths serve as second starts; the shorter
    result is kept, and one that is longer than the graph's own path has not converged. Needs a box.
    max_iterations: Newton steps per level.
    Raises ValueError where shapes differ, points < 3, ends lie outside the box, or the metric is
    not finite and positive on the straight line (says where) or cannot be differentiated.
    """
    start, end = _ends(start, end, points)
    box = _check_box(box if box is not None else getattr(metric, "box", None), start, end)
    if global_check is not None and box is None:
        raise ValueError("global_check searches a grid: give box, (2, d) corners")
    metric = in_double(metric, start[:1], floor)
    straight = _straight(start, end, points)
    straight_length = _check_way(metric, straight)
    if len(start):
        metric_slope(metric, straight[:1, 1:-1].flatten(0, 1)[:: points // 3])
    found = _relaxed(metric, straight, box, max_iterations, straight_length)
    if global_check is not None:
        routes = graph_distance(metric, start, end, box=box, resolution=global_check, points=points)
        other = _relaxed(metric, routes[1], box, max_iterations, straight_length)
        found = _unless_longer(_shorter(found, other), routes[0])
    return _warn(_unless_longer(found, straight_length))


def mixture_geodesic(
    potential: Callable[[Tensor], Tensor],
    start: Values,
    end: Values,
    *,
    points: int = 64,
    max_iterations: int = 100,
) -> Path:
    """Dual-affine (mixture) geodesics: straight in η = ∇ log Z, equally spaced in η.

    Each point solves ∇ log Z(t) = (1 − s) η_start + s η_end, the minimum of the convex function
    log Z(t) − ⟨η, t⟩, by Newton with backtracking from the straight line (Amari, Information
    Geometry and Its Applications, 2016, section 2.2).

    potential: convex log Z, (n, d) -> (n,), twice differentiable. Else, and flags and errors, as of
    `geodesic`; lengths are under the Fisher metric of the potential.
    """
    start, end = _ends(start, end, points)
    potential, value = in_own_precision(potential, start[:1])
    metric = in_double(lambda t: fisher_metric(potential, t), start[:1])
    metric.noise = torch.finfo(value.dtype).eps
    straight = _straight(start, end, points)
    straight_length = _check_way(metric, straight)
    t = straight.flatten(0, 1)
    eta = _straight(_gradient(potential, start), _gradient(potential, end), points).flatten(0, 1)
    t, solved = _invert_gradient(potential, eta, t, max_iterations, metric.noise)
    x = t.reshape(straight.shape)
    x[:, 0], x[:, -1] = start, end
    solved = solved.reshape(straight.shape[:2]).all(1)
    return _warn(_path(metric, x, straight_length, solved))


def frozen_geodesic(
    metric: Metric,
    start: Values,
    end: Values,
    *,
    points: int = 90,
    smoothing: float = 0.1,
    max_iterations: int = 100,
) -> Path:
    """What a descent converges to that detaches the metric, as the published script does.

    The stationary state Σ_k ∂v_k (2 g(m_k) v_k) + smoothing · ∂ Σ_k |v_{k+1} − v_k|² = 0 with
    g(m_k) held fixed in the derivative but taken at the path itself: for a Hessian metric and no
    smoothing that is the dual-affine path, not the shortest one. Newton with backtracking on this
    residual. Else as in `geodesic`.
    """
    start, end = _ends(start, end, points)
    metric = in_double(metric, start[:1])
    straight = _straight(start, end, points)
    straight_length = _check_way(metric, straight)
    blocks = [
        _frozen_newton(metric, x, smoothing, max_iterations)
        for x in straight.split(block_size(straight))
    ]
    x, converged = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return _warn(_path(metric, x, straight_length, converged))


def _ends(start: Values, end: Values, points: int) -> tuple[Tensor, Tensor]:
    if not isinstance(points, Integral):
        raise ValueError(f"points = {points!r}; give a whole number from 3 on")
    start, end = as_ends(start, end)
    if points < 3:
        raise ValueError(f"points = {points}; expected at least 3: two ends and one between")
    return start, end


def _check_box(box: Values | None, start: Tensor, end: Tensor) -> Tensor | None:
    if box is None:
        return None
    box = as_box(box).to(start)
    for t in (start, end):
        in_box(t, box)
    return box


def _straight(start: Tensor, end: Tensor, points: int) -> Tensor:
    s = torch.linspace(0, 1, points, dtype=start.dtype, device=start.device)[:, None]
    return torch.lerp(start[:, None], end[:, None], s)


def _check_way(metric: Metric, straight: Tensor) -> Tensor:
    """Length of the straight line, (b,), once the metric is known to be positive on it."""
    with torch.no_grad():
        check_positive(metric(straight.flatten(0, 1)), straight.flatten(0, 1))
        return measure(metric, straight[:, [0, -1]])[0]


def _relaxed(
    metric: Metric, x: Tensor, box: Tensor | None, max_iterations: int, straight_length: Tensor
) -> Path:
    """Shortest paths from x; those that stepped over something are relaxed on finer panels."""
    x, own, solved = Relaxation(metric, box, max_iterations, COARSE_SCAN)(x)
    path = _path(metric, x, straight_length, solved)
    stepped = path.length > (1 + STEPPED) * own
    if not stepped.any():
        return path
    again = Relaxation(metric, box, max_iterations, 2 * SCAN)(x[stepped])
    x[stepped], own[stepped], solved[stepped] = again
    path = _path(metric, x, straight_length, solved)
    return _unless_longer(path, own)


def _path(metric: Metric, x: Tensor, straight_length: Tensor, solved: Tensor) -> Path:
    """The path with its honest length, converged where solver, quadrature and points allow."""
    length, error, _ = measure(metric, x, strict=False)
    settled = torch.isfinite(length) & (error <= SETTLED * length)
    fine = excess(bends(metric, x)[0]) <= RESOLVED * length
    return Path(x, length, error, straight_length, solved & settled & fine)


def _shorter(one: Path, other: Path) -> Path:
    """Row by row the shorter path, the converged one where they are equal."""
    ratio = torch.where(one.length > 0, other.length / one.length, 1)
    take = (ratio < 1 - 1e-9) | ((ratio < 1 + 1e-9) & other.converged & ~one.converged)
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return Path(*(chosen(take, b, a) for a, b in pairs))


def _unless_longer(path: Path, known: Tensor) -> Path:
    """No path that is longer than a known curve has converged to the shortest."""
    return replace(path, converged=path.converged & (path.length <= (1 + STEPPED) * known))


def _warn(path: Path) -> Path:
    rows = (~path.converged).nonzero()[:, 0]
    if len(rows):
        warnings.warn(
            f"{len(rows)} of {len(path.length)} paths did not converge (first: path "
            f"{int(rows[0])}); see .converged",
            stacklevel=3,
        )
    return path


def _gradient(potential: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Mean parameters η = ∇ log Z(t), (n, d)."""
    with torch.no_grad():
        return torch.func.grad(lambda s: potential(s).sum())(t)


def _invert_gradient(
    potential: Callable[[Tensor], Tensor], eta: Tensor, t: Tensor, max_iterations: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Points where ∇ log Z = eta, by Newton with backtracking from t; (t, solved)."""
    result, solved = t.clone(), torch.zeros(len(t), dtype=torch.bool, device=t.device)
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
        t = chosen(accept | finished, trial, t)
        share = torch.where(accept, (4 * share).clamp(max=1), share / 4)
        result[live], solved[live] = t, finished
        if finished.all():
            break
        live, t, eta, enough, share = (a[~finished] for a in (live, t, eta, enough, share))
    return result, solved


def _frozen_newton(
    metric: Metric, x: Tensor, smoothing: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """Zero of the detached gradient of one block of curves; (x, converged)."""
    unit = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    bend = unit.diff(dim=0).diff(dim=0)
    smooth = 2 * smoothing * (bend.T @ bend)[1:-1]
    result, converged = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    live, share = torch.arange(len(x), device=x.device), x.new_ones(len(x))
    state = _frozen_residual(metric, x, smooth)
    for _ in range(max_iterations):
        r, flux = state[:2]
        # One system at a time: torch's batched LU fails on two threads from about 150 unknowns on.
        systems = zip(_frozen_jacobian(*state[2:], smooth), -r.flatten(1), strict=True)
        step = torch.stack([torch.linalg.solve_ex(*system)[0] for system in systems])
        size = r.flatten(1).norm(dim=1)
        small = size <= metric.noise**0.5 * flux
        trial = x.clone()
        trial[:, 1:-1] += torch.where(small, 1.0, share)[:, None, None] * step.view_as(r)
        result[live], converged[live] = chosen(small, trial, x), small
        if small.all():
            break
        live, x, trial, size, share = (a[~small] for a in (live, x, trial, size, share))
        state, new = [a[~small] for a in state], _frozen_residual(metric, trial, smooth)
        accept = new[0].flatten(1).norm(dim=1) < (1 - 1e-4 * share) * size
        share = torch.where(accept, (2 * share).clamp(max=1), share / 2)
        x = chosen(accept, trial, x)
        state = [chosen(accept, *pair) for pair in zip(new, state, strict=True)]
    return result, converged


def _frozen_residual(metric: Metric, x: Tensor, smooth: Tensor) -> tuple[Tensor, ...]:
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
