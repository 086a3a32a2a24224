"""Spacetime: noisy points (x_t, t) as the exponential family of their posteriors p(x_0 | x_t).

With κ = α / (1 − α), p(x_0 | x_t) = q(x_0) exp(u·x_0 + w |x_0|² − ψ), u = κ c, w = −κ / 2, where
c = x_t / √α; its Fisher metric ∇²ψ measures both space and noise. Source: Karczewski et al. 2025,
arXiv 2505.17517. Points are rows (c, log κ), (n, d + 1), here, a chart without edges.
"""

from collections.abc import Callable
from math import acosh, atanh, exp, hypot, sqrt

import torch
from torch import Tensor

from lib.diffusion.models import Generator
from lib.diffusion.tangents import linearised


def natural(points: Tensor) -> Tensor:
    """η = (u, w) = (κ c, −κ/2) of points (c, log κ), both (n, d + 1)."""
    kappa = points[:, -1:].exp()
    return torch.cat([kappa * points[:, :-1], -kappa / 2], 1)


def mixture_potential(means: Tensor, sigma: float, weights: Tensor) -> Callable[[Tensor], Tensor]:
    """ψ(η) of Σ_k w_k N(m_k, σ² I), rows (n, d + 1) -> (n,); means (k, d), weights (k,) sum to 1.

    ψ = log Σ_k w_k exp(−d/2 log(1 + κ σ²) + r²/2 |m_k / σ² + u|² − |m_k|² / 2σ²), r⁻² = σ⁻² + κ.
    """

    def psi(eta: Tensor) -> Tensor:
        u, kappa = eta[:, :-1], -2 * eta[:, -1:]
        pull = (means / sigma**2 + u[:, None]).square().sum(-1)
        power = pull / (2 * (sigma**-2 + kappa)) - means.square().sum(1) / (2 * sigma**2)
        own = (weights.log() + power).logsumexp(1)
        return own - means.shape[1] / 2 * torch.log1p(kappa[:, 0] * sigma**2)

    return psi


def gaussian_length(start: Tensor, end: Tensor) -> float:
    """Distance √(2d) arccosh(1 + (|Δc|² / 2d + (Δr)²) / 2 r r') of points (c, log r⁻²), exact.

    For data N(m, σ² I) with p(x_0 | x_t) = N(c, r² I), and for flat data with r² = 1/κ.
    """
    far, (r, s), d = _half_plane(start, end)
    return sqrt(2 * d) * acosh(1 + (far**2 + (r - s) ** 2) / (2 * r * s))


def semicircle(start: Tensor, end: Tensor, nodes: int) -> Tensor:
    """The geodesic of `gaussian_length`, at constant speed: the start of every search."""
    far, (r, s), d = _half_plane(start, end)
    middle = (far**2 + s**2 - r**2) / (2 * far)
    radius = hypot(middle, r)
    places = atanh(-middle / radius), atanh((far - middle) / radius)
    angle = torch.linspace(*places, nodes, dtype=torch.float64, device=start.device)
    along = (middle + radius * angle.tanh())[:, None] * (end - start)[:-1] / far
    height = -2 * (radius / angle.cosh()).log()
    return torch.cat([start[:-1] + along, height[:, None]], 1)


def _half_plane(start: Tensor, end: Tensor) -> tuple[float, tuple[float, float], int]:
    """|Δc| / √(2d), the two r, and d."""
    d = len(start) - 1
    far = float((end - start)[:-1].norm()) / sqrt(2 * d)
    return far, (exp(-float(start[-1]) / 2), exp(-float(end[-1]) / 2)), d


def energy(eta: Tensor, mu: Tensor) -> Tensor:
    """E = (n − 1)/2 Σ Δη·Δμ of a curve of n nodes (paper's Eq. for discrete energy); L <= √(2E).

    A term is the symmetric KL divergence of neighbours. Space and time count together: of the two
    parts of a term, one may be negative.
    """
    return (len(eta) - 1) / 2 * (eta.diff(dim=0) * mu.diff(dim=0)).sum()


def nearest_times(generator: Generator, points: Tensor) -> tuple[Tensor, Tensor]:
    """Training times (n,) next to κ, and the points with the κ of these times."""
    snr = (generator.alphas / (1 - generator.alphas)).log().to(points)
    times = (snr[None] - points[:, -1:]).abs().argmin(1)
    return times, torch.cat([points[:, :-1], snr[times, None]], 1)


def expectations(generator: Generator, points: Tensor, times: Tensor, probe: Tensor) -> Tensor:
    """μ = (x̂, |x̂|² + (d − √(1 − α) tr J) / κ), (n, d + 1), of a network at points of these times.

    J = ∂ε/∂x; its trace is probe·J probe (Hutchinson), one plain and one tangent pass per point.
    probe: (m, d) of signs ±1, averaged over m, the same along a curve, or noise enters every step;
    √d times the d unit vectors give the exact trace.
    """
    alphas, rows = generator.alphas.to(points)[times], []
    with torch.no_grad(), linearised(generator.unet) as tape:
        for point, t, alpha in zip(points, times.tolist(), alphas.tolist(), strict=True):
            x = (sqrt(alpha) * point[:-1]).view(1, *generator.latent_shape)
            x = x.to(generator.device, generator.dtype).expand(len(probe), -1, -1, -1)
            move = probe.to(x).view(x.shape)
            tape.start(tangent=False)
            eps = generator.epsilon(x, t)[0].flatten().to(points)
            tape.start(tangent=True)
            trace = float((move * generator.epsilon(move, t)).sum()) / len(probe)
            clean = point[:-1] - sqrt(1 / alpha - 1) * eps
            spread = (1 / alpha - 1) * (len(clean) - sqrt(1 - alpha) * trace)
            rows.append(torch.cat([clean, (clean.square().sum() + spread).view(1)]))
    return torch.stack(rows)
