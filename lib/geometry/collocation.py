"""Smooth geodesics of exponential families: Newton's method on a spectral grid.

With μ = ∇ψ(η) and g = ∇²ψ the geodesic equation is g η̈ + μ̈ = 0. A matrix D² that differentiates
twice turns it into r_n = g_n (D²η)_n + (D²μ)_n = 0, whose Jacobian is closed,

    ∂r_n/∂η_m = (g_n + g_m) D²_nm + δ_nm ψ'''_n[(D²η)_n],

so that one batch of third derivatives of ψ is all that a step costs.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import chebyshev
from scipy.interpolate import CubicSpline
from torch import Tensor

from lib.geometry.checks import Potential, Values, as_points, check_positive, require_whole

SOLVED = 1e-10  # of the path, the Newton step of a solved one
SHORTEST = 1e-4  # share of a Newton step below which the search gives up
MOST = 257  # nodes of a refined geodesic


class SmoothPath(NamedTuple):
    """One geodesic through its Chebyshev nodes, parametrised by s in [0, 1]."""

    points: Tensor  # (nodes, d) float64, end points included
    length: float
    length_error: float  # spread of the speed, which is constant on a geodesic
    converged: bool

    def at(self, s: Values) -> Tensor:
        """Points (n, d) of the curve at s (n,), by the polynomial through its nodes."""
        nodes = 2 * _chebyshev(len(self.points))[0] - 1
        parts = chebyshev.chebfit(nodes, self.points.numpy(), len(nodes) - 1)
        return torch.from_numpy(chebyshev.chebval(2 * np.asarray(s) - 1, parts).T)


def smooth_geodesic(
    potential: Potential, path: Values, *, nodes: int = 65, max_iterations: int = 50
) -> SmoothPath:
    """The Levi-Civita geodesic of g = ∇²ψ between the ends of a path, where the search starts.

    Newton's method at `nodes` Chebyshev points, the step halved while r grows or is not finite, as
    it is outside the domain of ψ. The curve is smooth, so its length errs by far less than a
    polyline's; where the metric is too steep for the nodes, length_error says so.

    Args:
        potential: ψ as a batch, (n, d) -> (n,), three times differentiable.
        path: (k, d) natural parameters in order, k >= 4, equally spaced in s.
        nodes: Chebyshev points with both ends, at least 4.

    Raises:
        ValueError: too few points, or a metric that is not positive on the path.
    """
    require_whole(4, nodes=nodes)
    path = as_points(path, "path").detach().double().cpu()
    require_whole(4, points=len(path))
    s, D, weights = _chebyshev(nodes)
    x = torch.from_numpy(CubicSpline(np.linspace(0, 1, len(path)), path)(s))
    state, share, solved = _equations(potential, D @ D, x), 1.0, False
    check_positive(state[1], x)
    for _ in range(max_iterations):
        step = _newton_step(D @ D, *state)
        trial = _equations(potential, D @ D, x + share * step)
        if trial[0].norm() <= state[0].norm() or step.norm() <= SOLVED * x.norm():
            x, state, share = x + share * step, trial, min(1.0, 2 * share)
            solved = bool(step.norm() <= SOLVED * x.norm())
        else:
            share /= 2
        if solved or share < SHORTEST:
            break
    v, g = D @ x, state[1]
    speed = torch.einsum("ni,nij,nj->n", v, g, v).clamp(min=0).sqrt()
    return SmoothPath(x, float(weights @ speed), float(speed.max() - speed.min()), solved)


def refined_geodesic(
    potential: Potential, path: Values, *, tolerance: float = 1e-5, nodes: int = 33
) -> SmoothPath:
    """`smooth_geodesic` at 33, 65, ... nodes until its length changes by less than a tolerance.

    Each search starts at the curve before. Not converged: no two lengths agree up to 257 nodes.
    Raises ValueError as `smooth_geodesic`.
    """
    found, even = smooth_geodesic(potential, path, nodes=nodes), np.linspace(0, 1, 65)
    while (nodes := 2 * nodes - 1) <= MOST:
        before, start = found, found.at(even) if found.converged else path
        found = smooth_geodesic(potential, start, nodes=nodes)
        if found.converged and before.converged and abs(found.length - before.length) < tolerance:
            return found
    return found._replace(converged=False)


def _equations(potential: Potential, twice: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Residual r (n, d), zero at the ends, g and ψ'''[D²η], (n, d, d) each."""
    bend = twice @ x
    with torch.enable_grad():
        at = x.clone().requires_grad_(True)
        mu = _gradient(potential(at), at)
        g = torch.stack([_gradient(column, at) for column in mu.unbind(1)], 1)
        third = torch.stack([_gradient((row * bend).sum(1), at) for row in g.unbind(1)], 1)
    mu, g = mu.detach(), g.detach()
    r = torch.einsum("nij,nj->ni", g, bend) + twice @ mu
    r[[0, -1]] = 0
    return r, g, third.detach()


