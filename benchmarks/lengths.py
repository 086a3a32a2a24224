"""Are the lengths of geodesics right where a metric is steep? Random pairs with known distances.

Normal laws with deviations from 1e-4 to 10, three outcomes with logits up to 10, and straight
ridges of width .001 to .2 of the box and height 10 to 1e4 at any angle, the metric raised in every
direction or only across the ridge. A path fails silently when it says that it converged and is not
within a thousandth of the distance.
"""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.geometry import categorical, row
from lib.geometry.geodesics import Path, geodesic

PAIRS, RIDGES = 1000, 50
F64 = torch.float64


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def half_plane(t: Tensor) -> Tensor:
    """Fisher metric of normal laws in (mean, standard deviation)."""
    scale = t[:, 1].square()
    return torch.diag_embed(torch.stack([1 / scale, 2 / scale], 1))


def half_plane_distance(a: Tensor, b: Tensor) -> Tensor:
    """Exact, by the inverse hyperbolic sine, which keeps its digits for close pairs."""
    gap = (a[:, 0] - b[:, 0]).square() / 2 + (a[:, 1] - b[:, 1]).square()
    return 2 * math.sqrt(2) * torch.asinh((gap / (4 * a[:, 1] * b[:, 1])).sqrt())


def categorical_distance(a: Tensor, b: Tensor) -> Tensor:
    p, q = (torch.softmax(torch.nn.functional.pad(t, (1, 0)), 1) for t in (a, b))
    return 4 * torch.asin((p.sqrt() - q.sqrt()).norm(dim=1) / 2)


class Ridge:
    """g = I + h exp(−s² / 2 w²) A with s the signed distance to a line, A = I or n nᵀ."""

    def __init__(self, seed: int):
        u = uniform(5, seed=seed).tolist()
        self.width, self.height = 10 ** (-3 + u[0] * math.log10(200)), 10 ** (1 + 3 * u[1])
        self.offset, self.everywhere = 0.4 * u[3] - 0.2, u[4] < 0.5
        angle = math.pi * u[2]
        self.normal = torch.tensor([math.cos(angle), math.sin(angle)], dtype=F64)
        self.along = torch.tensor([-math.sin(angle), math.cos(angle)], dtype=F64)

    def rise(self, s: Tensor) -> Tensor:
        return self.height * torch.exp(-((s / self.width) ** 2) / 2)

    def side(self, t: Tensor) -> Tensor:
        return (t - 0.5) @ self.normal - self.offset

    def __call__(self, t: Tensor) -> Tensor:
        shape = torch.eye(2, dtype=F64)
        raised = shape if self.everywhere else torch.outer(self.normal, self.normal)
        return shape + self.rise(self.side(t))[:, None, None] * raised

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Exact distances, by quadrature and refraction; nan where the ridge is not crossed whole.

        Raised across only, the plane is flat in (∫ √g ds, y). Raised everywhere it is a medium of
        index n(s): a ray keeps p = n sin(angle), and L = ∫ √(n² − p²) ds + p y at the p whose ray
        ends at y, where L is largest.
        """
        s = torch.sort(torch.cat([torch.linspace(-8 * self.width, 8 * self.width, 20001).double(),
                                  torch.linspace(-1.5, 1.5, 20001).double()])).values  # fmt: skip
        first, last = (
            torch.minimum(self.side(a), self.side(b)),
            torch.maximum(self.side(a), self.side(b)),
        )
        s = s[:, None].clamp(first, last)
        y, index = ((b - a) @ self.along).abs(), (1 + self.rise(s)).sqrt()
        if not self.everywhere:
            return torch.hypot(torch.trapezoid(index, s, dim=0), y)
        low, high = torch.zeros_like(y), torch.ones_like(y)
        for _ in range(60):
            p = (low + high) / 2
            short = torch.trapezoid(p / (index.square() - p.square()).sqrt(), s, dim=0) < y
            low, high = torch.where(short, p, low), torch.where(short, high, p)
        length = torch.trapezoid((index.square() - low.square()).sqrt(), s, dim=0) + low * y
        crossed = (first < -7 * self.width) & (last > 7 * self.width)
        return torch.where(crossed, length, torch.nan)


def half_plane_pairs() -> tuple[Tensor, Tensor]:
    u = uniform(PAIRS, 4, seed=0)
    mean, scale = 2 * u[:, :2] - 1, 10 ** (5 * u[:, 2:] - 4)
    return torch.stack([mean[:, 0], scale[:, 0]], 1), torch.stack([mean[:, 1], scale[:, 1]], 1)


def solved(metric: Callable[[Tensor], Tensor], exact, a: Tensor, b: Tensor, **options):
    """Which paths converged, and their relative errors, nan where the distance is not known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path: Path = geodesic(metric, a, b, **options)
    return path.converged, path.length / exact(a, b) - 1


def ridge_results() -> tuple[Tensor, Tensor]:
    found = []
    for k in range(RIDGES):
        ridge, u = Ridge(k), uniform(PAIRS // RIDGES, 4, seed=1000 + k)
        found.append(solved(ridge, ridge.distance, u[:, :2], u[:, 2:], box=[[0, 0], [1, 1]]))
    converged, error = zip(*found, strict=True)
    return torch.cat(converged), torch.cat(error)


def main() -> list[dict]:
    """Rows for `make bench`."""
    logits = 20 * uniform(PAIRS, 4, seed=0) - 10
    families = {
        "normal laws, deviation 1e-4 to 10": solved(
            half_plane, half_plane_distance, *half_plane_pairs()
        ),
        "three outcomes, logits up to 10": solved(
            categorical, categorical_distance, logits[:, :2], logits[:, 2:]
        ),
        "straight ridges": ridge_results(),
    }
    rows = []
    for name, (converged, error) in families.items():
        count, known = int(converged.sum()), ~torch.isnan(error)
        silent = int((converged & known & (error.abs() > 1e-3)).sum())
        worst, short = (error[converged & known].max().item(), -error[known].min().item())
        rows += [
            row(f"{name}: converged of {PAIRS:,} random pairs", count, "pairs", ">= 990",
                count >= 0.99 * PAIRS),
            row(f"{name}: converged but off by more than 1e-3, of {int(known.sum())} known", silent,
                "pairs", "0", silent == 0),
            row(f"{name}: worst excess of those that converged", worst, "relative", "<= 1e-3",
                worst <= 1e-3),
            row(f"{name}: furthest below the distance, all pairs", short, "relative", "<= 1e-6",
                short <= 1e-6),
        ]  # fmt: skip
    return rows
