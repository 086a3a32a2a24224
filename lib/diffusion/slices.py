"""Two-dimensional slices of latent space: what a generator draws on them, and how it stretches.

Every grid is indexed [i, j] with t = (α_i, β_j), `indexing="ij"`, α and β in [0, 1].
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from operator import call
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.diffusion import sampling
from lib.diffusion.models import Generator

PIECE = 64  # points in one cache entry: a resumed run repeats at most one piece
DEGENERATE = 1e-5
Evaluate = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Slice:
    """The plane z₀ + α (z₁ − z₀) + β (z₂ − z₀) through three anchor latents, at constant variance.

    anchors: three latents of one shape, (3, *latent_shape), as `Generator.noise(3, seed)` gives
    them. Raises ValueError for other shapes, values that are not finite, and anchors that depend on
    each other linearly: three on a line, or in a plane with 0, where normalisation leaves a curve.
    """

    anchors: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchors", _independent(_stacked(self.anchors)))

    def latents(self, t, *, dtype: torch.dtype | None = None) -> Tensor:
        """Latents (n, *latent_shape) at t (n, 2), each divided by its own standard deviation.

        Computed in float64 and rounded once, to `dtype` (default: that of the anchors). The
        standard deviation is over all entries of one latent (n − 1 in the denominator); the mean
        stays. Works under torch.func. Raises ValueError for t of another shape, not finite or
        outside [0, 1]².
        """
        z = self.anchors.double()
        a, b = (c.view(-1, *[1] * (z.ndim - 1)) for c in self.coordinates(t).unbind(1))
        x = z[0] + a * (z[1] - z[0]) + b * (z[2] - z[0])
        scale = x.flatten(1).std(1).view(a.shape)
        return (x / scale).to(dtype or self.anchors.dtype)

    def coordinates(self, t) -> Tensor:
        """t as float64 (n, 2) on the anchors' device; raises ValueError as `latents` does."""
        try:
            t = torch.as_tensor(t, dtype=torch.float64, device=self.anchors.device)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"t is {type(t).__name__} ({error}); expected (n, 2) numbers"
            ) from None
        if t.ndim != 2 or t.shape[1] != 2 or len(t) == 0:
            raise ValueError(f"t has shape {tuple(t.shape)}; expected (n, 2) with n >= 1")
        outside = ~((t >= 0) & (t <= 1)).all(1)
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            raise ValueError(
                f"t[{row}] = {t[row].tolist()} lies outside the slice; alpha and beta are in "
                "[0, 1]: choose other anchors to see more"
            )
        return t

    def resolution(self, dtype: torch.dtype, t: Sequence[float] = (0.5, 0.5)) -> float:
        """Smallest step in t that a number format can hold at t, in coordinates of the slice.

        eps / σ_min, where the smallest singular value σ_min of ∂latents/∂t per root of the number
        of entries is how far a typical entry, of size 1, moves per unit of t.
        """
        if not dtype.is_floating_point:
            raise ValueError(
                f"dtype = {dtype}: choose a floating-point type, such as torch.float32"
            )
        point = self.coordinates([list(t)])
        moves = [
            torch.func.jvp(lambda s: self.latents(s, dtype=torch.float64), (point,), (e[None],))[1]
            for e in torch.eye(2).to(point)
        ]
        slope = torch.linalg.svdvals(torch.stack(moves).reshape(2, -1)) / moves[0].numel() ** 0.5
        # t itself is held in float64
        return max(torch.finfo(dtype).eps / float(slope[-1]), torch.finfo(torch.float64).eps)


def _stacked(anchors: Tensor | Sequence[Tensor]) -> Tensor:
    """Three anchors as one floating-point tensor (3, ...)."""
    try:
        parts = [torch.as_tensor(a) for a in anchors]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"anchors are {type(anchors).__name__} ({error}); expected three latents of one shape, "
            "such as noise(3, seed)"
        ) from None
    shapes = [tuple(p.shape) for p in parts]
    if len(parts) != 3 or len(set(shapes)) > 1:
        raise ValueError(f"anchors have shapes {shapes}; expected three latents of one shape")
    stacked = torch.stack(parts).detach()
    if stacked.is_complex():
        raise ValueError("anchors are complex; latents are real numbers")
    stacked = stacked if stacked.is_floating_point() else stacked.double()
    if not bool(stacked.isfinite().all()):
        raise ValueError("anchors hold NaN or infinite values; check what made them")
    return stacked


