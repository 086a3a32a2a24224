"""Slices whose geometry is known: the controls of metrics and geodesics."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Wall:
    """Two flat phases and a straight border between them; where it is wide, one curved phase.

    Images (Δ s(u), a t), u = (n·t − c) / w, s the logistic function: the plane stretched by a, and
    a jump Δ across the line at `angle` that passes `place` from the middle. The metric
    JᵀJ = a² I + (Δ s'(u) / w)² n nᵀ depends on n·t alone: it is flat in (∫√(a² + (Δ s' / w)²), a l)
    with l along the border, and it is the Hessian of some log Z, as the paper assumes.
    """

    angle: float
    place: float
    jump: float = 15.0
    slope: float = 40.0
    width: float = 1e-4  # far below a grid's spacing

    def images(self, t: Tensor) -> Tensor:
        """Images (..., 3) at t (..., 2)."""
        return torch.cat([self.jump * self._side(t).sigmoid()[..., None], self.slope * t], -1)

    def metric(self, t: Tensor) -> Tensor:
        """JᵀJ (n, 2, 2) at t (n, 2)."""
        s, normal = self._side(t).sigmoid(), self._normal()
        steep = (self.jump * s * (1 - s) / self.width).square()[:, None, None]
        return self.slope**2 * torch.eye(2).double() + steep * torch.outer(normal, normal)

    def detour(self, start: Tensor, end: Tensor) -> np.ndarray:
        """By which share a straight line is longer than the geodesic, (b,)."""
        across = ((end - start) @ self._normal())[:, None] * self._normal()
        along = self.slope * (end - start - across).norm(dim=1)
        geodesic = (
            _length(self.images(_line(start, start + across))).square() + along.square()
        ).sqrt()
        return (_length(self.images(_line(start, end))) / geodesic - 1).numpy()

    def _normal(self) -> Tensor:
        return torch.tensor([np.cos(self.angle), np.sin(self.angle)]).double()

    def _side(self, t: Tensor) -> Tensor:
        return ((t - 0.5) @ self._normal() - self.place) / self.width


@dataclass(frozen=True)
class Globe:
    """One phase that is curved: latitude 1.2 α and longitude 5 β on a sphere, no Hessian metric."""

    radius: float = 15.0

    def images(self, t: Tensor) -> Tensor:
        """Images (..., 3) at t (..., 2)."""
        north, east = 1.2 * t[..., 0], 5 * t[..., 1]
        parts = north.cos() * east.cos(), north.cos() * east.sin(), north.sin()
        return self.radius * torch.stack(parts, -1)

    def detour(self, start: Tensor, end: Tensor) -> np.ndarray:
        """By which share a straight line in (α, β) is longer than the great circle, (b,)."""
        chord = (self.images(start) - self.images(end)).norm(dim=1) / 2 / self.radius
        straight = _length(self.images(_line(start, end)))
        return (straight / (2 * self.radius * chord.asin()) - 1).numpy()


def _line(start: Tensor, end: Tensor) -> Tensor:
    """Straight lines (b, 2001, 2) between points (b, 2)."""
    way = torch.linspace(0, 1, 2001).double()[:, None]
    return torch.lerp(start[:, None], end[:, None], way)


def _length(images: Tensor) -> Tensor:
    """Lengths (b,) of paths of images (b, k, F)."""
    return images.diff(dim=1).norm(dim=2).sum(1)
