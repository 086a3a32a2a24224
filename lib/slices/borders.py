"""Where a label flips on a slice: at which coordinates, how sharply, and whether on a ridge."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.intervals import Values, as_array, as_numpy, of_left_out
from lib.slices.maps import Evaluate

Classify = Callable[[Tensor], Sequence]
SECTIONS = 8  # parts per pass: a batch of a few images costs little more than one
QUARTERS = 4  # parts per pass where whole images are compared
ROUGH = 1e-5  # brackets that float32, which resolves some 1e-7, still tells apart


class Crossing(NamedTuple):
    """Borders on segments: points and unit directions (b, 2) float64, lengths of brackets (b,)."""

    points: Tensor
    directions: Tensor
    gap: Tensor


def crossings(
    classify: Classify,
    start: Values,
    end: Values,
    *,
    which: Sequence[int] | None = None,
    tolerance: float = 1e-6,
    rough: Classify | None = None,
) -> Crossing:
    """One border on each segment, by repeated section between two points of different label.

    Each pass looks at seven interior points of every segment and keeps the first part whose ends
    differ, so of several borders the one nearest to the start is followed.

    Args:
        classify: coordinates (n, 2) -> labels (n,), or (n, k) of k attributes with `which`.
        start, end: (b, 2), of different labels.
        which: (b,), the attribute that flips on each segment.
        tolerance: length of the last brackets in t; their middles are returned.
        rough: a cheaper `classify`, such as one in float32, for brackets down to 1e-5; one that
            `classify` does not confirm is dropped.

    Raises:
        ValueError: shapes that differ, coordinates that are not finite, a tolerance that is not
            positive or below the resolution of float64, or a segment with one label at both ends.
    """
    low, high = (torch.as_tensor(x, dtype=torch.float64).cpu().clone() for x in (start, end))
    if low.shape != high.shape or low.ndim != 2 or not tolerance > 0:
        raise ValueError(
            f"start {tuple(low.shape)}, end {tuple(high.shape)}, tolerance = {tolerance}; expected "
            "two (b, 2) and a length above zero"
        )
    finest = SECTIONS * torch.finfo(low.dtype).eps
    if not bool((low + high).isfinite().all()) or tolerance < finest:
        raise ValueError(
            f"tolerance = {tolerance:.3g}, or coordinates that are not finite: brackets in float64 "
            f"cannot be shorter than {finest:.1g}"
        )
    first, last = _labels(classify, torch.stack([low, high], 1), which).T
    if (first == last).any():
        row = int(np.argmax(first == last))
        raise ValueError(
            f"segment {row} from {low[row].tolist()} to {high[row].tolist()} has label "
            f"{first[row]} at both ends: no border is known to lie on it"
        )
    directions = (high - low) / (high - low).norm(dim=1, keepdim=True)
    if rough is not None:
        near = _sections(rough, low, high, which, ROUGH)
        margin = torch.stack([-directions, directions], 1) * ROUGH
        ends = (torch.stack(near, 1) + margin).clamp(0, 1)
        seen = _labels(classify, ends, which)
        confirmed = torch.from_numpy((seen[:, 0] == first) & (seen[:, 1] != first))[:, None]
        low, high = (torch.where(confirmed, ends[:, k], x) for k, x in enumerate((low, high)))
    low, high = _sections(classify, low, high, which, tolerance)
    return Crossing((low + high) / 2, directions, (high - low).norm(dim=1))


def _sections(
    classify: Classify, low: Tensor, high: Tensor, which: Sequence[int] | None, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Ends of the first parts of segments whose labels differ, as short as the tolerance."""
    inner = torch.linspace(0, 1, SECTIONS + 1, dtype=torch.float64)[1:-1, None]
    first = _labels(classify, low[:, None], which)
    rows = torch.arange(len(low))
    while (high - low).norm(dim=1).max() > tolerance:
        points = torch.lerp(low[:, None], high[:, None], inner)
        differs = _labels(classify, points, which) != first
        part = torch.from_numpy(np.pad(differs, [(0, 0), (0, 1)], constant_values=True).argmax(1))
        ends = torch.cat([low[:, None], points, high[:, None]], 1)
        low, high = ends[rows, part], ends[rows, part + 1]
    return low, high


