"""Slices whose geometry is known in closed form: the controls of geodesics."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WIDTH = 1e-4  # of a wall's border, far below a grid's spacing


@dataclass(frozen=True)
class Wall:
    """Two flat phases and a straight border between them.

    Images (Δ s((n·t − c) / w), a t): the plane stretched by a, and a jump Δ across the line at
    `angle` that passes `place` from the middle. A path may slide along inside the narrow border
    while it climbs, so the slice unfolds to a plane in which the border has the thickness Δ.
    """

    angle: float
    place: float
    jump: float = 15.0
    slope: float = 40.0

    def images(self, t: Tensor) -> Tensor:
        """Images (n, 3) at t (n, 2)."""
        side = self._beyond(t)
        return torch.cat([self.jump * torch.sigmoid(side / WIDTH)[:, None], self.slope * t], 1)

    def detour(self, start: Tensor, end: Tensor) -> np.ndarray:
        """By which share a straight line is longer than the geodesic, (b,), for w → 0."""
        normal, move = self._normal(), end - start
        along = move @ torch.stack([-normal[1], normal[0]])
        climb = self.jump * (self._beyond(start) * self._beyond(end) < 0)
        a, across = self.slope, (move @ normal).abs()
        geodesic = ((a * across + climb).square() + (a * along).square()).sqrt()
        return ((a * move.norm(dim=1) + climb) / geodesic - 1).numpy()

    def _normal(self) -> Tensor:
        return torch.tensor([np.cos(self.angle), np.sin(self.angle)]).double()

    def _beyond(self, t: Tensor) -> Tensor:
        return (t - 0.5) @ self._normal() - self.place


@dataclass(frozen=True)
class Globe:
    """One phase that is curved: latitude 1.2 α and longitude 5 β on a sphere."""

    radius: float = 15.0

    def images(self, t: Tensor) -> Tensor:
        """Images (n, 3) at t (n, 2)."""
        north, east = 1.2 * t[..., 0], 5 * t[..., 1]
        parts = north.cos() * east.cos(), north.cos() * east.sin(), north.sin()
        return self.radius * torch.stack(parts, -1)

    def detour(self, start: Tensor, end: Tensor) -> np.ndarray:
        """By which share a straight line in (α, β) is longer than the great circle, (b,)."""
        line = torch.lerp(
            start[:, None], end[:, None], torch.linspace(0, 1, 2001)[:, None].double()
        )
        straight = self.images(line).diff(dim=1).norm(dim=2).sum(1)
        chord = (self.images(start) - self.images(end)).norm(dim=1) / 2 / self.radius
        return (straight / (2 * self.radius * chord.asin()) - 1).numpy()
