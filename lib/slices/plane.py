"""Two-dimensional slices of latent space, and what a generator draws on them.

Every grid is indexed [i, j] with t = (α_i, β_j), `indexing="ij"`, α and β in [0, 1].
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from operator import call

import torch
from torch import Tensor

from lib.diffusion import sampling, tangents
from lib.diffusion.models import Generator
from lib.intervals import Values

PIECE = 64  # points in one cache entry: a resumed run repeats at most one piece
DEGENERATE = 1e-5


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

    def latents(self, t: Values, *, dtype: torch.dtype | None = None) -> Tensor:
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

    def coordinates(self, t: Values) -> Tensor:
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

    def tangents(self, t: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """∂latents/∂α and ∂latents/∂β at `coordinates` t (n, 2), (n, *latent_shape) each."""
        return [
            torch.func.jvp(lambda s: self.latents(s, dtype=dtype), (t,), (e.expand_as(t),))[1]
            for e in torch.eye(2).to(t)
        ]

    def resolution(self, dtype: torch.dtype, t: Sequence[float] = (0.5, 0.5)) -> float:
        """Smallest step in t that a number format can hold at t, in coordinates of the slice.

        eps / σ_min, where the smallest singular value σ_min of ∂latents/∂t per root of the number
        of entries is how far a typical entry, of size 1, moves per unit of t.
        """
        if not dtype.is_floating_point:
            raise ValueError(
                f"dtype = {dtype}: choose a floating-point type, such as torch.float32"
            )
        moves = self.tangents(self.coordinates([list(t)]), torch.float64)
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
    t: Values,
    *,
    steps: int,
    prompt: str | None = None,
    guidance: float = 1.0,
    features: Callable[[Tensor], Tensor] | None = None,
    dtype: torch.dtype | None = None,
    cache: Callable | None = None,
    differentiable: bool = False,
    **options: object,
) -> Tensor:
    """Images (n, c, h, w), or features (n, ...) of them, at coordinates t (n, 2) of a slice.

    steps, prompt, guidance and options (class_labels, eta, seed, ...) go to `sampling.ddim`; with
    eta the noise of row i is that of (seed, i). features: images -> (n, ...), row by row.
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


def jacobian(
    generator: Generator,
    plane: Slice,
    t: Values,
    *,
    steps: int,
    prompt: str | None = None,
    guidance: float = 1.0,
    class_labels: int | None = None,
    features: Callable[[Tensor], Tensor | tuple[Tensor, ...]] | None = None,
    batch: int = 16,
) -> Tensor | tuple[Tensor, ...]:
    """J = ∂G/∂(α, β), (n, values of an image, 2) float64, exact through all steps; JᵀJ is a metric.

    By `tangents.pushforward`, at about four times the cost of the images. features: images ->
    (n, ...), or a tuple of such, differentiated in the place of the images; a tuple gives a tuple.
    Other arguments as in `render`. Raises ValueError for coordinates outside the slice and for a
    network with a module that has no tangent rule.
    """
    if not isinstance(plane, Slice):
        raise ValueError(f"plane is {type(plane).__name__}: make one of three latents, Slice(z)")
    if tuple(plane.anchors.shape[1:]) != generator.latent_shape:
        raise ValueError(
            f"plane has latents of shape {tuple(plane.anchors.shape[1:])}, and this model "
            f"{generator.latent_shape}; make one of its own, Slice(generator.noise(3, seed))"
        )
    run = {"steps": steps, "prompt": prompt, "guidance": guidance, "class_labels": class_labels}
    pieces = plane.coordinates(t).split(batch)
    parts = [_jacobian(generator, plane, piece, features, run) for piece in pieces]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return tuple(torch.cat(own) for own in zip(*parts, strict=True))


def _jacobian(
    generator: Generator, plane: Slice, t: Tensor, features: Callable | None, settings: dict
) -> Tensor | tuple[Tensor, ...]:
    def columns(moves: Sequence[Tensor]) -> Tensor:
        return torch.stack([dx.flatten(1) for dx in moves], -1).to(t)

    moves = plane.tangents(t, generator.dtype)
    latents = plane.latents(t, dtype=generator.dtype)
    images, moves = tangents.pushforward(generator, latents, moves, **settings)
    if features is not None:
        with torch.no_grad():
            moves = [torch.func.jvp(features, (images,), (dx,))[1] for dx in moves]
    if isinstance(moves[0], Tensor):
        return columns(moves)
    return tuple(columns(own) for own in zip(*moves, strict=True))


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