def followed(
    classify: Classify,
    known: Crossing,
    *,
    which: Sequence[int] | None = None,
    reach: float = 0.05,
    tolerance: float = 1e-6,
    rough: Classify | None = None,
) -> tuple[np.ndarray, Crossing | None]:
    """Known borders under another classifier: which (b,) are still there, and where.

    Looks along the direction of each border, up to `reach` of the slice to both sides and inside
    it, for flips of the same attribute, and takes the one nearest to the known place, because a
    border moves with the number of steps or the guidance. None where no border is left. Where a
    height is read off there, the tolerance has to be far below the width of a border. `rough`, a
    cheaper classifier, looks for the border, which `crossings` then locates.
    """
    # The known place is no node, because there rounding decides the label.
    span = torch.linspace(-reach, reach, 4 * SECTIONS, dtype=torch.float64)[:, None]
    line = (known.points[:, None] + span * known.directions[:, None]).clamp(0, 1)
    own = _labels(rough or classify, line, which)
    flips = own[:, 1:] != own[:, :-1]
    away = np.abs(np.arange(4 * SECTIONS - 1) - 2 * SECTIONS + 1)
    part = torch.from_numpy(np.where(flips, away, np.inf).argmin(1))
    kept = flips.any(1)
    if not kept.any():
        return kept, None
    rows = torch.from_numpy(np.flatnonzero(kept))
    low, high = line[rows, part[rows]], line[rows, part[rows] + 1]
    which = None if which is None else np.asarray(which)[kept]
    more = {"which": which, "tolerance": tolerance, "rough": rough}
    return kept, crossings(classify, low, high, **more)


def steepest(
    draw: Evaluate,
    points: Values,
    directions: Values,
    *,
    width: float = 0.01,
    tolerance: float = 1e-7,
    rough: Evaluate | None = None,
) -> Crossing:
    """Where the image jumps next to flips of a label: the point at which a height is to be read.

    A judge may flip beside the jump, where the image hardly moves. Each pass looks at four parts of
    every segment and keeps the one across which the image changes most.

    Args:
        draw: coordinates (n, 2) -> images (n, ...).
        points, directions: (b, 2), as in `Crossing`.
        width: how far a segment reaches to both sides of its point, inside the slice.
        tolerance: length of the last brackets in t; their middles are returned.
        rough: a cheaper `draw`, such as one in float32, for brackets down to 1e-5.

    Raises:
        ValueError: points and directions that are not two (b, 2), or lengths that do not rise from
            above the resolution of float64 over the tolerance to the width.
    """
    middle, directions = (
        torch.as_tensor(x, dtype=torch.float64).cpu() for x in (points, directions)
    )
    fits = middle.shape == directions.shape and middle.ndim == 2
    if not fits or not SECTIONS * torch.finfo(middle.dtype).eps <= tolerance < width:
        raise ValueError(
            f"points {tuple(middle.shape)}, directions {tuple(directions.shape)}, tolerance = "
            f"{tolerance}, width = {width}; expected two (b, 2) and 2e-15 <= tolerance < width"
        )
    sides = torch.stack([-directions, directions])
    low, high = (middle + width * sides).clamp(0, 1)
    if rough is not None:
        near = torch.stack(_jumps(rough, low, high, ROUGH))
        low, high = (near + ROUGH * sides).clamp(0, 1)
    low, high = _jumps(draw, low, high, tolerance)
    return Crossing((low + high) / 2, directions, (high - low).norm(dim=1))


