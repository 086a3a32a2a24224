"""Where a decision flips along paths, many paths at once, and how an edit moves the flips.

Everything about the model, the edit and the judge is in one callable, so that any of them serves.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.diffusion import sampling
from lib.intervals import Values, as_array

Decide = Callable[[Tensor, Tensor], Tensor]  # rows (m,), places on their paths (m,) -> labels (m,)
DecideEdited = Callable[[Tensor, Tensor, Tensor], Tensor]  # the same, and strengths (m,)


class Flip(NamedTuple):
    """First flips of n paths: places (n,) float64, NaN for none, and flips of the first scan."""

    place: Tensor
    count: Tensor


class Moved(NamedTuple):
    """Borders s₀ of n paths, strengths c* at which they reach the start, borders at shares of c*.

    place, critical: (n,); moved: (n, shares). Float64, NaN where no flip was found.
    """

    place: Tensor
    critical: Tensor
    moved: Tensor


def arc(start: Tensor, end: Tensor, weights: Tensor) -> Tensor:
    """Latents (n, ...) on great arcs, each at its own weight (n,); see `sampling.spherical`."""
    ends = zip(start[:, None], end[:, None], weights.tolist(), strict=True)
    return torch.cat([sampling.spherical(a, b, [s])[0] for a, b, s in ends])


def first_flip(decide: Decide, n: int, *, parts: int = 4, tolerance: float = 1 / 64) -> Flip:
    """First flip on each of n paths over [0, 1], by a scan and then bisection of all together.

    decide: labels of points, each given by its path and its place there. The scan looks at parts +
    1 points of each path; a pair of flips inside one part is missed. Brackets end no longer than
    `tolerance`, and their middles are returned. Raises ValueError for parts < 1 or a tolerance
    outside (0, 1).
    """
    if parts < 1 or not 0 < tolerance < 1:
        raise ValueError(f"parts = {parts}, tolerance = {tolerance}: at least 1, and in (0, 1)")
    rows, at = torch.arange(n), torch.linspace(0, 1, parts + 1, dtype=torch.float64)
    seen = decide(rows.repeat_interleave(parts + 1), at.repeat(n)).cpu().reshape(n, -1)
    flips = seen[:, 1:] != seen[:, :-1]
    found, place = flips.any(1).nonzero()[:, 0], torch.full((n,), torch.nan).double()
    part = flips[found].int().argmax(1)
    low, high, before = at[part], at[part + 1], seen[found, part]
    for _ in range(max(math.ceil(-math.log2(parts * tolerance)), 0) if len(found) else 0):
        middle = (low + high) / 2
        same = decide(found, middle).cpu() == before
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    place[found] = (low + high) / 2
    return Flip(place, flips.sum(1))


def moved_borders(
    decide: DecideEdited, n: int, shares: Sequence[float], *, most: float = 4.0
) -> Moved:
    """Borders s₀ without an edit, c* at the start of each path, and borders at shares of c*.

    Tests the law s*(c) = s₀ (1 − c / c*): c* is sought up to `most`, even in the root of the
    strength. Paths without s₀ or c* have NaN.
    """
    zero = torch.zeros_like
    place = first_flip(lambda i, s: decide(i, s, zero(s)), n).place
    root = first_flip(lambda i, u: decide(i, zero(u), most * u.square()), n).place
    critical, moved = most * root.square(), torch.full((n, len(shares)), torch.nan).double()
    kept = (place + critical).isfinite().nonzero()[:, 0]
    for j, share in enumerate(shares if len(kept) else ()):
        at = share * critical[kept]
        own = first_flip(lambda i, s, at=at: decide(kept[i], s, at[i]), len(kept))
        moved[kept, j] = own.place
    return Moved(place, critical, moved)


def law_ratio(place: Values, moved: Values, share: Values) -> float:
    """RMS error of s*(c) = s₀ (1 − c / c*) over that of "the border stays"; 0 exact, 1 no better.

    place: s₀ (n,); moved: s* (n,); share: c / c*, (n,) or one for all. 1 where nothing moves.
    """
    place, moved, share = as_array(place), as_array(moved), as_array(share)
    error, stays = moved - place * (1 - share), moved - place
    size = np.square(stays).mean()
    return float(np.sqrt(np.square(error).mean() / size)) if size > 0 else 1.0