def _gradient(values: Tensor, at: Tensor) -> Tensor:
    """Row-wise gradient (n, d) with its graph."""
    return torch.autograd.grad(values.sum(), at, create_graph=True, materialize_grads=True)[0]


def _newton_step(twice: Tensor, r: Tensor, g: Tensor, third: Tensor) -> Tensor:
    """Newton step (n, d) of r = 0, zero at both ends."""
    n, d = r.shape
    jacobian = twice[:, None, :, None] * (g[:, :, None] + g.permute(1, 0, 2)[None])
    jacobian[range(n), :, range(n)] += third
    inner = jacobian[1:-1, :, 1:-1].reshape((n - 2) * d, -1)
    step = torch.zeros_like(r)
    step[1:-1] = -torch.linalg.solve(inner, r[1:-1].flatten()).view(-1, d)
    return step


def _chebyshev(n: int) -> tuple[np.ndarray, Tensor, Tensor]:
    """Chebyshev points of [0, 1], rising, their differentiation matrix and quadrature weights.

    Source: Trefethen, Spectral Methods in MATLAB (2000), programs cheb and clencurt.
    """
    k = np.arange(n)
    s = (1 - np.cos(np.pi * k / (n - 1))) / 2
    ends = np.where((k == 0) | (k == n - 1), 2.0, 1.0) * (-1.0) ** k
    D = np.outer(ends, 1 / ends) / (s[:, None] - s[None] + np.eye(n))
    D -= np.diag(D.sum(1))
    moments = chebyshev.chebvander(2 * s - 1, n - 1)
    even = np.where(k % 2 == 0, 1 / (1.0 - k**2 + (k == 1)), 0.0)  # ∫ T_k over [0, 1]
    return s, torch.from_numpy(D), torch.from_numpy(np.linalg.solve(moments.T, even))


def descend(
    potential: Potential,
    natural: Callable[[Tensor], Tensor],
    knots: Tensor,
    enough: Callable[[float], bool],
    *,
    points: int = 129,
    rate: float = 0.1,
    steps: int = 10_000,
) -> tuple[float, float, int]:
    """The rival: Adam on the inner knots (k, d) of a cubic spline; (CPU seconds, length, steps).

    Descends Σ Δη·Δμ, η = natural(x), over an odd number of points x of the spline; as many knots
    are free points. It stops once enough(length), asked every 25th step and not timed. The length
    is (4 L_n − L_{n/2}) / 3, L_n = Σ √(Δη·Δμ), since L_n is too long by O(n⁻²). Source: Karczewski
    et al. 2025, whose released code takes a spline of 2 or 10 knots and rate .1.
    """
    spline = CubicSpline(np.linspace(0, 1, len(knots)), np.eye(len(knots)))
    spread = torch.from_numpy(spline(np.linspace(0, 1, points))).to(knots)
    move = torch.zeros_like(knots[1:-1]).requires_grad_(True)
    optimizer, seconds, length = torch.optim.Adam([move], rate), 0.0, float("inf")
    for step in range(1, steps + 1):
        begin = time.process_time()
        eta = natural(spread @ torch.cat([knots[:1], knots[1:-1] + move, knots[-1:]]))
        mu = _gradient(potential(eta), eta)
        optimizer.zero_grad()
        (eta.diff(dim=0) * mu.diff(dim=0)).sum().backward()
        optimizer.step()
        seconds += time.process_time() - begin
        if step % 25 == 0:
            parts = [(eta[::k].diff(dim=0) * mu[::k].diff(dim=0)).sum(1) for k in (1, 2)]
            fine, coarse = (float(part.detach().clamp(min=0).sqrt().sum()) for part in parts)
            length = (4 * fine - coarse) / 3
            if enough(length):
                break
    return seconds, length, step