def _jumps(draw: Evaluate, low: Tensor, high: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Ends of the parts of segments across which images change most, as short as the tolerance."""
    parts = torch.linspace(0, 1, QUARTERS + 1, dtype=torch.float64)[:, None]
    rows = torch.arange(len(low))

    def images(t: Tensor) -> Tensor:
        return torch.as_tensor(draw(t.flatten(0, 1))).unflatten(0, t.shape[:2]).flatten(2)

    first, last = images(torch.stack([low, high], 1)).split(1, 1)
    while (high - low).norm(dim=1).max() > tolerance:
        nodes = torch.lerp(low[:, None], high[:, None], parts)
        seen = torch.cat([first, images(nodes[:, 1:-1]), last], 1)
        part = seen.diff(dim=1).norm(dim=2).argmax(1).cpu()
        low, high = nodes[rows, part], nodes[rows, part + 1]
        first, last = seen[rows, part, None], seen[rows, part + 1, None]
    return low, high


def combined(labels: Values) -> np.ndarray:
    """One number (...) for each combination of k attributes (..., k), 0, 1, … in sorted order.

    Raises ValueError for a single number, which has no last axis of attributes.
    """
    labels = as_numpy(labels)
    if labels.ndim == 0 or labels.size == 0:
        raise ValueError(f"labels have shape {labels.shape}; expected (..., k), not empty")
    _, code = np.unique(labels.reshape(-1, labels.shape[-1]), axis=0, return_inverse=True)
    return code.reshape(labels.shape[:-1])


def _labels(classify: Classify, points: Tensor, which: Sequence[int] | None = None) -> np.ndarray:
    """Labels (b, k) of points (b, k, 2), each row of its own attribute."""
    found = as_numpy(classify(points.flatten(0, 1))).reshape(*points.shape[:2], -1)
    columns = np.zeros(len(found), int) if which is None else np.asarray(which)
    return np.take_along_axis(found, columns[:, None, None], 2)[..., 0]


def border_pairs(
    labels: Values, weights: Values | None = None, *, most: int, apart: int = 1
) -> np.ndarray:
    """Neighbours of a grid with different labels, (k, 2, 2) indices, the heaviest first.

    labels: (g, h). weights: (g, h), by default all equal; a pair weighs what its heavier end does.
    apart: least distance in grid cells between the pairs chosen. Empty where nothing flips. Raises
    ValueError for labels and weights that are not on one grid, and most < 1.
    """
    labels = as_numpy(labels)
    if labels.ndim != 2 or (weights is not None and as_array(weights).shape != labels.shape):
        raise ValueError(
            f"labels {labels.shape} and weights {np.shape(weights)} are not on one grid (g, h)"
        )
    if most < 1:
        raise ValueError(f"most = {most}: ask for at least one pair")
    pairs = _neighbours(labels.shape)
    pairs = pairs[np.not_equal(*labels[tuple(pairs.T)])]
    weight = np.ones(labels.shape) if weights is None else as_array(weights)
    heavy = weight[tuple(pairs.T)].max(0)
    chosen: list[np.ndarray] = []
    for pair in pairs[np.argsort(-heavy, kind="stable")]:
        if all(np.abs(pair[0] - other[0]).max() >= apart for other in chosen):
            chosen.append(pair)
        if len(chosen) == most:
            break
    return np.array(chosen, int).reshape(-1, 2, 2)


def _neighbours(shape: tuple[int, int]) -> np.ndarray:
    """All pairs of grid neighbours, (n, 2, 2); x[tuple(pairs.T)] are the values at both ends."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    ends = (index[:-1], index[1:]), (index[:, :-1], index[:, 1:])
    return np.concatenate([np.stack([x.reshape(-1, 2) for x in pair], 1) for pair in ends])


class Flips(NamedTuple):
    """Share of label flips on a mask, the share of all pairs that is, and the count of flips."""

    share: float
    by_chance: float
    count: int


def flips_on(mask: Values, labels: Values) -> Flips:
    """How many label flips between grid neighbours lie on a mask (g, h), such as its ridges.

    Pairs are grid neighbours, on the mask if either end is. labels: (g, h), or (g, h, k) for k
    attributes, whose flips are counted together. The share is NaN where nothing flips.
    Raises ValueError for shapes that differ.
    """
    mask, labels = as_numpy(mask).astype(bool), as_numpy(labels)
    if mask.ndim != 2 or labels.shape[:2] != mask.shape:
        raise ValueError(f"mask {mask.shape} and labels {labels.shape} are not on one grid")
    labels = labels.reshape(*mask.shape, -1)
    pairs = tuple(_neighbours(mask.shape).T)
    flips, on = np.not_equal(*labels[pairs]).sum(1), mask[pairs].any(0)
    share = flips @ on / flips.sum() if flips.sum() else np.nan
    return Flips(float(share), float(on.mean()), int(flips.sum()))


def flip_share_error(mask: Values, labels: Values, *, blocks: int = 4) -> tuple[float, int]:
    """Standard error of the share of `flips_on`, and the number of blocks with flips behind it.

    Flips along one border are no independent units, so whole blocks × blocks rectangles of the
    slice are left out in turn (jackknife of a ratio, `intervals.of_left_out`). Zero with fewer than
    two such rectangles. Raises ValueError for blocks without pairs.
    """
    mask, labels = as_numpy(mask).astype(bool), as_numpy(labels)
    most = min(mask.shape) // 2
    if not 2 <= blocks <= most:
        raise ValueError(f"blocks = {blocks} for a map of shape {mask.shape}; choose 2 ... {most}")
    counts = []
    for rows in np.array_split(np.arange(mask.shape[0]), blocks):
        for columns in np.array_split(np.arange(mask.shape[1]), blocks):
            own = flips_on(mask[np.ix_(rows, columns)], labels[np.ix_(rows, columns)])
            counts += [(own.share * own.count, own.count)] if own.count else []
    on, all_ = np.array(counts or [(0, 1)], float).T
    if len(counts) < 2:
        return 0.0, len(counts)
    return of_left_out((on.sum() - on) / (all_.sum() - all_)), len(counts)


def flip_width(log_odds: Evaluate, crossing: Crossing, *, step: float) -> np.ndarray:
    """Distance in t over which an attribute goes from 10 % to 90 % at its border, (b,).

    w = 2 log 9 / |dℓ/ds| for the logistic with the slope of the log-odds ℓ at the crossing, by a
    central difference over `step`; inf where ℓ is the same at both ends. log_odds: coordinates
    (n, 2) -> (n,), or (n, b) with one column for each crossing, of which its own is read.
    Raises ValueError unless step > 0.
    """
    if not step > 0:
        raise ValueError(f"step = {step}: a difference needs a length above zero")
    half = crossing.directions * step / 2
    ends = torch.stack([crossing.points - half, crossing.points + half])
    values = as_array(log_odds(ends.reshape(-1, 2)))
    if values.ndim == 2:
        values = np.take_along_axis(values, np.tile(np.arange(len(half)), 2)[:, None], 1)[:, 0]
    low, high = values.reshape(2, -1)
    with np.errstate(divide="ignore"):
        return 2 * np.log(9) * step / np.abs(high - low)


class PhasePairs(NamedTuple):
    """Pairs of points (n, 2) float64, which of them lie within a phase, and which across two."""

    start: Tensor
    end: Tensor
    within: np.ndarray
    across: np.ndarray


def phase_pairs(
    regions: Values, n: int, *, lengths: tuple[float, float] = (0.15, 0.45), seed: int = 0
) -> PhasePairs:
    """Random pairs of points, as many within a phase as across two, all of like length.

    Uniform in [0.1, 0.9]². regions: (g, g), `relief.phases`. Within: the straight line stays in one
    region; across: the ends lie in two. Of either kind the first n // 2 that are drawn, then pairs
    of any kind up to n: of plain random pairs most of those within a phase would be short.
    Raises ValueError for n < 2 and lengths that do not rise from above 0 to below 1.
    """
    shortest, longest = lengths
    if n < 2 or not 0 < shortest < longest < 1:
        raise ValueError(f"n = {n}, lengths = {lengths}; expected two pairs and 0 < shortest < 1")
    rng = np.random.default_rng(seed)
    start, end = torch.as_tensor(rng.uniform(0.1, 0.9, (2, 200 * n, 2)))
    size = (end - start).norm(dim=1)
    fits = ((size > shortest) & (size < longest)).numpy()
    kinds = _kinds(as_numpy(regions), start, end)
    chosen = [np.flatnonzero(kind & fits)[: n // 2] for kind in kinds]
    rest = np.setdiff1d(np.flatnonzero(fits), np.concatenate(chosen))
    rows = np.concatenate([*chosen, rest[: n - sum(map(len, chosen))]])
    return PhasePairs(start[rows], end[rows], *(kind[rows] for kind in kinds))


def _kinds(regions: np.ndarray, start: Tensor, end: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Which straight lines stay in one region, and which end in two."""
    line = torch.lerp(
        start[:, None], end[:, None], torch.linspace(0, 1, 64).double()[None, :, None]
    )
    cells = (line * (len(regions) - 1)).round().long().numpy()
    own = regions[cells[..., 0], cells[..., 1]]
    first, last = own[:, 0], own[:, -1]
    within = ((own == own[:, :1]) & (own > 0)).all(1)
    return within, (first > 0) & (last > 0) & (first != last)