def _independent(anchors: Tensor) -> Tensor:
    """The anchors, unless they depend on each other linearly."""
    rows = anchors.double().flatten(1)
    values = torch.linalg.svdvals(rows)
    if len(values) < 3 or float(values[2]) <= DEGENERATE * float(values[0]):
        raise ValueError(
            "anchors are collinear, or lie in one plane with 0 (singular values "
            f"{[f'{v:.3g}' for v in values.tolist()]}): they span no surface once each latent is "
            "divided by its standard deviation; choose independent ones, such as noise(3, seed)"
        )
    return anchors


def grid(
    points: int, *, low: Sequence[float] = (0.0, 0.0), high: Sequence[float] = (1.0, 1.0)
) -> Tensor:
    """A regular grid of points² coordinates, (points², 2) float64, β fastest, corners included.

    Values on it become a map by `.reshape(points, points, ...)`. Raises ValueError for points < 2
    and corners that are not two numbers each.
    """
    if points != int(points) or points < 2 or len(low) != 2 or len(high) != 2:
        raise ValueError(
            f"points = {points}, low = {low}, high = {high}; expected an integer of at least 2 and "
            "two corners (alpha, beta)"
        )
    axes = [
        torch.linspace(a, b, int(points), dtype=torch.float64)
        for a, b in zip(low, high, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)


def render(
    generator: Generator,
    plane: Slice,
    t,
    *,
    steps: int,
    prompt: str | None = None,
    guidance: float = 1.0,
    features: Callable[[Tensor], Tensor] | None = None,
    dtype: torch.dtype | None = None,
    cache: Callable | None = None,
    differentiable: bool = False,
    **options,
) -> Tensor:
    """Images (n, c, h, w), or features (n, ...) of them, at coordinates t (n, 2) of a slice.

    steps, prompt, guidance and options (eta, seed, stop, ...) go to `sampling.ddim`; with eta the
    noise of row i is that of (seed, i). features: images -> (n, ...), row by row.
    dtype: float32 or float64, of latents, network and images; by default the generator's own. For
    many calls convert once, with `generator.to(dtype)`.
    cache: `lib.kit.cache.cached`, or any function called as cache(function, *arguments): it keeps
    pieces of 64 points, keyed by weights, anchors, coordinates and every setting, so that an
    interrupted call resumes and no other model's, seed's or setting's result is taken.
    differentiable: one piece under torch.func, for `pullback_metric`; not cached.
    Raises ValueError for coordinates outside the slice, and as `sampling.ddim` does.
    """
    if not isinstance(plane, Slice):
        raise ValueError(f"plane is {type(plane).__name__}: make one of three latents, Slice(z)")
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype = {dtype}: choose torch.float32 or torch.float64, or leave it out")
    if cache is not None and not callable(cache):
        raise ValueError(
            f"cache = {cache!r}: give a function such as lib.kit.cache.cached, or None"
        )
    if dtype not in (None, generator.dtype):
        generator = generator.to(dtype)
    settings = {"steps": steps, "prompt": prompt, "guidance": guidance, **options}
    t = plane.coordinates(t)
    if differentiable:
        return _piece(generator, plane, t, features, {**settings, "differentiable": True})
    run = cache or call
    stochastic = options.get("eta", 0.0) > 0
    first = options.get("first", 0)
    parts = []
    for begin in range(0, len(t), PIECE):
        own = {**settings, "first": first + begin} if stochastic else settings
        parts.append(run(_piece, generator, plane, t[begin : begin + PIECE].clone(), features, own))
    return torch.cat(parts)


def _piece(
    generator: Generator, plane: Slice, t: Tensor, features: Callable | None, settings: dict
) -> Tensor:
    """What `render` gives at a few coordinates; all that decides it is in the arguments."""
    latents = plane.latents(t, dtype=generator.dtype)
    with nullcontext() if settings.get("differentiable") else torch.no_grad():
        images = sampling.ddim(generator, latents, **settings)
        if features is None:
            return images
        seen = features(images)
    rows = [len(x) if x.ndim else 0 for x in (seen if isinstance(seen, tuple) else (seen,))]
    if any(n != len(images) for n in rows):
        raise ValueError(
            f"features returned {rows} rows for {len(images)} images; give one row for each image"
        )
    return seen


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
        ValueError: coarse not in 1 … levels, or a share that the coarse grid already exceeds.
    """
    if not 1 <= coarse <= levels:
        raise ValueError(f"coarse = {coarse}: choose 1 ... levels = {levels}")
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


def overlap(mask: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks; 1 where both are empty, ValueError for two shapes."""
    _same_shape(mask, other)
    union = np.logical_or(mask, other).sum()
    return float(np.logical_and(mask, other).sum() / union) if union else 1.0


def relative_error(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square error of a map over the standard deviation of the true one.

    Raises ValueError for shapes that differ and a constant truth.
    """
    estimate, truth = as_array(estimate), as_array(truth)
    if estimate.size == truth.size:  # a last axis of one feature may be left out
        estimate = estimate.reshape(truth.shape)
    _same_shape(estimate, truth)
    deviation = truth - truth.mean((0, 1), keepdims=True)
    if not np.linalg.norm(deviation) > 0:
        raise ValueError("the true map is constant or not finite: there is no unit for its error")
    return float(np.linalg.norm(estimate.ravel() - truth.ravel()) / np.linalg.norm(deviation))


def stretch(metric) -> np.ndarray:
    """Largest singular value of J from metrics JᵀJ (..., 2, 2), (...): local Lipschitz constants.

    Its logarithm is the finite-time Lyapunov exponent of the sampler. Raises ValueError for another
    shape and values that are not finite.
    """
    g = as_array(metric)
    if g.ndim < 2 or g.shape[-1] != g.shape[-2] or not np.isfinite(g).all():
        raise ValueError(f"metric has shape {g.shape}; expected finite (..., d, d), as JᵀJ is")
    return np.sqrt(np.linalg.eigvalsh(g)[..., -1].clip(min=0))


def _same_shape(a, b) -> None:
    if np.shape(a) != np.shape(b):
        raise ValueError(f"maps have shapes {np.shape(a)} and {np.shape(b)}; expected one shape")


def neighbour_trace(values, spacing: float) -> np.ndarray:
    """The plain map that anyone would try first: squared differences to grid neighbours, (g, h).

    values: (g, h, ...) features on a regular grid. Per axis |Δ|² / spacing², averaged over the two
    neighbours of a point, summed over axes: it tends to the trace of the pullback metric JᵀJ.
    Raises ValueError for fewer than two points per axis and a spacing that is not positive.
    """
    values = torch.as_tensor(values).detach().cpu()
    if values.ndim < 2 or min(values.shape[:2]) < 2 or not spacing > 0:
        raise ValueError(
            f"values have shape {tuple(values.shape)}, spacing = {spacing}; expected a grid "
            "(g, h, ...) of two points and more per axis and a spacing above zero"
        )
    values = values.reshape(*values.shape[:2], -1)
    values = values if values.is_floating_point() else values.double()
    total = np.zeros(values.shape[:2])
    for axis in (0, 1):
        rows = values.transpose(0, axis)
        # row by row, because differences of whole images would double the memory
        steps = [(b - a).square().sum(-1) for a, b in zip(rows[:-1], rows[1:], strict=True)]
        squares = as_array(torch.stack(steps)) / spacing**2
        sides = (np.append(squares, squares[-1:], 0) + np.insert(squares, 0, squares[0], 0)) / 2
        total += sides if axis == 0 else sides.T
    return total


def ridges(stretches, *, contrast: float = 3.0) -> np.ndarray:
    """Mask of the ridges of a map of stretches (g, h): above `contrast` times its median.

    The scale is the map's own, so that a map without borders has none; where more than half of a
    map is all but flat, everything else is a ridge. Raises ValueError for values that are not
    finite, another shape, and contrast <= 0.
    """
    stretches = as_array(stretches)
    if stretches.ndim != 2 or not np.isfinite(stretches).all() or not contrast > 0:
        raise ValueError(
            f"stretches have shape {stretches.shape}, contrast = {contrast}; expected a finite map "
            "(g, h) and a contrast above zero"
        )
    return stretches > contrast * np.median(stretches)


def phases(stretches, *, contrast: float = 3.0, smallest: int = 4) -> np.ndarray:
    """Regions of low stretch between the ridges, as labels (g, g): 1, 2, ... by falling area.

    Regions touch along edges, not corners. 0 marks ridges and regions of fewer than `smallest`
    points.
    """
    from scipy.ndimage import label

    labels, _ = label(~ridges(stretches, contrast=contrast))
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    order = [k for k in np.argsort(-areas, kind="stable") if areas[k] >= smallest]
    renamed = np.zeros(len(areas), int)
    renamed[order] = np.arange(1, len(order) + 1)
    return renamed[labels]


def centres(labels: np.ndarray) -> np.ndarray:
    """Grid index (k, 2) of the point of each phase that is farthest from any other and the edge."""
    from scipy.ndimage import distance_transform_edt

    labels = np.asarray(labels, int)
    depths = [distance_transform_edt(np.pad(labels == k, 1)) for k in range(1, labels.max() + 1)]
    found = [np.unravel_index(np.argmax(d[1:-1, 1:-1]), labels.shape) for d in depths]
    return np.array(found, int).reshape(-1, 2)


def as_array(values) -> np.ndarray:
    """A float64 array of a tensor or an array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, np.float64)
