"""Is a border fractal? Box counting, windows, power, and what rounding leaves to see.

A claim about structure at some scale needs three things: a window above the resolution of the
number format, differences above the noise floor, and controls of known dimension.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lib.intervals import Values, as_array, as_numpy
from lib.slices.maps import Evaluate
from lib.slices.refine import refine


class Dimension(NamedTuple):
    """A box-counting dimension with the standard error of its slope and its scale window.

    sizes: box edges in grid cells; counts: boxes of that size that meet the set.
    """

    dimension: float
    standard_error: float
    sizes: np.ndarray
    counts: np.ndarray


def box_counting(mask: Values, *, smallest: int = 1, largest: int | None = None) -> Dimension:
    """Box-counting dimension of a set of grid cells, the slope of log N(s) against −log s.

    Boxes of edges smallest · 2^k, up to `largest` (by default a sixteenth of the shorter side, at
    least 4); N is the least over four positions of the boxes, because shifted boxes cover the ends
    of a set twice. The standard error is that of the least-squares slope; counts of nested boxes
    are correlated, so the spread over several borders says more.

    Raises:
        ValueError: a mask that is not two-dimensional or is empty, or fewer than three sizes.
    """
    mask = as_numpy(mask).astype(bool)
    if mask.ndim != 2 or not mask.any():
        raise ValueError(
            f"mask of shape {mask.shape} with {mask.sum()} cells; expected a set in 2-D"
        )
    largest = max(min(mask.shape) // 16, 4) if largest is None else largest
    sizes = np.array([smallest * 2**k for k in range(32) if 1 <= smallest * 2**k <= largest])
    if len(sizes) < 3:
        raise ValueError(
            f"box sizes {sizes.tolist()} from smallest = {smallest} to largest = {largest}: at "
            "least three are needed for a slope with an error; use a finer grid"
        )
    counts = np.array([_boxes(mask, int(s)) for s in sizes])
    x, y = -np.log(sizes), np.log(counts)
    x = x - x.mean()
    slope = x @ y / (x @ x)
    residual = y - y.mean() - slope * x
    error = np.sqrt(residual @ residual / (len(x) - 2) / (x @ x))
    return Dimension(float(slope), float(error), sizes, counts)


def _boxes(mask: np.ndarray, size: int) -> int:
    """Boxes of one size that meet the set, the fewest among shifts by half a box."""
    shifts = [(a, b) for a in (0, size // 2) for b in (0, size // 2)]
    counts = []
    for shift in shifts:
        padding = [(s, -(n + s) % size) for s, n in zip(shift, mask.shape, strict=True)]
        rows, columns = (padded := np.pad(mask, padding)).shape
        boxes = padded.reshape(rows // size, size, columns // size, size)
        counts.append(boxes.any((1, 3)).sum())
    return int(min(counts))


def line_spread(
    points: int, *, lines: int = 1, draws: int = 200, seed: int = 0, **options: int
) -> tuple[float, float]:
    """Dimension that straight lines get on a grid of `points` a side: mean and deviation.

    `lines` together, of random directions, within a quarter of the side of the middle, counted as
    any border: several lines fill more boxes. The deviation is the error of one box count at this
    size, and options are those of `box_counting`. Raises ValueError for no line, and draws < 2.
    """
    if lines < 1 or draws < 2:
        raise ValueError(f"lines = {lines}, draws = {draws}: take a line and two draws at least")
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(*[np.linspace(-0.5, 0.5, points)] * 2, indexing="ij")
    found = []
    for _ in range(draws):
        angle, offset = rng.uniform(0, np.pi, lines), rng.uniform(-0.25, 0.25, lines)
        sides = x[..., None] * np.cos(angle) + y[..., None] * np.sin(angle) > offset
        drawn = np.logical_or.reduce([border(side) for side in np.moveaxis(sides, -1, 0)])
        found.append(box_counting(drawn, **options).dimension)
    return float(np.mean(found)), float(np.std(found, ddof=1))


def koch(points: int, dimension: float, *, seed: int = 0) -> np.ndarray:
    """Labels (points, points) of the two sides of a curve of known dimension, at a random place.

    A generalised Koch curve: four pieces of length r in the place of one, D = log 4 / log(1/r), so
    r = 1/4 is a line, 1/3 the snowflake (1.262) and 1/2 fills an area. The window is turned at
    random and lies on a random point of the curve; its edge, a sixth to a third of the curve's
    span, is far above the curve's finest piece. Raises ValueError unless 1 <= dimension < 2.
    """
    from matplotlib.path import Path

    if not 1 <= dimension < 2:
        raise ValueError(f"dimension = {dimension}: a curve has 1 up to below 2")
    r = 4 ** (-1 / dimension)
    height = np.sqrt(max(r**2 - (0.5 - r) ** 2, 0.0))
    corners = np.array([0, r, 0.5 + 1j * height, 1 - r, 1])
    curve = np.array([0, 1], complex)
    while np.abs(np.diff(curve)).max() > 1 / 8 / points and len(curve) < 20_000:
        steps = np.diff(curve)[:, None] * corners[:-1]
        curve = np.append((curve[:-1, None] + steps).ravel(), 1)
    rng = np.random.default_rng(seed)
    edge, turn = rng.uniform(1 / 6, 1 / 3), np.exp(1j * rng.uniform(0, 2 * np.pi))
    middle = curve[rng.integers(len(curve) // 4, 3 * len(curve) // 4)]
    x = np.linspace(-0.5, 0.5, points)
    middle = middle + edge * (rng.uniform(-0.2, 0.2) + 1j * rng.uniform(-0.2, 0.2))
    t = middle + edge * turn * (x[:, None] + 1j * x)
    closed = np.append(curve, [3 + 0j, 3 - 3j, -3 - 3j, -3 + 0j])
    inside = Path(np.stack([closed.real, closed.imag], 1))
    return inside.contains_points(np.stack([t.real, t.imag], -1).reshape(-1, 2)).reshape(t.shape)


def readings(points: int, dimension: float, *, largest: int, draws: int = 50) -> np.ndarray:
    """Dimensions (draws,) that windows on a curve of known dimension read, of those it crosses."""
    masks = (border(koch(points, dimension, seed=k)) for k in range(draws))
    return np.array([box_counting(m, largest=largest).dimension for m in masks if m.any()])


def share_above(values: Values, bound: float, *, windows: int, draws: int = 1000) -> float:
    """How often the mean of so many of the values, less two standard errors, exceeds a bound."""
    drawn = as_array(values)[np.random.default_rng(0).integers(len(values), size=(draws, windows))]
    return float((drawn.mean(1) - 2 * drawn.std(1, ddof=1) / windows**0.5 > bound).mean())


def border(labels: Values) -> np.ndarray:
    """Cells (g − 1, h − 1) of a grid whose four corners do not carry the same label (g, h).

    Raises ValueError for labels that are not on a grid.
    """
    labels = as_numpy(labels)
    if labels.ndim != 2 or min(labels.shape) < 2:
        raise ValueError(f"labels have shape {labels.shape}; expected a grid (g, h) of 2 and more")
    first = labels[:-1, :-1]
    others = (labels[1:, :-1], labels[:-1, 1:], labels[1:, 1:])
    return np.logical_or.reduce([first != other for other in others])


def traced(
    classify: Evaluate,
    centre: Values,
    edge: float,
    depth: int,
    *,
    resolution: float = 0.0,
    coarse: int = 3,
) -> np.ndarray:
    """Labels of a window on 2^depth + 1 points a side, classified along its borders only.

    The quadtree of `refine`, which splits cells whose corners differ; a patch of another label that
    fits between points of the 2^coarse cells a side and touches no border is not seen. The window
    is moved into the slice where it would leave it.

    Args:
        classify: coordinates (n, 2) -> labels (n,).
        centre: (2,), a point of a border, located to far below the edge.
        resolution: smallest step of the number format, `Slice.resolution(dtype)`.

    Raises:
        ValueError: an edge below points · resolution, naming the smallest useful one, or above 1;
            labels that are not one for each point.
    """
    if not 0 < edge <= 1:
        raise ValueError(f"edge = {edge}: choose one above 0 and up to 1, the whole slice")
    check_window(edge, 2**depth + 1, resolution)
    middle = as_array(centre).clip(edge / 2, 1 - edge / 2)
    names: dict = {}

    def numbered(t: torch.Tensor) -> np.ndarray:
        labels = as_numpy(classify(t))
        if labels.shape != (len(t),):
            raise ValueError(
                f"classify returned shape {labels.shape} for {len(t)} points; expected "
                f"({len(t)},), one label for each"
            )
        return np.array([names.setdefault(label, len(names)) for label in labels.tolist()])

    window = {"low": (middle - edge / 2).clip(0, 1), "high": (middle + edge / 2).clip(0, 1)}
    tree = refine(numbered, depth, coarse=min(coarse, depth), share=1.0, **window)
    return np.array(list(names))[np.rint(tree.values).astype(int)]


def check_window(window: float, points: int, resolution: float) -> None:
    """Raise ValueError for a window whose neighbouring points differ by less than `resolution`.

    The smallest useful window is points · resolution: below it the format gives equal latents to
    neighbouring points, and what is seen there is rounding.
    """
    useful = points * resolution
    if window < useful:
        raise ValueError(
            f"window = {window:.3g} with {points} points a side is below the number format, which "
            f"resolves steps of {resolution:.3g}: the smallest useful window is {useful:.3g}; use "
            "it, take fewer points, or compute in float64"
        )


def difference_slopes(
    evaluate: Evaluate, t: Values, direction: Sequence[float], distances: Sequence[float]
) -> np.ndarray:
    """Finite-difference Lipschitz constants |f(t + hu/2) − f(t − hu/2)| / h, (n, k).

    evaluate: (m, 2) -> (m, ...). t: (n, 2). direction: (2,), made a unit vector u. distances: k
    positive h; the divisor is the distance after rounding. They tend to |J u| as h falls, until
    rounding takes over. Raises ValueError for a distance that is not positive or is lost in t.
    """
    t = torch.as_tensor(t, dtype=torch.float64).cpu()
    u = torch.as_tensor(direction, dtype=torch.float64)
    half = torch.as_tensor(distances, dtype=torch.float64).view(-1, 1, 1) * u / u.norm() / 2
    ends = torch.stack([t - half, t + half])  # (2, k, n, 2)
    gaps = (ends[1] - ends[0]).norm(dim=-1)
    if len(distances) == 0 or min(distances) <= 0 or not bool((gaps > 0).all()):
        raise ValueError(
            f"distances = {list(distances)}: expected positive numbers above the resolution of "
            "float64, 2e-16"
        )
    values = as_array(evaluate(ends.reshape(-1, 2))).reshape(2, *gaps.shape, -1)
    return (np.linalg.norm(values[1] - values[0], axis=-1) / gaps.numpy()).T


def noise_floor(evaluate: Evaluate, t: Values, *, repeats: int = 8) -> np.ndarray:
    """Largest distance between repeated results for identical input, (n,), in units of the result.

    Each point of t (n, 2) is evaluated alone and in batches of 2, 3, …, `repeats` rows, so in other
    positions and with other companions. No difference below it is structure. `evaluate` must make
    one network call of its batch, and must not cache. Raises ValueError unless repeats >= 2.
    """
    t = torch.as_tensor(t, dtype=torch.float64)
    if repeats < 2:
        raise ValueError(f"repeats = {repeats}: one evaluation has nothing to differ from")
    runs = [
        np.concatenate([as_array(evaluate(part)).reshape(len(part), -1) for part in t.split(r)])
        for r in range(1, repeats + 1)
    ]
    return np.max([np.linalg.norm(a - b, axis=1) for a in runs for b in runs], axis=0)
