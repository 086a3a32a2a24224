"""Maps on a regular grid from part of its points: a quadtree that samples where they change."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from lib.intervals import as_array
from lib.slices.maps import Evaluate
from lib.slices.plane import grid


class Refined(NamedTuple):
    """A map from part of its points: values (g, g, ...) float64, interpolated where not sampled."""

    values: np.ndarray
    sampled: np.ndarray  # (g, g) bool

    @property
    def share(self) -> float:
        """Share of the grid's points that were evaluated."""
        return float(self.sampled.mean())


def refine(
    evaluate: Evaluate,
    levels: int,
    *,
    coarse: int = 3,
    share: float = 1 / 3,
    tolerance: float = 0.0,
    low: Sequence[float] = (0.0, 0.0),
    high: Sequence[float] = (1.0, 1.0),
) -> Refined:
    """A map on g = 2^levels + 1 points per side, sampled where it changes, by a quadtree.

    Starts from 2^coarse cells per side and splits the cells across whose corners the values differ
    most (by more than `tolerance`, in the norm of all features), until a `share` of the g² points
    is spent; neighbours never differ by more than one level. The rest is bilinear. A feature that
    fits between the corners of a coarse cell is not seen.

    Args:
        evaluate: coordinates (n, 2) -> values (n, ...), such as a `render` or a log stretch.
        low, high: corners of the window.

    Raises:
        ValueError: coarse not in 1 … levels, a tolerance below zero, or a share that the coarse
            grid already exceeds.
    """
    if not 1 <= coarse <= levels or not tolerance >= 0:
        raise ValueError(
            f"coarse = {coarse}, tolerance = {tolerance}: choose 1 ... levels = {levels}, and zero "
            "or more"
        )
    tree = _Quadtree(evaluate, levels, coarse, grid(2**levels + 1, low=low, high=high))
    budget = int(share * tree.sampled.size)
    if tree.sampled.sum() > budget:
        raise ValueError(
            f"share = {share:.3g} of {tree.sampled.size} points is {budget}, fewer than the coarse "
            f"grid's {tree.sampled.sum()}: raise share or levels, or lower coarse"
        )
    while len(chosen := tree.widest(tolerance, (budget - int(tree.sampled.sum())) // 5)):
        tree.split(chosen)
    return Refined(tree.filled(), tree.sampled)


class _Quadtree:
    """Square leaves (row, column, size) over the cells of a grid, with values at their corners."""

    def __init__(self, evaluate: Evaluate, levels: int, coarse: int, t: Tensor) -> None:
        side = 2**levels
        self.evaluate, self.points = evaluate, t.view(side + 1, side + 1, 2)
        self.sampled = np.zeros((side + 1, side + 1), bool)
        self.owner = np.zeros((side, side), int)
        self.leaves = np.zeros((0, 3), int)
        self.spread = np.zeros(0)
        self.values: np.ndarray | None = None
        size = side // 2**coarse
        corners = np.arange(0, side, size)
        rows, columns = (c.ravel() for c in np.meshgrid(corners, corners, indexing="ij"))
        self._add(np.stack([rows, columns, np.full(len(rows), size)], 1))

    def widest(self, tolerance: float, most: int) -> np.ndarray:
        """At most so many leaves to split next, those within a factor 2 of the widest spread.

        Neighbours that are larger than one of them are split with it.
        """
        wide = np.where(self.leaves[:, 2] > 1, self.spread, 0.0)
        order = np.argsort(-wide, kind="stable")[: max(most, 0)]
        order = order[(wide[order] > tolerance) & (wide[order] >= wide.max() / 2)]
        while len(chosen := self._with_larger_neighbours(order)) > most:
            order = order[: len(order) // 2]
        return chosen

    def split(self, chosen: np.ndarray) -> None:
        """Replace leaves by their quarters."""
        i, j, size = self.leaves[chosen].T
        half = size // 2
        quarters = [np.stack([i + a, j + b, half], 1) for a in (0, half) for b in (0, half)]
        self.leaves, self.spread = (np.delete(x, chosen, 0) for x in (self.leaves, self.spread))
        self._add(np.concatenate(quarters))

    def filled(self) -> np.ndarray:
        """Values on the whole grid; fine leaves have the last word on the edges they share."""
        values = self.values.copy()
        for i, j, size in self.leaves[np.argsort(-self.leaves[:, 2], kind="stable")]:
            block = np.s_[i : i + size + 1, j : j + size + 1]
            corners = self.values[i : i + size + 1 : size, j : j + size + 1 : size]
            weight = np.stack([1 - np.arange(size + 1) / size, np.arange(size + 1) / size])
            values[block] = np.einsum("ai,bj,ab...->ij...", weight, weight, corners)
        return values

    def _with_larger_neighbours(self, chosen: np.ndarray) -> np.ndarray:
        side, found = len(self.owner), set(chosen.tolist())
        waiting = list(found)
        while waiting:
            i, j, size = self.leaves[waiting.pop()]
            around = [(i + a, j + b) for a in (-1, 0, size) for b in (-1, 0, size)]
            inside = [(a, b) for a, b in around if 0 <= a < side and 0 <= b < side]
            for other in {int(self.owner[p]) for p in inside} - found:
                if self.leaves[other, 2] > size:
                    found.add(other)
                    waiting.append(other)
        return np.array(sorted(found), int)

    def _add(self, leaves: np.ndarray) -> None:
        """Append leaves, evaluate their corners, measure how much these differ."""
        i, j, size = leaves.T
        self._sample(np.concatenate([[i + a, j + b] for a in (0, size) for b in (0, size)], 1))
        corners = np.stack([self.values[i + a, j + b] for a in (0, size) for b in (0, size)])
        flat = corners.reshape(4, len(leaves), -1)
        pairs = [np.linalg.norm(flat[a] - flat[b], axis=1) for a in range(4) for b in range(a)]
        self.leaves = np.concatenate([self.leaves, leaves])
        self.spread = np.concatenate([self.spread, np.max(pairs, 0)])
        for index, (row, column, width) in enumerate(self.leaves):
            self.owner[row : row + width, column : column + width] = index

    def _sample(self, index: np.ndarray) -> None:
        """Evaluate grid points that are not known yet."""
        index = np.unique(index, axis=1)
        rows, columns = index[:, ~self.sampled[tuple(index)]]
        if len(rows) == 0:
            return
        new = as_array(self.evaluate(self.points[rows, columns]))
        if new.ndim == 0 or len(new) != len(rows) or not np.isfinite(new).all():
            raise ValueError(
                f"evaluate returned shape {new.shape} for {len(rows)} points, or values that are "
                "not finite; give one finite row for each point"
            )
        if self.values is None:
            self.values = np.full((*self.sampled.shape, *new.shape[1:]), np.nan)
        self.values[rows, columns], self.sampled[rows, columns] = new, True
