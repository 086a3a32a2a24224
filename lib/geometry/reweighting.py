"""log Z from statistics that are known: multistate reweighting with a continuum of states.

Samples x_n drawn at parameters uniform in a box have the mixture density

    q(x) = h(x) ∫_box exp(⟨θ(t), f(x)⟩ − φ(θ(t))) dt / |box|,

so every log Z is one average over all of them, φ(θ) = log (1/N) Σ_n exp(⟨θ, f_n⟩) h(x_n) / q(x_n),
also at the nodes of the integral: a set of equations for φ there, solved by Newton's method. This
is MBAR, the optimal use of equilibrium samples; its standard implementation wants a finite set of
states with many samples each, here every sample has its own.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lib.geometry.boxes import warn_uneven
from lib.geometry.checks import Natural, Values, as_tensor, float64, mapped, require_finite

STEPS = 60


class Reweighted(nn.Module):
    """φ(θ) = log Σ_n w_n exp(⟨θ, f_n⟩): smooth and convex, its Hessian a reweighted covariance.

    statistics: (n, d), distinct. log_weights: (n,).
    """

    def __init__(self, statistics: Tensor, log_weights: Tensor):
        super().__init__()
        self.register_buffer("statistics", statistics)
        self.register_buffer("log_weights", log_weights)

    def forward(self, theta: Values) -> Tensor:
        """φ at θ (n, d), shape (n,), float64."""
        return torch.logsumexp(float64(theta, "theta") @ self.statistics.T + self.log_weights, 1)

    def moments(self, theta: Values) -> tuple[Tensor, Tensor, Tensor]:
        """φ (n,), its gradient, the mean of f (n, d), and Hessian, the covariance (n, d, d)."""
        theta, f = float64(theta, "theta"), self.statistics
        parts = []
        for block in theta.split(256):
            log = block @ f.T + self.log_weights
            p, mean = log.softmax(1), log.softmax(1) @ f
            square = (p @ (f[:, :, None] * f[:, None]).flatten(1)).unflatten(1, (f.shape[1],) * 2)
            parts.append((log.logsumexp(1), mean, square - mean[:, :, None] * mean[:, None]))
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def reweight(
    statistics: Values,
    t: Values,
    *,
    edges: Sequence[Values],
    natural: Natural | None = None,
    tolerance: float = 1e-6,
) -> Reweighted:
    """Solve for log Z of an exponential family with known sufficient statistics.

    With nodes θ_k of weight w_k (centres and volumes of cells), φ minimises the convex

        (1/N) Σ_n log Σ_k w_k exp(⟨θ_k, f_n⟩ − φ_k) + Σ_k w_k φ_k.

    statistics: (n, d), f(x_n). t: (n, d), uniform in the box of the edges. edges: d increasing
    arrays, the borders of the cells in t; finer where the posterior of a sample is narrow.
    natural: t -> θ, by default the identity. tolerance: largest error of the mass of a cell,
    relative to a uniform one.
    Raises ValueError on shapes that disagree, parameters outside the edges, and cells so coarse
    that the equations cannot be solved.
    Source: Shirts and Chodera, J. Chem. Phys. 129, 124105 (2008); the continuum of states is ours.
    """
    f, t, edges = _checked(statistics, t, edges)
    warn_uneven(t, torch.stack([edge[[0, -1]] for edge in edges], 1))
    natural = natural or (lambda t: t)
    nodes, weights = _cells(edges)
    theta = mapped(natural, nodes)
    phi = _integrated_means(f, t, edges, theta)
    f, counts = torch.unique(f, dim=0, return_counts=True)
    share = counts.double() / len(t)
    energies = theta @ f.T
    phi = _newton(phi, energies, weights, share, tolerance)
    mixture = torch.logsumexp(energies - phi[:, None] + weights.log()[:, None], 0)
    return Reweighted(f, share.log() - mixture).to(as_tensor(statistics, "statistics").device)


def _newton(
    phi: Tensor, energies: Tensor, weights: Tensor, share: Tensor, tolerance: float
) -> Tensor:
    """Damped Newton steps until every node holds its weight of the samples."""
    value, p = _objective(phi, energies, weights, share)
    for _ in range(STEPS):
        mass = p @ share
        gradient = weights - mass
        if (gradient.abs() / weights).max() < tolerance:
            return phi - phi[0]
        hessian = mass.diag() - (p * share) @ p.T
        # the constant in φ is free, and a cell that no sample sees has no curvature
        hessian += 1e-9 * mass.mean() * torch.eye(len(phi), dtype=phi.dtype)
        step = -torch.linalg.solve(hessian, gradient)
        step *= (20 / step.sub(step.mean()).abs().max()).clamp(max=1)
        slope, length = (gradient @ step).item(), 1.0
        while length > 1e-6:
            trial, trial_p = _objective(phi + length * step, energies, weights, share)
            if trial <= value + 1e-4 * length * slope + 1e-12 * abs(value):
                break
            length /= 2
        phi, value, p = phi + length * step, trial, trial_p
    raise ValueError(
        f"reweighting did not converge on {len(phi)} cells: some cell is so far from its "
        "neighbours that no sample belongs to both; use finer edges or more samples"
    )


def _objective(
    phi: Tensor, energies: Tensor, weights: Tensor, share: Tensor
) -> tuple[float, Tensor]:
    """The convex function and the posterior of the nodes for each statistic, (K, S)."""
    log = energies - phi[:, None] + weights.log()[:, None]
    total = log.logsumexp(0)
    return (share @ total + weights @ phi).item(), (log - total).exp_()


def _integrated_means(f: Tensor, t: Tensor, edges: list[Tensor], theta: Tensor) -> Tensor:
    """φ at the nodes to start from: dφ = ⟨mean f, dθ⟩ between neighbours, by least squares."""
    shape = [len(edge) - 1 for edge in edges]
    places = [
        torch.bucketize(x.contiguous(), edge[1:-1])
        for x, edge in zip(t.unbind(1), edges, strict=True)
    ]
    cell = torch.from_numpy(np.ravel_multi_index([p.numpy() for p in places], shape))
    count = torch.bincount(cell, minlength=math.prod(shape)).double()
    mean = torch.zeros(len(count), f.shape[1], dtype=f.dtype).index_add_(0, cell, f)
    mean = mean / count.clamp_min(1)[:, None]
    index = torch.arange(len(count)).view(shape)
    laplacian = torch.zeros(len(count), len(count), dtype=f.dtype)
    flow = torch.zeros(len(count), dtype=f.dtype)
    for axis in range(len(shape)):
        a = index.narrow(axis, 0, shape[axis] - 1).flatten()
        b = index.narrow(axis, 1, shape[axis] - 1).flatten()
        both = count[a] + count[b]
        between = (mean[a] * count[a, None] + mean[b] * count[b, None]) / both.clamp_min(1)[:, None]
        rise = (between * (theta[b] - theta[a])).sum(1)
        sure = both.clamp_min(1e-3)
        for row, column, sign in ((a, b, 1), (b, a, -1)):
            laplacian[row, row] += sure
            laplacian[row, column] -= sure
            flow[row] -= sign * sure * rise
    laplacian[0, 0] += 1
    return torch.linalg.solve(laplacian, flow)


def _cells(edges: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Centres of all cells (K, d) and their shares of the volume (K,)."""
    centres = torch.cartesian_prod(*[(e[1:] + e[:-1]) / 2 for e in edges])
    sizes = torch.cartesian_prod(*[e.diff() / (e[-1] - e[0]) for e in edges])
    return centres.reshape(-1, len(edges)), sizes.reshape(-1, len(edges)).prod(1)


def _checked(
    statistics: Values, t: Values, edges: Sequence[Values]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    f, t = float64(statistics, "statistics").cpu(), float64(t, "t").cpu()
    edges = [float64(edge, "edges").cpu() for edge in edges]
    if f.ndim != 2 or f.shape != t.shape or len(edges) != t.shape[1]:
        raise ValueError(
            f"statistics, t have shapes {tuple(f.shape)}, {tuple(t.shape)} and there are "
            f"{len(edges)} edges; expected (n, d) twice and one array of edges for each coordinate"
        )
    require_finite("statistics", f)
    require_finite("t", t)
    for k, edge in enumerate(edges):
        if edge.ndim != 1 or len(edge) < 2 or not (edge.diff() > 0).all():
            raise ValueError(f"edges[{k}] = {edge.tolist()}; give two or more increasing numbers")
        outside = (t[:, k] < edge[0]) | (t[:, k] > edge[-1])
        if outside.any():
            raise ValueError(
                f"t has {int(outside.sum())} values outside edges[{k}], the first "
                f"{t[outside][0, k].item():.6g} is not in [{edge[0]:.6g}, {edge[-1]:.6g}]"
            )
    return f, t, edges
